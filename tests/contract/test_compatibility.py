"""Verdicts about two versions, compared with what msgspec decodes."""

from collections.abc import Callable
from functools import reduce
from typing import Annotated, Any

import msgspec
import pytest
from contract import shapes
from contract.declared import LargeTree, Tree, schema
from contract.shapes import Fact, Shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from canvasbus.contract.changes import Change, changes
from canvasbus.contract.compatibility import Verdict, reads, verdict
from canvasbus.contract.schema import document

# Types are made one by one, which takes long on a busy machine: that is no finding.
random_pairs = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def pairs(draw: Any, leaf: Any, *, objects: bool) -> tuple[Fact, Fact]:
    """Two versions of an event; most of what the first has the second has too."""
    shape = shapes.shapes(leaf, objects=objects)
    first = draw(shapes.fields(shape))
    second = {**first, **draw(st.dictionaries(st.sampled_from("pqr"), st.builds(shapes.Field, shape, st.booleans())))}
    for name in draw(st.sets(st.sampled_from("pqr"))):
        second.pop(name, None)
    strict = st.integers(0, 3).map(lambda one: one == 0)
    return shapes.fact(first, draw(strict)), shapes.fact(second, draw(strict))


def facts(*, objects: bool) -> st.SearchStrategy[Fact]:
    """Any event."""
    fields = shapes.fields(shapes.shapes(shapes.careful_leaves, objects=objects))
    return st.builds(shapes.fact, fields, st.booleans())


def meet(found: list[Change]) -> Verdict:
    """What all changes together mean."""
    return reduce(
        lambda a, b: Verdict.of(backward=a.backward and b.backward, forward=a.forward and b.forward),
        (change.verdict for change in found),
        Verdict.FULL,
    )


def agrees(old: Fact, new: Fact, *, exact: bool) -> None:
    was, now = document(old.declared), document(new.declared)
    said = verdict(was, now)
    seen = Verdict.of(backward=shapes.reads_all(new, old), forward=shapes.reads_all(old, new))
    if exact:
        assert said is seen
    else:
        assert seen.backward or not said.backward
        assert seen.forward or not said.forward
    found = changes(was, now)
    assert meet(found) is said
    assert all(change.verdict is Verdict.FULL for change in found if change.in_place)


@random_pairs
@given(pairs(shapes.exact_leaves, objects=True))
def test_the_verdict_on_nested_objects_is_exact(pair: tuple[Fact, Fact]) -> None:
    """It says that one reads the other where msgspec decodes all documents, and only there."""
    agrees(*pair, exact=True)


@random_pairs
@given(pairs(shapes.exact_leaves, objects=False))
def test_the_verdict_on_maps_is_exact(pair: tuple[Fact, Fact]) -> None:
    """The same for maps."""
    agrees(*pair, exact=True)


@random_pairs
@given(st.tuples(*(facts(objects=objects) for objects in (True, False))))
def test_objects_and_maps_are_not_mistaken_for_each_other(pair: tuple[Fact, Fact]) -> None:
    """Where a Struct becomes a map, or a map a Struct, a yes is never wrong."""
    agrees(*pair, exact=False)


@settings(random_pairs, max_examples=50)
@given(pairs(shapes.exact_leaves, objects=True))
def test_the_same_contract_has_no_changes(pair: tuple[Fact, Fact]) -> None:
    """Declared twice it is the same, whatever it is."""
    for one in pair:
        assert changes(document(one.declared), document(one.declared)) == []


@pytest.mark.parametrize("of_any_size", [shapes.array, shapes.unique, shapes.mapping])
def test_no_limit_is_seen_beyond_every_limit(of_any_size: Callable[[Shape, int | None, int | None], Shape]) -> None:
    """The oracle's own: of what may have any size some documents are larger than the largest limit allows."""
    sixes = shapes.whole(multiple_of=6)
    old, new = (shapes.fact({"p": shapes.Field(of_any_size(sixes, 1, most), True)}, False) for most in (None, 3))
    assert not shapes.reads_all(new, old)
    assert verdict(document(old.declared), document(new.declared)) is Verdict.FORWARD


def test_what_grows_in_itself_is_compared_to_the_end() -> None:
    """A difference deep inside of a type that contains itself is found, and the question ends."""
    old, new = schema({"it": Tree}), schema({"it": LargeTree})
    assert reads(new, old) and not reads(old, new)


def test_patterns_are_compared_as_text() -> None:
    """The same pattern is the same; another one is taken to mean something else, which is not always so."""
    lower, same, other = (
        schema({"it": Annotated[str, Meta(pattern=pattern)]}) for pattern in ("^[a-z]$", "^[a-z]$", "^[a-zA-Z]$")
    )
    assert verdict(lower, same) is Verdict.FULL
    assert verdict(lower, other) is Verdict.BREAKING  # careful: old data would be read
    assert verdict(lower, schema({"it": str})) is Verdict.BACKWARD
    assert msgspec.json.decode(b'"q"', type=Annotated[str, Meta(pattern="^[a-zA-Z]$")]) == "q"
