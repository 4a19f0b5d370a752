"""Random types for events, and for each the documents that put it to the test.

A shape is drawn from few small constants, and its documents lie on and beside all of them: where one type does not
read another, one of the other's documents shows it.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from msgspec import Meta

from canvasbus import AwareDatetime, Event
from canvasbus.contract.registry import EventType, Registry

_numbers = itertools.count()


@dataclass(frozen=True)
class Shape:
    """A type, and documents of it."""

    hint: Any
    documents: tuple[Any, ...] = field(hash=False)
    kind: str
    """Of two shapes with one kind a union can hold only one."""

    def __repr__(self) -> str:
        return f"{self.kind}:{self.hint}"


def _limited(hint: Any, **limits: Any) -> Any:
    limits = {name: value for name, value in limits.items() if value is not None}
    return Annotated[hint, Meta(**limits)] if limits else hint


def _fits(value: Any, limits: dict[str, Any]) -> bool:
    tests = {
        "ge": lambda limit: value >= limit,
        "gt": lambda limit: value > limit,
        "le": lambda limit: value <= limit,
        "lt": lambda limit: value < limit,
        "multiple_of": lambda limit: value % limit == 0,
        "min_length": lambda limit: len(value) >= limit,
        "max_length": lambda limit: len(value) <= limit,
        "pattern": lambda limit: re.search(limit, value) is not None,
    }
    return all(tests[name](limit) for name, limit in limits.items() if limit is not None)


def _scalar(hint: Any, kind: str, candidates: Any, **limits: Any) -> Shape:
    return Shape(_limited(hint, **limits), tuple(v for v in candidates if _fits(v, limits)), kind)


WHOLE = (*range(-3, 9), 12, 18, 2**40, -(2**40))  # four multiples of 6 among them: a set of four has to be possible
QUARTERS = tuple(n / 4 for n in range(-12, 33))
TEXTS = ("", "a", "b", "c", "ab", "ba", "abc", "cba", "abcd", "é")
BYTES = (b"", b"a", b"ab", b"abc", b"abcd", b"abcde")
OTHERS = (
    Shape(bool, (True, False), "bool"),
    Shape(UUID, (UUID(int=1), UUID(int=2**127)), "text"),
    Shape(AwareDatetime, (datetime(2026, 1, 2, tzinfo=UTC),), "text"),
)
TEXT_LIKE = (
    Shape(date, (date(2026, 1, 2),), "text"),
    Shape(timedelta, (timedelta(days=1, seconds=2),), "text"),
    Shape(Decimal, (Decimal("1.5"), Decimal(7)), "text"),
)

low = st.sampled_from((None, 0, 1))
high = st.sampled_from((None, 4, 5))
least = st.sampled_from((None, 0, 1, 2))
most = st.sampled_from((None, 2, 3))
SIZES = range(5)
"""One more than any limit: what has no upper limit is seen to go beyond another's."""


def whole(**limits: int | None) -> Shape:
    return _scalar(int, "int", WHOLE, **limits)


plain_whole = st.builds(lambda ge, le: whole(ge=ge, le=le), low, high) | st.builds(
    lambda step: whole(multiple_of=step), st.sampled_from((2, 3, 6))
)
reals = st.builds(
    lambda ge, gt, le, lt: _scalar(
        float,
        "float",
        (*QUARTERS, *WHOLE),
        **({"ge": ge} if gt is None else {"gt": gt}),
        **({"le": le} if lt is None else {"lt": lt}),
    ),
    *(low, low, high, high),
)
plain_texts = st.builds(lambda a, b: _scalar(str, "text", TEXTS, min_length=a, max_length=b), least, most)
raw = st.builds(lambda a, b: _scalar(bytes, "text", BYTES, min_length=a, max_length=b), least, most)
words = st.sets(st.sampled_from("abc"), min_size=1).map(
    lambda chosen: Shape(Literal[tuple(sorted(chosen))], tuple(chosen), "text")
)
grades = st.sampled_from(((1,), (2,), (1, 2))).map(lambda chosen: Shape(Literal[chosen], chosen, "int"))

