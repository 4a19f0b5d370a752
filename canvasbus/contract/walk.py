"""Every type that an event is made of."""

from collections.abc import Iterator
from typing import Any

import msgspec


def walk_types(info: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """`info` and every type inside of it, as msgspec sees them."""
    seen = set() if seen is None else seen
    if id(info) in seen:
        return
    seen.add(id(info))
    yield info
    children: list[Any] = []
    for slot in ("type", "item_type", "key_type", "value_type"):
        child = getattr(info, slot, None)
        if isinstance(child, msgspec.inspect.Type):
            children.append(child)
    for slot in ("types", "item_types"):
        children.extend(getattr(info, slot, ()) or ())
    children.extend(field.type for field in getattr(info, "fields", ()) or ())
    for child in children:
        yield from walk_types(child, seen)
