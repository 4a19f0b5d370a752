"""Verdicts about two versions, compared with what msgspec decodes."""

from collections.abc import Mapping
from functools import reduce
from typing import Annotated, Any, Literal

import msgspec
import pytest
from contract import shapes
from contract.shapes import Fact
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from canvasbus import Event
from canvasbus.contract.compatibility import Change, Verdict, changes, reads, verdict
from canvasbus.contract.registry import Registry
from canvasbus.contract.schema import document


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


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pairs(shapes.exact_leaves, objects=True))
def test_the_verdict_on_nested_objects_is_exact(pair: tuple[Fact, Fact]) -> None:
    """It says that one reads the other where msgspec decodes all documents, and only there."""
    agrees(*pair, exact=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pairs(shapes.exact_leaves, objects=False))
def test_the_verdict_on_maps_is_exact(pair: tuple[Fact, Fact]) -> None:
    """The same for maps."""
    agrees(*pair, exact=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.tuples(*(facts(objects=objects) for objects in (True, False))))
def test_objects_and_maps_are_not_mistaken_for_each_other(pair: tuple[Fact, Fact]) -> None:
    """Where a Struct becomes a map, or a map a Struct, a yes is never wrong."""
    agrees(*pair, exact=False)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pairs(shapes.exact_leaves, objects=True))
def test_the_same_contract_has_no_changes(pair: tuple[Fact, Fact]) -> None:
    """Declared twice it is the same, whatever it is."""
    for one in pair:
        assert changes(document(one.declared), document(one.declared)) == []


# --- what is said -----------------------------------------------------------------------------------------------------


class Point(Struct, frozen=True):
    x: int
    label: str = ""


class Point3(Struct, frozen=True):
    x: int
    label: str = ""
    z: int = 0


class Tree(Struct, frozen=True):
    children: tuple["Tree", ...] = ()
    size: int = 0


class LargeTree(Struct, frozen=True):
    children: tuple["LargeTree", ...] = ()
    size: float = 0


class Circle(Struct, frozen=True, tag=True):
    radius: float


class Square(Struct, frozen=True, tag=True):
    side: float


class Disc(Struct, frozen=True, tag="Circle"):
    radius: float
    hole: float = 0.0


def schema(hints: dict[str, Any], defaults: dict[str, Any] | None = None, key: str | None = None, **config: Any) -> Any:
    """The schema of an event with these fields."""
    names = {"__module__": __name__, "__annotations__": hints, **(defaults or {})}
    return document(Registry().register(type(Event)("Made", (Event,), names, **config), "studio.fact", 1, key))


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


def test_what_grows_in_itself_is_compared_to_the_end() -> None:
    """A difference deep inside of a type that contains itself is found, and the question ends."""
    old, new = schema({"it": Tree}), schema({"it": LargeTree})
    assert reads(new, old) and not reads(old, new)


def test_patterns_are_compared_as_text() -> None:
    """The same pattern is the same; another one is taken to mean something else, which is not always so."""
    lower, same, other = (
        schema({"it": Annotated[str, Meta(pattern=pattern)]}) for pattern in ("^[a-z]$", "^[a-z]$", "^[a-zA-Z]$")
    )
    assert verdict(lower, same) is FULL
    assert verdict(lower, other) is BREAKING  # careful: old data would be read
    assert verdict(lower, schema({"it": str})) is BACKWARD
    assert msgspec.json.decode(b'"q"', type=Annotated[str, Meta(pattern="^[a-zA-Z]$")]) == "q"
