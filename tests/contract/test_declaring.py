"""What a declaration of an event must keep, checked where it is made: at import."""

import dataclasses
import enum
from collections.abc import Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from canvasbus import AwareDatetime, Event, event
from canvasbus.contract.registry import Registry, registry
from canvasbus.contract.rules import MAX_TYPE_NAME
from canvasbus.errors import ContractError

T = TypeVar("T")


class Frozen(msgspec.Struct, frozen=True):
    size: int


class Thawed(msgspec.Struct):
    size: int


class HoldsThawed(msgspec.Struct, frozen=True):
    inner: Thawed


class Box(msgspec.Struct, Generic[T], frozen=True):
    inside: T


class OpenBox(msgspec.Struct, Generic[T]):
    inside: T


class Pair(NamedTuple):
    left: int
    right: str


class ListPair(NamedTuple):
    left: list[int]


class Table(TypedDict):
    rows: int


@dataclasses.dataclass(frozen=True)
class FrozenData:
    size: int


@dataclasses.dataclass
class ThawedData:
    size: int


class Tree(msgspec.Struct, frozen=True):
    children: tuple["Tree", ...] = ()


class Colour(enum.Enum):
    RED = "red"


class Foreign:
    pass


def made(hint: Any, **config: Any) -> type[Event]:
    """An event class with one field `it` of this type."""
    return type(Event)("Made", (Event,), {"__module__": __name__, "__annotations__": {"it": hint}}, **config)


@pytest.mark.parametrize(
    "hint",
    [
        *(str, int, float, bool, bytes, UUID, date, AwareDatetime, Colour, msgspec.Raw, str | None),
        *(tuple[int, ...], tuple[int, str], frozenset[str], Mapping[str, float], Mapping[str, tuple[int, ...]]),
        *(
            Frozen,
            Frozen | None,
            tuple[Frozen, ...],
            Box[int],
            Pair,
            FrozenData,
            Tree,
            Annotated[int, msgspec.Meta(ge=0)],
        ),
    ],
    ids=str,
)
def test_immutable_and_encodable_fields_may_be_declared(hint: Any) -> None:
    """Everything that cannot change and that msgspec knows is a field."""
    known = Registry()
    entry = known.register(made(hint), "studio.fact", 1, None)
    assert known.get("studio.fact", 1) is entry is known.latest("studio.fact")


@pytest.mark.parametrize(
    ("hint", "advice"),
    [
        (list[int], "tuple"),
        (dict[str, int], "Mapping"),
        (set[int], "frozenset"),
        (bytearray, "bytes"),
        (MutableMapping[str, int], "Mapping"),
        (Sequence[int], "tuple"),
        (AbstractSet[int], "frozenset"),
        (list[int] | None, "tuple"),
        (tuple[list[int], ...], "tuple"),
        (Mapping[str, list[int]], "tuple"),
        (Thawed, "frozen=True"),
        (Thawed | None, "frozen=True"),
        (tuple[Thawed, ...], "frozen=True"),
        (HoldsThawed, "frozen=True"),
        (ThawedData, "frozen=True"),
        (Box[list[int]], "tuple"),
        (OpenBox[int], "frozen=True"),
        (ListPair, "tuple"),
        (Table, "frozen Struct"),
        *((Mapping[key, int], "JSON has no text for") for key in (bool, int | None, tuple[int, ...], Frozen, Pair)),
        (Mapping[Literal["a", None], int], "JSON has no text for"),  # noqa: PYI061
        (Any, "Give it a type"),
        (object, "Give it a type"),
        (tuple, "Give it a type"),
        (Mapping, "Give it a type"),
        (frozenset, "Give it a type"),
        (Box[Any], "Give it a type"),
        (datetime, "AwareDatetime"),
        (datetime | None, "AwareDatetime"),
        (Annotated[datetime, msgspec.Meta(tz=False)], "AwareDatetime"),
        (tuple[datetime, ...], "AwareDatetime"),
        (complex, "cannot encode"),
        (Foreign, "cannot encode"),
        ("Nowhere", "cannot encode"),
        (int | Frozen | Tree, "cannot encode"),
    ],
    ids=str,
)
def test_fields_that_can_change_or_cannot_travel_are_refused_with_advice(hint: Any, advice: str) -> None:
    """A list, a dict, a mutable struct at any depth, Any, a naive datetime, a strange class: the error says what to do."""
    known = Registry()
    with pytest.raises(ContractError, match=advice) as caught:
        known.register(made(hint), "studio.fact", 1, None)
    assert "studio.fact" in str(caught.value)
    assert list(known) == [] and known.names() == [], "a refused declaration leaves nothing behind"


