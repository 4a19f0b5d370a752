"""(type, version) → the Struct that says what is inside. What a declaration must keep is in `canvasbus.contract.rules`."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec

from canvasbus.contract.event import Event
from canvasbus.contract.finite import only_float
from canvasbus.contract.raw import JsonDecoder
from canvasbus.contract.rules import check_fields, check_key, check_name, qualified
from canvasbus.contract.upcasting import Upcaster, Upcasters
from canvasbus.contract.walk import walk_types
from canvasbus.errors import ContractError

E = TypeVar("E", bound=type[Event])


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
        self.one_float = only_float(cls, types)
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
        check_name(name)
        if not (isinstance(cls, type) and issubclass(cls, Event)):
            raise ContractError(f"{name}: {getattr(cls, '__qualname__', cls)} is not a subclass of canvasbus.Event")
        if type(version) is not int or version < 1:
            raise ContractError(f"{name}: versions are whole numbers from 1 on, not {version!r}")
        if "__event_type__" in cls.__dict__:
            raise ContractError(f"{cls.__qualname__} is already declared as {cls.__event_type__!r}")  # type: ignore[attr-defined]
        known = self._by_name.get(name, {}).get(version)
        if known and not _same_notebook_cell(known.cls, cls):
            raise ContractError(
                f"{name} v{version} is declared twice: by {qualified(known.cls)} and by {qualified(cls)}. "
                "Give the second another name, or raise its version."
            )
        check_fields(cls, name)
        if key is not None:
            check_key(cls, name, key)
        entry = EventType(name, version, key, cls, Upcasters(name, version, since, upcast))
        versions = {**self._by_name.get(name, {}), version: entry}
        newest, oldest = versions[max(versions)], versions[min(versions)]
        if oldest.version < newest.upcasters.since:
            raise ContractError(
                f"{qualified(oldest.cls)} is v{oldest.version} of {name}, which {qualified(newest.cls)} does not read: it says "
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
            raise ContractError(
                f'{qualified(cls)} has no name on the bus: decorate it with @event("some.type")'
            ) from None

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


def _same_notebook_cell(old: type, new: type) -> bool:
    # Running a notebook cell twice declares the same class twice; that is no conflict.
    return old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__
