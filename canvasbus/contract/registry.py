"""(type, version) → the Struct that says what is inside, and the rules a declaration must keep.

Every rule is checked at import, because an event that cannot be encoded, or that two readers may change under each
other, should stop a deployment and not a worker at night.
"""

import enum
import math
import operator
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from datetime import datetime
from itertools import repeat
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from canvasbus.contract.event import Event
from canvasbus.contract.raw import JsonDecoder
from canvasbus.contract.upcasting import Upcaster, Upcasters
from canvasbus.errors import ContractError

E = TypeVar("E", bound=type[Event])

_TYPE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
MAX_TYPE_NAME = 128
"""Characters in an event type's name; it becomes part of a Redis key and of a file name."""

ALLOW_NON_FINITE = Meta(extra={"allow_non_finite": True})
"""`Annotated[float, ALLOW_NON_FINITE]`: NaN and infinity are meant here. Elsewhere publishing refuses them, since
msgpack keeps NaN and JSON turns it into null, so that one event would mean two things."""

_KEY_TYPES = (str, int, enum.Enum)


class EventType:
    """One version of one event type: its name, its Struct and how to decode it."""

    __slots__ = ("cls", "decoder", "has_floats", "json_decoder", "key", "name", "one_float", "upcasters", "version")

    def __init__(self, name: str, version: int, key: str | None, cls: type[Event], upcasters: Upcasters) -> None:
        self.name = name
        self.version = version
        self.upcasters = upcasters
        """How older versions become this one."""
        self.key = key
        """The field that orders and partitions; None: the event has no key."""
        self.cls = cls
        self.decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(cls)
        types = list(walk_types(msgspec.inspect.type_info(cls)))
        has_raw = any(isinstance(t, msgspec.inspect.RawType) for t in types)
        self.json_decoder: msgspec.json.Decoder[Event] | JsonDecoder
        self.json_decoder = JsonDecoder(cls) if has_raw else msgspec.json.Decoder(cls)
        self.has_floats = any(isinstance(t, msgspec.inspect.FloatType) for t in types)
        self.one_float = _only_float(cls, types)
        """Gets the only float there is, where that is a plain field; such events are checked for NaN the short way."""

    def __repr__(self) -> str:
        return f"<EventType {self.name} v{self.version} {self.cls.__module__}.{self.cls.__qualname__}>"


def schema_id(name: str, version: int) -> str:
    """What names the JSON Schema of one version: its `$id`, and `dataschema` of a CloudEvents object."""
    return f"urn:canvasbus:{name}/v{version}"


