"""Event: the immutable, keyword-only base of everything that is published.

    @event("drift.detected", version=1, key="model_name")
    class DriftDetected(Event):
        model_name: str
        drift_score: float

Only what the domain means is in the event. What the bus needs (id, type, version, source, key, causation) lies in the
Envelope around it, so that routing and dead letters never have to read the payload.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Annotated, Any, dataclass_transform
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from canvasbus import clock, ids

AwareDatetime = Annotated[datetime, Meta(tz=True)]
"""A datetime with a time zone. Events take no other: a naive one means a different moment on every machine."""

_correlation: ContextVar[UUID | None] = ContextVar("canvasbus_correlation", default=None)

set_correlation = _correlation.set
"""Set the correlation id of the events made from here on in this context (used per delivery; see `correlation`)."""


def correlation(correlation_id: UUID) -> AbstractContextManager[UUID]:
    """Events made inside the block carry `correlation_id` unless they say otherwise. Raises TypeError, here and not where an
    event is published, for what is no UUID."""
    if not isinstance(correlation_id, UUID):
        raise TypeError(f"correlation({correlation_id!r}): a uuid.UUID is wanted; UUID(text) makes one of its text")
    return _correlated(correlation_id)


@contextmanager
def _correlated(correlation_id: UUID) -> Iterator[UUID]:
    token = _correlation.set(correlation_id)
    try:
        yield correlation_id
    finally:
        _correlation.reset(token)


def _current_or_new() -> UUID:
    return _correlation.get() or ids.uuid7()


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class EventMeta(msgspec.StructMeta):
    """Makes every subclass of Event frozen and keyword-only; msgspec itself does not inherit `kw_only`."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> Any:
        config.setdefault("frozen", True)
        config.setdefault("kw_only", True)
        return super().__new__(mcls, name, bases, namespace, **config)


# Said of the class too: type checkers look at base classes first, and Struct's own transform is not keyword-only.
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Event(Struct, metaclass=EventMeta):
    """Something that happened. Subclass it, declare fields, and give it a name with `@event`."""

    occurred_on: AwareDatetime = msgspec.field(default_factory=clock.now)
    """When it happened (aware, UTC by convention). Default: now."""

    correlation_id: UUID = msgspec.field(default_factory=_current_or_new)
    """What it belongs to. Default: the correlation id of the event being handled, else a new one."""
