"""A dead letter: an entry that a group gave up, with everything needed to understand it and to run it again."""

from datetime import datetime

import msgspec
from msgspec import Struct


class DeadLetterRecord(Struct, frozen=True, kw_only=True):
    """One given-up entry of one group, as it lies in the group's dead-letter stream (field `e`, msgpack map)."""

    group: str
    """The group that gave it up. Nobody else lost anything."""
    event_type: str
    """The type whose stream it came from."""
    entry_id: str
    """Its id there."""
    event_id: str | None
    """The id in its envelope; None when that could not be read."""
    handler: str
    """The handler that failed; empty when the entry never reached one."""
    reason: str
    """exhausted, rejected, lost_workers, undecodable, invalid, unknown_type, newer_version, upcast_failed,
    foreign or oversize."""
    error: str
    """The last error as `Type: message`."""
    traceback: str
    """Where the last error came from; empty when it did not come from a handler."""
    attempts: int
    """How often a handler was started."""
    first_failure: datetime
    """The first under the worker that gave it up: those before it, which may have died of it, leave no time."""
    last_failure: datetime
    consumer: str
    """The worker incarnation that gave it up."""
    fields: tuple[bytes, ...]
    """The entry's original fields and values, byte for byte."""


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(DeadLetterRecord).decode