class Registry:
    """All event types of this process."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[int, EventType]] = {}
        self._newest: dict[str, EventType] = {}
        self._by_class: dict[type[Event], EventType] = {}

    def register(
        self,
        cls: type[Event],
        name: str,
        version: int,
        key: str | None,
        *,
        since: int = 1,
        upcast: Mapping[int, Upcaster] = MappingProxyType({}),
    ) -> EventType:
        """Add `cls`. Raises ContractError for a bad name, a taken (name, version), a field that cannot work, or a
        version that older ones do not lead to."""
        _check_name(name)
        if not (isinstance(cls, type) and issubclass(cls, Event)):
            raise ContractError(f"{name}: {getattr(cls, '__qualname__', cls)} is not a subclass of canvasbus.Event")
        if type(version) is not int or version < 1:
            raise ContractError(f"{name}: versions are whole numbers from 1 on, not {version!r}")
        if "__event_type__" in cls.__dict__:
            raise ContractError(f"{cls.__qualname__} is already declared as {cls.__event_type__!r}")  # type: ignore[attr-defined]
        known = self._by_name.get(name, {}).get(version)
        if known and not _same_notebook_cell(known.cls, cls):
            raise ContractError(
                f"{name} v{version} is declared twice: by {_where(known.cls)} and by {_where(cls)}. "
                "Give the second another name, or raise its version."
            )
        _check_fields(cls, name)
        if key is not None:
            _check_key(cls, name, key)
        entry = EventType(name, version, key, cls, Upcasters(name, version, since, upcast))
        versions = {**self._by_name.get(name, {}), version: entry}
        newest, oldest = versions[max(versions)], versions[min(versions)]
        if oldest.version < newest.upcasters.since:
            raise ContractError(
                f"{_where(oldest.cls)} is v{oldest.version} of {name}, which {_where(newest.cls)} does not read: it says "
                f"since={newest.upcasters.since}. Remove one of the two"
            )
        self._by_name[name] = versions
        self._newest[name] = newest
        self._by_class[cls] = entry
        return entry

    def of(self, cls: type[Event]) -> EventType:
        """The EventType of an event class. Raises ContractError when it was never declared."""
        try:
            return self._by_class[cls]
        except KeyError:
            raise ContractError(f'{_where(cls)} has no name on the bus: decorate it with @event("some.type")') from None

    def get(self, name: str, version: int) -> EventType | None:
        """The EventType for (name, version), or None when this process does not know it."""
        versions = self._by_name.get(name)
        return versions.get(version) if versions else None

    def latest(self, name: str) -> EventType | None:
        """The newest version of `name`, or None when this process does not know the type."""
        return self._newest.get(name)

    def names(self) -> list[str]:
        """All type names, sorted."""
        return sorted(self._by_name)

    def __iter__(self) -> Iterator[EventType]:
        for name in self.names():
            yield from (self._by_name[name][version] for version in sorted(self._by_name[name]))

    def __repr__(self) -> str:
        return f"<Registry {len(self._by_class)} event types>"


registry = Registry()
"""The process's registry. A type is known once the module that declares it has been imported."""


def event(
    name: str,
    /,
    *,
    version: int = 1,
    key: str | None = None,
    since: int = 1,
    upcast: Mapping[int, Upcaster] = MappingProxyType({}),
) -> Callable[[E], E]:
    """Declare an Event subclass under `name`, for example "drift.detected".

    `key` names the field whose value orders and partitions the type's events: a str, an int, a UUID or an enum.
    `upcast` has, for each older version, the function from its fields to those of the next (see
    `canvasbus.contract.upcasting`); versions before `since` are not read.
    Raises ContractError at import for whatever could fail later.
    """

    if not isinstance(name, str):  # `@event` without brackets hands us the class
        raise ContractError(f'@event takes the name of a type, like @event("drift.detected"), not {name!r}')

    def declare(cls: E) -> E:
        entry = registry.register(cls, name, version, key, since=since, upcast=upcast)
        cls.__event_type__ = entry  # type: ignore[attr-defined]
        return cls

    return declare


def _only_float(cls: type[Event], types: list[Any]) -> Callable[[Any], float] | None:
    plain = [f.name for f in msgspec.structs.fields(cls) if _is_plain_float(f.type)]
    total = sum(isinstance(t, msgspec.inspect.FloatType) for t in types)
    return operator.attrgetter(plain[0]) if len(plain) == 1 == total else None