@pytest.mark.parametrize("config", [{"frozen": False}, {"array_like": True}, {"tag": True}, {"tag_field": "kind"}])
def test_options_that_would_break_the_wire_are_refused(config: dict[str, Any]) -> None:
    """An event is immutable, and its fields travel by name without a tag beside them."""
    with pytest.raises(ContractError, match=next(iter(config))):
        Registry().register(made(int, **config), "studio.fact", 1, None)


@pytest.mark.parametrize(
    ("field", "hint"), [("occurred_on", str), ("occurred_on", AwareDatetime | None), ("correlation_id", str)]
)
def test_the_two_fields_of_every_event_keep_their_types(field: str, hint: Any) -> None:
    """occurred_on and correlation_id are read and set by the bus: nobody makes something else of them."""
    cls = type(Event)("Made", (Event,), {"__module__": __name__, "__annotations__": {field: hint}})
    with pytest.raises(ContractError, match=f"'{field}' is the bus's own"):
        Registry().register(cls, "studio.fact", 1, None)


def test_the_two_fields_of_every_event_keep_their_names() -> None:
    """A class-wide rename= that would catch occurred_on is refused; fields of one's own may be renamed."""
    names = {"__module__": __name__, "__annotations__": {"occurred_on": AwareDatetime}}
    with pytest.raises(ContractError, match="occurredOn"):
        Registry().register(type(Event)("Made", (Event,), names, rename="camel"), "studio.fact", 1, None)
    Registry().register(made(int, rename="upper"), "studio.fact", 1, None)


@pytest.mark.parametrize("name", ["drift", "drift.detected", "a.b_c.d2", "x" * MAX_TYPE_NAME, "a.0"])
def test_type_names_are_lower_case_words_joined_by_dots(name: str) -> None:
    """These are names."""
    assert Registry().register(made(int), name, 1, None).name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "a.", ".a", "a..b", "Drift.detected", "drift detected", "drift-detected", "1drift", "drift.*"),
        *("drift{x}", "drift\n", "dríft", "_drift", "x" * (MAX_TYPE_NAME + 1), "a:b"),
    ],
)
def test_other_type_names_are_refused(name: str) -> None:
    """Blanks, capitals, globs, braces, line ends and overlong names would break keys, patterns and files."""
    with pytest.raises(ContractError, match="is not an event type"):
        Registry().register(made(int), name, 1, None)


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.0, None])
def test_versions_are_whole_numbers_from_one(version: Any) -> None:
    """Anything else is a ContractError, never a TypeError from inside."""
    with pytest.raises(ContractError, match="version"):
        Registry().register(made(int), "studio.fact", version, None)


def test_event_without_a_name_is_an_error_at_once() -> None:
    """`@event` without brackets would replace the class by a function; it says so instead."""
    with pytest.raises(ContractError, match="@event takes the name"):
        event(made(int))  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", [Frozen, Foreign, int, 3])
def test_only_events_can_be_declared(thing: Any) -> None:
    """A plain class or Struct lacks what every event carries."""
    with pytest.raises(ContractError, match=r"not a subclass of canvasbus\.Event"):
        Registry().register(thing, "studio.fact", 1, None)


def test_a_taken_name_and_version_is_refused_and_names_both_places() -> None:
    """Two classes under one (name, version) would make one event mean two things."""
    known = Registry()
    first = known.register(made(int), "studio.fact", 1, None)
    with pytest.raises(ContractError, match=r"declared twice: by .*Made and by .*Made.*raise its version"):
        known.register(made(str), "studio.fact", 1, None)
    assert known.get("studio.fact", 1) is first
    second = known.register(made(str), "studio.fact", 2, None, upcast={1: dict})
    assert (known.latest("studio.fact"), known.get("studio.fact", 1)) == (second, first)


