"""What changed between two schemas, as sentences, and what the rule allows in place."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from contract.declared import LargeTree, Tree, schema
from msgspec import Meta, Struct

from canvasbus import Event
from canvasbus.contract.changes import changes
from canvasbus.contract.compatibility import Verdict, verdict
from canvasbus.contract.registry import Registry
from canvasbus.contract.schema import document


class Point(Struct, frozen=True):
    x: int
    label: str = ""


class Point3(Struct, frozen=True):
    x: int
    label: str = ""
    z: int = 0


class Circle(Struct, frozen=True, tag=True):
    radius: float


class Square(Struct, frozen=True, tag=True):
    side: float


class Disc(Struct, frozen=True, tag="Circle"):
    radius: float
    hole: float = 0.0


FULL, BACKWARD, FORWARD, BREAKING = Verdict.FULL, Verdict.BACKWARD, Verdict.FORWARD, Verdict.BREAKING
Many = Annotated[int, Meta(ge=1)]


@pytest.mark.parametrize(
    ("old", "new", "says", "means", "in_place"),
    [
        (({},), ({"it": int}, {"it": 0}), "field 'it' came with a default", FULL, True),
        (({},), ({"it": int},), "field 'it' came without a default", FORWARD, False),
        (({"it": int},), ({},), "field 'it' is gone", BACKWARD, False),
        (({"it": int}, {"it": 0}), ({},), "field 'it' is gone", FULL, False),
        (({"it": int},), ({"it": str},), "field 'it' was integer, is text", BREAKING, False),
        (({"it": int},), ({"it": float},), "field 'it' was integer, is number", BACKWARD, False),
        (({"it": int},), ({"it": Many},), "field 'it' was integer, is integer >= 1", FORWARD, False),
        (({"it": int},), ({"it": int | None},), "field 'it' was integer, is integer or null", BACKWARD, False),
        (({"it": int},), ({"it": int}, {"it": 0}), "field 'it' may be left out now", BACKWARD, False),
        (({"it": int}, {"it": 0}), ({"it": int},), "field 'it' has no default any more", FORWARD, False),
        (({"it": int}, {"it": 0}), ({"it": int}, {"it": 1}), "has another default: 1 instead of 0", FULL, False),
        (({"it": Literal["a"]},), ({"it": Literal["a", "b"]},), '\'it\' was "a", is "a" | "b"', BACKWARD, False),
        (({"it": bytes},), ({"it": Annotated[bytes, Meta(max_length=2)]},), "bytes of at most 2", FORWARD, False),
        (({"it": Mapping[str, int]},), ({"it": Mapping[int, int]},), "is map of int → integer", BREAKING, False),
        (({"it": tuple[int, ...]},), ({"it": tuple[str, ...]},), "field 'it[]' was integer, is text", BREAKING, False),
        (({"it": Point},), ({"it": Point3},), "field 'it.z' came with a default", FULL, True),
        (({"it": Point | None},), ({"it": Point3 | None},), "field 'it.z' came with a default", FULL, True),
        (({"it": Mapping[str, Point]},), ({"it": Mapping[str, Point3]},), "'it{}.z' came with a default", FULL, True),
        (({"it": Tree},), ({"it": LargeTree},), "field 'it.size' was integer, is number", BACKWARD, False),
        (({"it": Circle},), ({"it": Circle | Square},), "'it' was Circle, is Circle or Square", BACKWARD, False),
        (({"it": Circle | Square},), ({"it": Disc | Square},), "was Circle or Square, is Disc or Square", FULL, False),
        (({}, {}, None), ({}, {}, "it"), "is ordered and partitioned by 'it' instead of nothing", FULL, False),
    ],
)
def test_each_change_is_one_sentence(old: Any, new: Any, says: str, means: Verdict, in_place: bool) -> None:
    """The field, what happened to it, who can read whom, and whether the rule allows it in place."""
    if len(new) == 3:
        old, new = ({"it": int}, *old[1:]), ({"it": int}, *new[1:])
    (change,) = changes(schema(*old), schema(*new))
    assert says in str(change)
    assert (change.verdict, change.in_place) == (means, in_place)
    assert verdict(schema(*old), schema(*new)) is means


def test_a_strict_event_takes_no_field_in_place() -> None:
    """Old readers that refuse unknown fields would refuse the new data."""
    (change,) = changes(
        schema({}, forbid_unknown_fields=True), schema({"it": int}, {"it": 0}, forbid_unknown_fields=True)
    )
    assert (change.verdict, change.in_place) == (BACKWARD, False)
    (change,) = changes(schema({}), schema({}, forbid_unknown_fields=True))
    assert str(change) == "unknown fields are refused now" and not change.in_place


def test_documentation_is_no_change() -> None:
    """Texts for people, the class's name and the order of fields may change at any time."""

    class Old(Event):
        """Some."""

        a: int
        """First."""
        b: Point

    class New(Event):
        """Other."""

        b: Annotated[Point, Meta(description="A place.")]
        a: int
        """Premier."""

    old, new = (document(Registry().register(cls, "studio.fact", 1, None)) for cls in (Old, New))
    assert old != new
    assert changes(old, new) == []