exact_leaves = plain_whole | reals | plain_texts | raw | words | grades | st.sampled_from(OTHERS)
"""Of these the answer must be exact."""

careful_leaves = (
    exact_leaves
    | st.sampled_from(TEXT_LIKE)
    | st.builds(
        lambda a, p: _scalar(str, "text", TEXTS, min_length=a, pattern=p), least, st.sampled_from(("^a", "b$", "^[ab]"))
    )
    | st.builds(
        lambda ge, le, step: whole(ge=ge, le=le, multiple_of=step),
        *(low, st.sampled_from((2, 3)), st.sampled_from((None, 2, 4))),
    )
    | st.builds(lambda step: _scalar(float, "float", QUARTERS, multiple_of=step), st.sampled_from((0.5, 1.0, 0.25)))
).filter(lambda shape: bool(shape.documents))
"""Of these it may be no where yes is true."""


def array(item: Shape, a: int | None, b: int | None) -> Shape:
    lengths = [n for n in SIZES if _fits([None] * n, {"min_length": a, "max_length": b})]
    documents = ([value] * n for n in lengths for value in (item.documents if n else item.documents[:1]))
    return Shape(_limited(tuple[item.hint, ...], min_length=a, max_length=b), tuple(documents), "array")


def unique(item: Shape, a: int | None, b: int | None) -> Shape:
    values = list(dict.fromkeys(item.documents))
    runs = (values[at : at + n] for n in SIZES for at in range(len(values) - n + 1))
    documents = (run for run in runs if _fits(run, {"min_length": a, "max_length": b}))
    return Shape(_limited(frozenset[item.hint], min_length=a, max_length=b), tuple(documents), "array")


def fixed(items: list[Shape]) -> Shape:
    documents = [*_one_at_a_time(items), *([value] * len(items) for value in _common(items))]
    return Shape(tuple[tuple(item.hint for item in items)], tuple(documents), "array")


def _all_whole(items: list[Shape]) -> bool:
    return all(item.kind == "int" for item in items)


def _common(items: list[Shape]) -> list[int]:
    """The whole numbers that every element may be: of such a tuple a set has only one."""
    first, *others = (item.documents for item in items)
    return [value for value in first if all(value in some for some in others)] if _all_whole(items) else []


def _no_set_in_disguise(items: list[Shape]) -> bool:
    """Whole numbers that are never equal are always a set, of which the verdict does not know."""
    return not _all_whole(items) or bool(_common(items))


def _one_at_a_time(items: list[Shape]) -> Iterator[list[Any]]:
    first = [item.documents[0] for item in items]
    yield first
    for at, item in enumerate(items):
        for value in item.documents[1:]:
            yield [*first[:at], value, *first[at + 1 :]]


def mapping(value: Shape, a: int | None, b: int | None) -> Shape:
    sizes = [n for n in SIZES if _fits([None] * n, {"min_length": a, "max_length": b})]
    documents = (dict.fromkeys("wxyz"[:n], v) for n in sizes for v in (value.documents if n else value.documents[:1]))
    return Shape(_limited(Mapping[str, value.hint], min_length=a, max_length=b), tuple(documents), "map")


@dataclass(frozen=True)
class Field:
    """One field of an object."""

    shape: Shape
    required: bool


def fields(leaf: st.SearchStrategy[Shape]) -> st.SearchStrategy[dict[str, Field]]:
    return st.dictionaries(st.sampled_from("pqr"), st.builds(Field, leaf, st.booleans()), max_size=3)


def _definition(members: dict[str, Field]) -> list[Any]:
    ordered = sorted(members.items(), key=lambda pair: not pair[1].required)
    return [
        (name, f.shape.hint) if f.required else (name, f.shape.hint, msgspec.field(default=None)) for name, f in ordered
    ]


def _objects(members: dict[str, Field]) -> Iterator[dict[str, Any]]:
    names = list(members)
    for values in _one_at_a_time([members[name].shape for name in names]):
        yield dict(zip(names, values, strict=True))
    whole = {name: f.shape.documents[0] for name, f in members.items()}
    optional = [name for name in names if not members[name].required]
    for left_out in (*([name] for name in optional), optional):
        yield {name: value for name, value in whole.items() if name not in left_out}