def test_a_notebook_cell_may_run_twice() -> None:
    """The same class of __main__ declared again replaces the first: that is what running a cell twice does."""
    known = Registry()
    for hint in (int, str):
        cls = made(hint)
        cls.__module__ = "__main__"
        entry = known.register(cls, "studio.fact", 1, None)
    assert known.latest("studio.fact") is entry


def test_one_class_has_one_name() -> None:
    """Declaring a class a second time under another name is refused."""

    class OnlyOnce(Event):
        it: int

    event("contract.only_once")(OnlyOnce)
    with pytest.raises(ContractError, match="already declared"):
        event("contract.another_name")(OnlyOnce)
    assert registry.get("contract.another_name", 1) is None


@pytest.mark.parametrize("hint", [str, int, UUID, Colour, Annotated[str, msgspec.Meta(min_length=1)]])
def test_a_key_is_text_a_number_a_uuid_or_an_enum(hint: Any) -> None:
    """What orders and partitions must have one spelling."""
    assert Registry().register(made(hint), "studio.fact", 1, "it").key == "it"


@pytest.mark.parametrize(
    "limited",
    [
        Annotated[int, msgspec.Meta(ge=0)],
        Annotated[float, msgspec.Meta(lt=1)],
        Annotated[int, msgspec.Meta(multiple_of=2)],
        Annotated[str, msgspec.Meta(max_length=3)],
        Annotated[bytes, msgspec.Meta(min_length=3)],
        Annotated[Mapping[str, int], msgspec.Meta(max_length=3)],
    ],
)
def test_a_union_that_crashes_msgspec_is_refused(limited: Any) -> None:
    """A fixed tuple beside a value with limits ends the process that decodes it (msgspec 0.22.0), also where it is nested;
    each of the ways out is allowed."""
    for hint in (tuple[str] | limited, tuple[str] | limited | None, tuple[tuple[str, int] | limited, ...]):
        with pytest.raises(ContractError, match=r"'it' allows either a tuple of fixed length .* tuple\[X, \.\.\.\]"):
            Registry().register(made(hint), "studio.fact", 1, None)
    for hint in (
        tuple[str, ...] | limited,
        Frozen | Annotated[int, msgspec.Meta(ge=0)],
        tuple[str] | int,
        limited | None,
    ):
        assert Registry().register(made(hint), "studio.fact", 1, None)


@pytest.mark.parametrize("hint", [float, bool, bytes, str | None, tuple[str, ...], AwareDatetime, Frozen])
def test_other_keys_are_refused(hint: Any) -> None:
    """A key that may be missing, rounds, or is a collection orders nothing."""
    with pytest.raises(ContractError, match="the key 'it' must be"):
        Registry().register(made(hint), "studio.fact", 1, "it")


@pytest.mark.parametrize("key", ["model", "__event_type__", "", "__struct_fields__"])
def test_a_key_is_a_field(key: str) -> None:
    """A misspelt key lists the fields that there are."""
    with pytest.raises(ContractError, match=r"is not a field of .*its fields are .*\bit\b"):
        Registry().register(made(int), "studio.fact", 1, key)


def test_a_subclass_is_not_its_parent() -> None:
    """A subclass of a declared event needs a name of its own, and then has fields and key of its own."""

    @event("contract.parent", key="name")
    class Parent(Event):
        name: str

    class Child(Parent):
        more: int = 0

    with pytest.raises(ContractError, match="Child has no name on the bus"):
        registry.of(Child)
    declared = event("contract.child", key="name")(Child)
    assert registry.of(declared).name == "contract.child"
    assert registry.of(Parent).name == "contract.parent"
    assert declared(name="x", more=2).more == 2


def test_the_registry_lists_what_it_knows() -> None:
    """Sorted by name, every version; repr counts."""
    known = Registry()
    for name, version in (("b.b", 1), ("a.a", 2), ("a.a", 1)):
        known.register(made(int), name, version, None, upcast=dict.fromkeys(range(1, version), dict))
    assert known.names() == ["a.a", "b.b"]
    assert [(entry.name, entry.version) for entry in known] == [("a.a", 1), ("a.a", 2), ("b.b", 1)]
    assert known.latest("c.c") is None and known.get("a.a", 3) is None
    assert repr(known) == "<Registry 3 event types>"
