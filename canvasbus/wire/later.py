"""Events for later, on their way to the timers of a partition.

What is published with a delay goes to the inbox stream like any event to its own, in the same fenced batches, so a lost
reply neither loses nor doubles it; whoever maintains the namespace puts it among the timers. Its bytes there: when it is
due (ms of the wall clock, or + and ms after the entry was added), newline, type, newline, envelope.
"""

import math
from datetime import datetime

from canvasbus.errors import ContractError

LONGEST = 100 * 366 * 86400.0
"""Seconds; nothing is put off for longer."""


def due(after: float | None, at: datetime | None, what: str) -> str:
    """When something is due: `after` seconds or `at` a moment, exactly one of them. Raises ContractError."""
    if (after is None) == (at is None):
        raise ContractError(f"{what}: say either after how many seconds or at which moment")
    if after is not None:
        if isinstance(after, bool) or not isinstance(after, int | float) or not math.isfinite(after):
            raise ContractError(f"{what}: {after!r} is no number of seconds")
        if not 0 <= after <= LONGEST:
            raise ContractError(f"{what}: {after!r} seconds is not between now and in a hundred years")
        return f"+{round(after * 1000)}"
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise ContractError(f"{what}: {at!r} is no datetime with a time zone")
    return str(max(0, round(at.timestamp() * 1000)))


def body(event_type: str, envelope: bytes) -> bytes:
    """What a timer carries, on its way there (see `carried`)."""
    return event_type.encode() + b"\n" + envelope


def carried(body: bytes) -> tuple[str, bytes]:
    """Type and envelope of what a timer carries. Among the timers the type is followed by a blank and when it is due, so
    that they can be found again when the times are lost."""
    head, _, envelope = body.partition(b"\n")
    event_type, blank, due = head.rpartition(b" ")
    return (event_type if blank and due.isdigit() else head).decode(errors="replace"), envelope


def wrap(when: str, event_type: str, envelope: bytes) -> bytes:
    """An entry of the inbox; `when` is from `due`."""
    return when.encode() + b"\n" + body(event_type, envelope)


def unwrap(value: bytes) -> tuple[str, bytes]:
    """Type and envelope of an entry of the inbox."""
    _, event_type, envelope = value.split(b"\n", 2) if value.count(b"\n") >= 2 else (b"", b"", b"")
    return event_type.decode(errors="replace"), envelope