def inner(members: dict[str, Field], strict: bool) -> Shape:
    cls = msgspec.defstruct(
        f"Inner{next(_numbers)}", _definition(members), frozen=True, forbid_unknown_fields=strict, kw_only=True
    )
    return Shape(cls, tuple(_objects(members)), "map")


def tagged(choices: dict[str, dict[str, Field]]) -> Shape:
    made, documents = [], []
    for tag, members in choices.items():
        made.append(
            msgspec.defstruct(f"Tagged{next(_numbers)}", _definition(members), frozen=True, tag=tag, kw_only=True)
        )
        documents += [{"type": tag, **document} for document in _objects(members)]
    return Shape(Union[tuple(made)], tuple(documents), "map")  # noqa: UP007


def union(shapes: list[Shape]) -> Shape:
    none = Shape(None, (None,), "none")
    options = list({shape.kind: shape for shape in (*shapes, none)}.values())
    if any(get_origin(shape.hint) is tuple and Ellipsis not in get_args(shape.hint) for shape in options):
        options = [
            shape for shape in options if get_origin(shape.hint) is not Annotated
        ]  # else refused: msgspec crashes
    whole = any(shape.kind == "int" for shape in options)  # then msgspec takes 3 for one of those, and 3.0 for a float
    documents = tuple(
        document
        for shape in options
        for document in shape.documents
        if not (whole and shape.kind == "float" and isinstance(document, int))
    )
    return Shape(Union[tuple(shape.hint for shape in options)], documents, "union")  # noqa: UP007


def shapes(leaf: st.SearchStrategy[Shape], *, objects: bool) -> st.SearchStrategy[Shape]:
    """`objects`: nested objects are Structs; else they are maps."""

    def wider(some: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
        flat = some.filter(lambda shape: shape.kind != "union")
        return st.one_of(
            st.builds(array, some, least, most),
            st.builds(unique, plain_whole, least, most),
            st.lists(some, min_size=1, max_size=2).filter(_no_set_in_disguise).map(fixed),
            *(
                (
                    st.builds(inner, fields(some), st.booleans()),
                    st.dictionaries(st.sampled_from("uvw"), fields(some), min_size=2, max_size=3).map(tagged),
                )
                if objects
                else (st.builds(mapping, some, least, most),)
            ),
            st.lists(flat, min_size=1, max_size=3).map(union),
        )

    return st.recursive(leaf, wider, max_leaves=3)


@dataclass(frozen=True)
class Fact:
    """An event type, and documents of it."""

    declared: EventType
    documents: tuple[dict[str, Any], ...]

    def __repr__(self) -> str:
        hints = {f.name: (f.type, f.required) for f in msgspec.structs.fields(self.declared.cls)[2:]}
        return f"<Fact {hints} strict={self.declared.cls.__struct_config__.forbid_unknown_fields}>"


_kept: list[type] = []
"""Types are kept, since msgspec 0.22 seems to damage memory when types that it knows are garbage-collected: of random pairs
in a loop, two runs of two ended in a crash of the interpreter, and none did in 11,250 pairs with the collector off nor in
7,650 with the pairs kept. Types of a program stay as long as it runs."""


def fact(members: dict[str, Field], strict: bool) -> Fact:
    """An event with these fields."""
    names: dict[str, Any] = {name: None for name, f in members.items() if not f.required}
    names |= {"__module__": __name__, "__annotations__": {name: f.shape.hint for name, f in members.items()}}
    cls = type(Event)("Fact", (Event,), names, forbid_unknown_fields=strict)
    _kept.append(cls)
    return Fact(Registry().register(cls, "random.fact", 1, None), tuple(_objects(members)))


def reads_all(reader: Fact, writer: Fact) -> bool:
    """What msgspec says: every document of the writer, in msgpack and in JSON."""
    pack = msgspec.msgpack.Encoder(uuid_format="bytes").encode
    for document in writer.documents:
        try:
            reader.declared.decoder.decode(pack(document))
            reader.declared.json_decoder.decode(msgspec.json.encode(document))
        except msgspec.DecodeError:
            return False
    return True
