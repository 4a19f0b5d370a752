"""Schemas of events that are declared on the spot, for tests that compare two of them."""

from typing import Any

from msgspec import Struct

from canvasbus import Event
from canvasbus.contract.registry import Registry
from canvasbus.contract.schema import document


class Tree(Struct, frozen=True):
    children: tuple["Tree", ...] = ()
    size: int = 0


class LargeTree(Struct, frozen=True):
    children: tuple["LargeTree", ...] = ()
    size: float = 0


def schema(hints: dict[str, Any], defaults: dict[str, Any] | None = None, key: str | None = None, **config: Any) -> Any:
    """The schema of an event with these fields."""
    names = {"__module__": __name__, "__annotations__": hints, **(defaults or {})}
    return document(Registry().register(type(Event)("Made", (Event,), names, **config), "studio.fact", 1, key))
