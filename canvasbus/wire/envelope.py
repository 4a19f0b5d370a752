"""The Envelope: the only thing that crosses the wire.

A msgpack array, so that names cost nothing; the payload lies inside as raw bytes. Fields are only ever added at the
end and with a default: msgspec ignores surplus elements and fills in missing ones, so old and new readers live
together.
"""

from uuid import UUID

from msgspec import Raw, Struct


class Envelope(Struct, array_like=True, frozen=True, gc=False):
    """What the bus knows about one event."""

    id: UUID
    """UUIDv7 of a published event, uuid5 of a derived one: the idempotency key for calls to the outside."""
    type: str
    """The event type, which is also the name of its stream."""
    version: int
    """The version of the type's schema."""
    source: str
    """Who published it; for a derived event the group that handled its parent."""
    key: str | None
    """What orders and partitions it; None: no order is asked for."""
    causation_id: UUID | None
    """The id of the event whose handler made this one; None: a producer published it."""
    traceparent: str | None
    """W3C trace context, as it was published (see `traceparent`); None: nobody traces."""
    data: Raw
    """The event itself, encoded."""
    expires_on: float | None = None
    """Wall time in seconds after which consumers skip and count it; None: never."""
