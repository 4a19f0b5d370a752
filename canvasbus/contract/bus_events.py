"""The bus's own events. They live here because the machinery publishes them; `canvasbus.events` re-exports them.

A "*" subscription does not match them, and a failure while handling one is counted and dead-lettered but publishes
nothing: a broken handler of `handler.failed` must not feed itself.
"""

from typing import Annotated
from uuid import UUID

from msgspec import Meta

from canvasbus.contract.event import Event
from canvasbus.contract.registry import event

Count = Annotated[int, Meta(ge=0)]


@event("handler.failed", key="group")
class HandlerFailed(Event):
    """A group gave up on an event: it is in the group's dead letters now."""

    group: str
    """The consumer group whose handler failed."""
    handler: str
    """The handler's qualified name; empty when the entry never reached one."""
    event_type: str
    """The type of the event that failed, as named by its stream."""
    entry_id: str
    """The entry's id on its stream."""
    event_id: UUID | None = None
    """The id of the event that failed; None when it could not be read."""
    reason: str
    """Why it was given up: exhausted, rejected, undecodable, invalid, unknown_type, upcast_failed, foreign, oversize
    or lost_workers."""
    error: str
    """The last error, as `Type: message`, cut to 500 characters."""
    attempts: Count
    """How often a handler was started for it."""


@event("bus.loss", key="topic")
class BusLoss(Event):
    """Entries are gone that somebody may have needed. Published whenever the bus sees a loss, never silently."""

    topic: str
    """The event type whose stream lost entries."""
    group: str | None = None
    """The group that missed them, when it is known."""
    reason: str
    """What happened: group_recreated, stream_recreated, entry_trimmed, trimmed_unread, stream_full, group_expired,
    timer_gone."""
    detail: str
    """One sentence for a person."""
    lost: Count | None = None
    """How many entries are gone; None: unknown."""
