"""Events and workers with all that an AsyncAPI document has to tell."""

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

import msgspec

from canvasbus import Event, event
from canvasbus.worker import PER_INSTANCE, Context, Later, Worker

T = TypeVar("T")


class Leaf(msgspec.Struct, frozen=True, tag="leaf"):
    size: float = 0.5


class Branch(msgspec.Struct, frozen=True, tag="branch"):
    children: "tuple[Branch | Leaf, ...]" = ()


class Box(msgspec.Struct, Generic[T], frozen=True):
    inside: T


class Point(NamedTuple):
    x: float
    y: float = 0.0


@event("async.grown", key="name")
class Grown(Event):
    """Something grew.

    With all that a schema can have in it.
    """

    name: str
    """What grew."""
    root: Branch | Leaf = Leaf()
    box: Box[int] | None = None
    point: Point = Point(0.0)
    pair: tuple[int, str] = (0, "")
    table: Mapping[str, tuple[float, ...]] = {}
    state: Literal["new", "old"] = "new"
    properties: Annotated[str, msgspec.Meta(max_length=30)] = ""
    discriminator: str = "prefixItems"


@event("async.felled", version=3, since=2, upcast={2: lambda old: old})
class Felled(Event):
    """It was felled."""

    name: str = ""


@event("async.sawn")
class Sawn(Event):
    pass


forester = Worker("forester")


@forester.on(Grown, start=datetime(2026, 1, 1, tzinfo=UTC))
async def fell(event: Grown, ctx: Context) -> list[Felled] | Later | None:
    """Fell what has grown.

    Not everything."""


@forester.on("async.s*")
def look(event: Event) -> None:
    pass


board = Worker("board", group=PER_INSTANCE)
board.on_batch(Felled)(functools.partial(lambda events, more: None, more=1))
