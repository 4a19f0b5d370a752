"""Older versions of an event become the newest one while they are read.

    def split_kind(old):                                  # v1 → v2: a small pure function over plain values
        kind, _, feature = old.pop("kind").partition(":")
        return old | {"drift_type": kind, "feature": feature}

    @event("drift.detected", version=2, upcast={1: split_kind})
    class DriftDetected(Event): ...

Handlers see the newest Struct and no other. The bytes on the stream, in dead letters and in `tail` stay what they were,
and so does `ctx.envelope.version`. An old version needs no Struct of its own, only its step.

The steps are part of the declaration of the version that they lead to, all of them. A decorator that declares one step
at a time, anywhere, was tried on paper and rejected: whether the chain has a gap could be said only when everything was
imported, which no module knows; this way the declaration that would leave a gap fails, at import, in whatever order
modules come.

Cost: events of the newest version pay nothing; an older one is decoded without types, changed, encoded and decoded
again (5.4 µs for 100 bytes against 1.7). Untyped, 1 MiB of hostile bytes, the limit, take 76 MB for that moment; where
strangers publish and that is too much, lower `max_event_bytes`.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from canvasbus.errors import ContractError, DecodeError

Raw = dict[str, Any]
"""The fields of an event by their names on the wire, as builtin values: in msgpack times are datetimes and UUIDs 16
bytes, in JSON both are text."""

Upcaster = Callable[[Raw], Raw]
"""From the fields of one version to those of the next. It may change the dict that it is given, and returns one."""

OWN_FIELDS = ("occurred_on", "correlation_id")
"""They belong to the bus: a step that drops them does not make them new."""


class Upcasters:
    """The steps from every older version that is still read to `version`."""

    __slots__ = ("name", "since", "steps", "version")

    def __init__(self, name: str, version: int, since: int, steps: Mapping[int, Upcaster]) -> None:
        """Raises ContractError for a gap, a step that leads nowhere and for what is no function."""
        if not isinstance(steps, Mapping):
            raise ContractError(f"{name} v{version}: upcast= takes {{version: function}}, not {steps!r}")
        self.name = name
        self.version = version
        self.since = since
        """The oldest version that is read."""
        self.steps = MappingProxyType(dict(steps))
        """Version → the function that makes the next one."""
        if type(since) is not int or not 1 <= since <= version:
            raise ContractError(f"{name} v{version}: since={since!r} is no version from 1 to {version}")
        missing = [step for step in range(since, version) if step not in steps]
        if missing:
            raise ContractError(
                f"{name} v{version} cannot read {_listed(missing)}: give @event(..., upcast={{{missing[0]}: function}}) a "
                f"function from the fields of v{missing[0]} to those of v{missing[0] + 1}, or since={missing[-1] + 1} where "
                "nothing older was ever published"
            )
        surplus = [step for step in steps if step not in range(since, version)]
        if surplus:
            raise ContractError(
                f"{name} v{version}: the step from v{surplus[0]} in upcast= leads nowhere; there may be steps from "
                f"{_listed(list(range(since, version))) or 'none'}"
            )
        for number, step in steps.items():
            if not callable(step) or inspect.iscoroutinefunction(step):
                raise ContractError(
                    f"{name} v{version}: the step from v{number} must be a plain function, not {step!r}"
                )

    def __call__(self, version: int, raw: Raw) -> Raw:
        """The fields of `version` as those of the newest. Raises DecodeError, `upcast_failed`, naming the step."""
        kept = {field: raw[field] for field in OWN_FIELDS if field in raw}
        for number in range(version, self.version):
            step = self.steps[number]
            where = f"{self.name} v{number} → v{number + 1}: {_named(step)}"
            try:
                raw = step(raw)
            except (Exception, SystemExit) as error:  # whatever it raises, only this event is not read
                said = f"{type(error).__name__}: {error}"
                raise DecodeError(f"{where} raised {said[:300]}", reason="upcast_failed") from error
            if not isinstance(raw, dict):
                raise DecodeError(
                    f"{where} returned {type(raw).__name__}, not a dict of fields", reason="upcast_failed"
                )
        return {**kept, **raw}

    def path(self, version: int) -> str:
        """The names of the steps from `version` on, for messages."""
        return ", ".join(_named(self.steps[number]) for number in range(version, self.version))

    def __repr__(self) -> str:
        return f"<Upcasters {self.name} v{self.since}–v{self.version}>"


def _listed(versions: list[int]) -> str:
    return ", ".join(f"v{version}" for version in versions)


def _named(step: Upcaster) -> str:
    module, name = getattr(step, "__module__", None), getattr(step, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(step)
