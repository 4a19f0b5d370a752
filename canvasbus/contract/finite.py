"""NaN and infinity: where they are allowed, and where in an event one is that is not."""

import math
import operator
import typing
from collections import abc
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from itertools import repeat
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from canvasbus.contract.event import Event

ALLOW_NON_FINITE = Meta(extra={"allow_non_finite": True})
"""`Annotated[float, ALLOW_NON_FINITE]`: NaN and infinity are meant here. Elsewhere publishing refuses them, since
msgpack keeps NaN and JSON turns it into null, so that one event would mean two things."""


def only_float(cls: type[Event], types: list[Any]) -> Callable[[Any], float] | None:
    """Gets the only float among these types, where that is a plain field of the class; None: there is none, or more."""
    plain = [f.name for f in msgspec.structs.fields(cls) if _is_plain_float(f.type)]
    total = sum(isinstance(t, msgspec.inspect.FloatType) for t in types)
    return operator.attrgetter(plain[0]) if len(plain) == 1 == total else None


def _is_plain_float(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        base, *metas = typing.get_args(hint)
        return base is float and not any((getattr(m, "extra", None) or {}).get("allow_non_finite") for m in metas)
    return hint is float


def plain_number(value: Any) -> Any:
    """The number that a numpy, torch or jax scalar is (`scores.mean()` is one, and nobody means anything else by it); any
    other value as it is."""
    if type(value) is not float and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def non_finite_path(value: Any, info: Any, path: str = "$") -> str | None:
    """The path of the first NaN or infinity that its field does not allow, or None. `info` is msgspec's type info."""
    value = plain_number(value)
    options = [(kind, allowed) for kind, allowed in _options(info) if _fits(value, kind)]
    if any(allowed for _, allowed in options):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    for step, item, inner in _inside(value, options[0][0] if options else None):
        found = non_finite_path(item, inner, path + step)
        if found:
            return found
    return None


def _options(info: Any, allowed: bool = False) -> Iterator[tuple[Any, bool]]:
    """Every type that a value of this field may have, and whether NaN is allowed in it."""
    if isinstance(info, msgspec.inspect.Metadata):
        yield from _options(info.type, allowed or bool((info.extra or {}).get("allow_non_finite")))
    elif isinstance(info, msgspec.inspect.UnionType):
        for option in info.types:
            yield from _options(option, allowed)
    elif info is not None:
        yield info, allowed


def _fits(value: Any, kind: Any) -> bool:
    inspect = msgspec.inspect
    if isinstance(kind, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
        return isinstance(value, typing.get_origin(kind.cls) or kind.cls)
    if isinstance(value, float):
        return isinstance(kind, inspect.FloatType)
    if isinstance(value, abc.Mapping):
        return isinstance(kind, inspect.DictType)
    return isinstance(kind, inspect.CollectionType | inspect.TupleType)


def _inside(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path step, item, its type info) of everything that `value` holds; its type info is None where that is unknown."""
    if isinstance(value, Struct) or is_dataclass(value) or hasattr(value, "_fields"):
        kinds = {field.name: field.type for field in getattr(kind, "fields", ())}
        names = getattr(value, "__struct_fields__", None) or getattr(value, "_fields", None) or kinds
        for name in names:
            yield f".{name}", getattr(value, name), kinds.get(name)
    elif isinstance(value, abc.Mapping):
        for key, item in value.items():
            yield f"[key {key!r}]", key, getattr(kind, "key_type", None)
            yield f"[{key!r}]", item, getattr(kind, "value_type", None)
    elif isinstance(value, tuple | list | frozenset | set):
        each = getattr(kind, "item_types", None) or repeat(getattr(kind, "item_type", None))
        for index, (item, inner) in enumerate(zip(value, each, strict=False)):
            yield f"[{index}]", item, inner
