"""Older versions become the newest one while they are read; a gap is an error of the declaration."""

import sys
from typing import Any

import pytest

from canvasbus import Event
from canvasbus.contract.registry import EventType, Registry
from canvasbus.contract.upcasting import Upcasters
from canvasbus.errors import ContractError, DecodeError


class Fact(Event):
    it: int = 0


class Fact2(Event):
    it: int = 0


def rename(old: dict[str, Any]) -> dict[str, Any]:
    return {"new": old.pop("old"), **old}


def double(old: dict[str, Any]) -> dict[str, Any]:
    old["new"] *= 2
    return old


def declare(version: int, **options: Any) -> EventType:
    return Registry().register(Fact, "studio.fact", version, None, **options)


def test_a_chain_leads_from_any_older_version_to_the_newest() -> None:
    """Each step runs once, in order, from where the event is on."""
    chain = Upcasters("studio.fact", 3, 1, {1: rename, 2: double})
    assert chain(1, {"old": 4}) == {"new": 8}
    assert chain(2, {"new": 4}) == {"new": 8}
    assert chain(3, {"new": 4}) == {"new": 4}
    assert repr(chain) == "<Upcasters studio.fact v1–v3>"


@pytest.mark.parametrize(
    ("version", "options", "says"),
    [
        (2, {}, r"v2 cannot read v1: .*upcast=\{1: function\}.*or since=2"),
        (4, {"upcast": {2: dict}}, r"v4 cannot read v1, v3: .*from the fields of v1 to those of v2, or since=4"),
        (3, {"since": 2}, r"v3 cannot read v2: "),
        (2, {"upcast": {1: dict, 2: dict}}, r"the step from v2 in upcast= leads nowhere; there may be steps from v1"),
        (1, {"upcast": {1: dict}}, r"the step from v1 .* from none"),
        (3, {"since": 2, "upcast": {1: dict, 2: dict}}, r"the step from v1 .* steps from v2"),
        (2, {"upcast": {1: "dict"}}, r"must be a plain function, not 'dict'"),
        (2, {"upcast": [dict]}, r"upcast= takes \{version: function\}, not \["),
        (2, {"since": 3}, r"since=3 is no version from 1 to 2"),
        (2, {"since": 0, "upcast": {0: dict, 1: dict}}, r"since=0 is no version"),
    ],
)
def test_a_gap_fails_the_declaration(version: int, options: dict[str, Any], says: str) -> None:
    """At import, whatever else is imported before or after; the message says what to write."""
    with pytest.raises(ContractError, match=says):
        declare(version, **options)


def test_a_coroutine_is_no_step() -> None:
    """Reading has nothing to wait for."""

    async def later(old: dict[str, Any]) -> dict[str, Any]:
        return old

    with pytest.raises(ContractError, match="must be a plain function"):
        declare(2, upcast={1: later})


def test_a_refused_declaration_leaves_nothing_behind() -> None:
    """The class may be declared again, rightly."""
    known = Registry()
    with pytest.raises(ContractError):
        known.register(Fact, "studio.fact", 2, None)
    assert known.latest("studio.fact") is None
    assert known.register(Fact, "studio.fact", 2, None, since=2) is known.latest("studio.fact")


@pytest.mark.parametrize("first", [1, 3])
def test_a_struct_that_the_newest_version_does_not_read_is_refused(first: int) -> None:
    """In whatever order the two are imported."""
    known = Registry()
    options: dict[int, dict[str, Any]] = {1: {}, 3: {"since": 3}}
    known.register(Fact, "studio.fact", first, None, **options[first])
    with pytest.raises(ContractError, match=r"Fact2? is v1 of studio.fact, which .*Fact2? does not read.*since=3"):
        known.register(Fact2, "studio.fact", 4 - first, None, **options[4 - first])


def test_the_newest_is_the_newest_in_any_order() -> None:
    """A module that declares an old version may be imported last."""
    known = Registry()
    newest = known.register(Fact, "studio.fact", 2, None, upcast={1: dict})
    known.register(Fact2, "studio.fact", 1, None)
    assert known.latest("studio.fact") is newest
    assert [entry.version for entry in known] == [1, 2]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda old: old["missing"], "raised KeyError: 'missing'"),
        (lambda old: 1 / 0, "raised ZeroDivisionError"),
        (lambda old: sys.exit(3), "raised SystemExit: 3"),
        (lambda old: old.update(it=1), "returned NoneType, not a dict"),
        (lambda old: [old], "returned list, not a dict"),
    ],
)
def test_a_step_that_fails_is_named(step: Any, says: str) -> None:
    """The entry is bad for us, and the message says which function to look at."""
    chain = Upcasters("studio.fact", 3, 1, {1: dict, 2: step})
    with pytest.raises(DecodeError, match=rf"studio.fact v2 → v3: {__name__}.<lambda> {says}") as caught:
        chain(1, {"it": 1})
    assert caught.value.reason == "upcast_failed"


def test_what_belongs_to_the_bus_survives_a_step_that_forgets_it() -> None:
    """Time and correlation are not made new by a step that returns a fresh dict; one that sets them may."""
    raw = {"old": 4, "occurred_on": "then", "correlation_id": "story"}
    forgets = Upcasters("studio.fact", 2, 1, {1: lambda old: {"new": old["old"]}})
    assert forgets(1, dict(raw)) == {"new": 4, "occurred_on": "then", "correlation_id": "story"}
    mends = Upcasters("studio.fact", 2, 1, {1: lambda old: {"occurred_on": "earlier"}})
    assert mends(1, dict(raw)) == {"occurred_on": "earlier", "correlation_id": "story"}
