"""Examples of events are made up by themselves, or the declaration says what is missing."""

import enum
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from contract import shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Raw, Struct

from canvasbus import AwareDatetime, Event
from canvasbus.contract.example import example
from canvasbus.contract.registry import Registry
from canvasbus.errors import ContractError


class Colour(enum.IntEnum):
    RED = 1


class Pair(NamedTuple):
    left: int
    right: str = ""


class Row(Struct, frozen=True, array_like=True):
    size: int
    name: str = ""


class Leaf(Struct, frozen=True, tag=True):
    size: int


class Node(Struct, frozen=True, tag=True):
    inside: "tuple[Node | Leaf, ...]" = ()


class Loop(Struct, frozen=True):
    again: "Loop"


def made(hint: Any) -> Any:
    names = {"__module__": __name__, "__annotations__": {"it": hint}}
    declared = Registry().register(type(Event)("Made", (Event,), names), "studio.fact", 1, None)
    return example(declared).it  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (str, "it"),
        (Annotated[str, Meta(min_length=4)], "itxx"),
        (Annotated[str, Meta(max_length=1)], "i"),
        (Annotated[str, Meta(pattern="^z", examples=["zoo"])], "zoo"),
        (bytes, b"\x00\x00\x00\x3f"),
        (int, 1),
        (Annotated[int, Meta(ge=5, multiple_of=2)], 6),
        (Annotated[int, Meta(gt=6, multiple_of=2)], 8),
        (Annotated[int, Meta(le=-5, multiple_of=3)], -6),
        (Annotated[int, Meta(lt=-6, multiple_of=3)], -9),
        (Annotated[float, Meta(ge=0.0, le=0.25)], 0.25),
        (bool, True),
        (None | int, 1),
        (Literal["b", "a"], "a"),
        (Colour, Colour.RED),
        (UUID, UUID("0194226e-79fe-7000-8000-00000000c0de")),
        (date, date(2026, 1, 2)),
        (timedelta, timedelta(minutes=5)),
        (Decimal, Decimal("0.5")),
        (Pair, Pair(1, "right")),
        (Row, Row(1, "name")),
        (tuple[int, str], (1, "it")),
        (Annotated[tuple[int, ...], Meta(min_length=2)], (1, 1)),
        (frozenset[str], frozenset({"it"})),
        (Mapping[str, int], {"it": 1}),
        (Mapping[int, bool], {1: True}),
        (Leaf | Node, Leaf(1)),
    ],
    ids=str,
)
def test_a_value_fits_its_type(hint: Any, value: Any) -> None:
    """Within bounds, the first of alternatives, collections with something in them."""
    assert made(hint) == value


def test_types_that_hold_themselves_end() -> None:
    """Somewhere a collection is empty."""
    assert made(Node).inside[0].inside[0].inside


@pytest.mark.parametrize("hint", [Raw, time, AwareDatetime], ids=str)
def test_the_rest_has_some_value(hint: Any) -> None:
    """Whatever it is."""
    assert made(hint) is not None


@pytest.mark.parametrize(
    ("hint", "says"),
    [
        (Annotated[str, Meta(pattern="^z")], "field it: give its type .*examples"),
        (Loop, r"field it\.again"),
        (Annotated[frozenset[int], Meta(min_length=2)], "field it: "),
        (Annotated[str, Meta(max_length=2, examples=["long"])], "no such event: .*length <= 2.*examples"),
    ],
)
def test_what_cannot_be_made_up_is_asked_for(hint: Any, says: str) -> None:
    """An optional field is left out instead."""
    with pytest.raises(ContractError, match=f"studio.fact v1: .*{says}"):
        made(hint)


def test_an_optional_field_without_example_keeps_its_default() -> None:
    """Nobody is bothered for it."""
    names = {
        "__module__": __name__,
        "__annotations__": {"it": Annotated[str, Meta(pattern="^z")], "other": int},
        "it": "zebra",
    }
    declared = Registry().register(type(Event)("Made", (Event,), names), "studio.fact", 1, None)
    assert (example(declared).it, example(declared).other) == ("zebra", 1)  # type: ignore[attr-defined]


@settings(max_examples=100, deadline=None)
@given(st.builds(shapes.fact, shapes.fields(shapes.shapes(shapes.exact_leaves, objects=True)), st.booleans()))
def test_random_events_have_examples(fact: shapes.Fact) -> None:
    """Of their own type; or a sentence says what to write."""
    try:
        assert type(example(fact.declared)) is fact.declared.cls
    except ContractError as error:
        assert "examples=[...]" in str(error)