def _is_plain_float(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        base, *metas = typing.get_args(hint)
        return base is float and not any((getattr(m, "extra", None) or {}).get("allow_non_finite") for m in metas)
    return hint is float


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _same_notebook_cell(old: type, new: type) -> bool:
    # Running a notebook cell twice declares the same class twice; that is no conflict.
    return old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__


def _check_name(name: str) -> None:
    if not _TYPE_NAME.fullmatch(name) or len(name) > MAX_TYPE_NAME:
        raise ContractError(
            f"{name!r} is not an event type: use lower-case words joined by dots, like 'drift.detected', "
            f"at most {MAX_TYPE_NAME} characters"
        )


def _check_key(cls: type[Event], name: str, key: str) -> None:
    hints = {field: hint for field, hint in typing.get_type_hints(cls).items() if field in cls.__struct_fields__}
    if key not in hints:
        raise ContractError(f"{name}: key={key!r} is not a field of {_where(cls)}; its fields are {', '.join(hints)}")
    kind = hints[key]
    from uuid import UUID

    if not (isinstance(kind, type) and issubclass(kind, (*_KEY_TYPES, UUID))) or kind is bool:
        raise ContractError(f"{name}: the key {key!r} must be a str, int, UUID or enum, not {kind}")


def _check_fields(cls: type[Event], name: str) -> None:
    config = cls.__struct_config__
    if not config.frozen:
        raise ContractError(f"{name}: events are immutable; do not pass frozen=False")
    if config.array_like:
        raise ContractError(f"{name}: fields travel by name; do not pass array_like=True")
    if config.tag is not None:
        raise ContractError(f"{name}: the envelope names the type; do not pass tag= or tag_field=")
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (TypeError, NameError) as error:
        raise ContractError(f"{name}: msgspec cannot encode {_where(cls)}: {error}") from error
    for field, hint in hints.items():
        if field == "__event_type__":
            continue
        problem = _problem(hint, set())
        if problem:
            raise ContractError(f"{name}: field {field!r} {problem}")
    try:
        info = msgspec.inspect.type_info(cls)
        msgspec.msgpack.Decoder(cls)
        msgspec.json.Decoder(cls)
    except (TypeError, NameError) as error:
        raise ContractError(f"{name}: msgspec cannot encode {_where(cls)}: {error}") from error
    for found in info.fields:  # type: ignore[attr-defined]
        problem = _base_problem(found) or next(filter(None, map(_type_problem, walk_types(found.type))), None)
        if problem:
            raise ContractError(f"{name}: field {found.name!r} {problem}")


_BASE = {"occurred_on": ("DateTimeType", "a canvasbus.AwareDatetime"), "correlation_id": ("UUIDType", "a UUID")}


def _base_problem(field: Any) -> str | None:
    """The two fields that every event has keep their names and types, because the bus itself reads and sets them."""
    if field.name not in _BASE:
        return None
    if field.encode_name != field.name:
        return (
            f"would be {field.encode_name!r} on the wire, where other languages look for {field.name!r}: do not pass "
            "rename=, rename single fields with msgspec.field(name=...)"
        )
    kind, wanted = _BASE[field.name]
    if type(field.type).__name__ != kind:
        return f"is the bus's own: it stays {wanted}, take another name for yours"
    return None


def _type_problem(info: Any) -> str | None:
    """What is wrong with one type inside a field, as msgspec sees it: what its annotation alone does not show."""
    inspect = msgspec.inspect
    if isinstance(info, inspect.AnyType):
        return _ANY
    if isinstance(info, inspect.ListType):
        return "decodes into a list, which can change: declare it as tuple[X, ...]"
    if isinstance(info, inspect.SetType):
        return "decodes into a set, which can change: declare it as frozenset[X]"
    if isinstance(info, inspect.TypedDictType):
        return f"holds a {info.cls.__qualname__}, a dict, which can change: declare it as a frozen Struct"
    if isinstance(info, inspect.DictType | inspect.FrozenDictType):
        if any(isinstance(kind, _NO_KEYS) for kind in walk_types(info.key_type)):
            return "is a map with keys that JSON has no text for: key it by a str, a number, a UUID, a time or an enum"
        if isinstance(info.key_type, inspect.LiteralType) and None in info.key_type.values:
            return "is a map with None among its keys, which JSON has no text for"
    if isinstance(info, inspect.CustomType):
        return f"holds a {getattr(info.cls, '__qualname__', info.cls)}, which msgspec cannot encode"
    return None


_NO_KEYS = (
    *(msgspec.inspect.BoolType, msgspec.inspect.NoneType, msgspec.inspect.TupleType, msgspec.inspect.CollectionType),
    *(msgspec.inspect.StructType, msgspec.inspect.DataclassType, msgspec.inspect.NamedTupleType),
    *(msgspec.inspect.RawType, msgspec.inspect.DictType),
)

_LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length")


def _crashes(options: tuple[Any, ...]) -> bool:
    """msgspec looks for the types of a fixed tuple where the limits of another option lie. (Asked of the hints: msgspec's
    own view of a type makes a decoder first, which may be the end of the process.)"""
    plain, limited = [], False
    for option in options:
        if typing.get_origin(option) is Annotated:
            option, *metas = typing.get_args(option)
            limited |= any(isinstance(m, Meta) and getattr(m, limit) is not None for m in metas for limit in _LIMITS)
        plain.append(option)
    fixed = (typing.get_origin(option) is tuple and Ellipsis not in typing.get_args(option) for option in plain)
    return limited and any(fixed)


_MUTABLE: dict[Any, str] = {
    list: "tuple[X, ...]",
    set: "frozenset[X]",
    dict: "collections.abc.Mapping[K, V]",
    bytearray: "bytes",
    memoryview: "bytes",
    abc.MutableMapping: "collections.abc.Mapping[K, V]",
    abc.MutableSequence: "tuple[X, ...]",
    abc.MutableSet: "frozenset[X]",
    typing.List: "tuple[X, ...]",  # noqa: UP006
    typing.Dict: "collections.abc.Mapping[K, V]",  # noqa: UP006
}


def _problem(hint: Any, seen: set[Any]) -> str | None:
    """What is wrong with a field's type, as the rest of a sentence that begins with the field; None when nothing is."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        base, *metas = typing.get_args(hint)
        if base is datetime:
            return None if any(isinstance(m, Meta) and m.tz for m in metas) else _NAIVE
        return _problem(base, seen)
    if hint is Any or hint is object:
        return _ANY
    if hint is datetime:
        return _NAIVE
    mutable = _MUTABLE.get(origin or hint) if isinstance(origin or hint, abc.Hashable) else None
    if mutable:
        return f"is a {getattr(origin or hint, '__name__', hint)}, which can change: declare it as {mutable}"
    holder = origin or hint  # Box of Box[int]
    if isinstance(holder, type) and (is_dataclass(holder) or issubclass(holder, Struct) or hasattr(holder, "_fields")):
        if hint in seen:
            return None
        seen.add(hint)
        if not _is_frozen(holder):
            return f"holds a {holder.__qualname__}, which can change: declare it with frozen=True"
        for field, inner in typing.get_type_hints(holder, include_extras=True).items():
            problem = _problem(inner, seen)
            if problem:
                return f"holds a {holder.__qualname__} whose field {field!r} {problem}"
    if origin in (typing.Union, types.UnionType) and _crashes(typing.get_args(hint)):
        return (
            "allows either a tuple of fixed length or a value with limits, which msgspec 0.22 decodes into wrong memory, up "
            "to a crash: declare the tuple as tuple[X, ...] or as a Struct, or leave the limits out"
        )
    if origin is not None:
        for inner in typing.get_args(hint):
            if inner is not Ellipsis and not isinstance(inner, str | int | bytes | list):
                problem = _problem(inner, seen)
                if problem:
                    return problem
    return None


def _is_frozen(holder: Any) -> bool:
    if issubclass(holder, Struct):
        return bool(holder.__struct_config__.frozen)
    dataclass_says = getattr(holder, "__dataclass_params__", None)
    return bool(dataclass_says.frozen) if dataclass_says else issubclass(holder, tuple)


_ANY = (
    "is Any, or holds it (a container without item types does): a small value of an unknown shape can decode into "
    "hundreds of megabytes. Give it a type, or msgspec.Raw for msgpack that stays undecoded"
)
_NAIVE = (
    "is a datetime that may have no time zone: declare it as canvasbus.AwareDatetime "
    "(Annotated[datetime, msgspec.Meta(tz=True)])"
)


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


def non_finite_path(value: Any, info: Any, path: str = "$") -> str | None:
    """The path of the first NaN or infinity that its field does not allow, or None. `info` is msgspec's type info."""
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
