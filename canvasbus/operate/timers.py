"""Events that come later: which, when, and who set them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from canvasbus.errors import DecodeError
from canvasbus.ids import id_order
from canvasbus.operate.words import text
from canvasbus.transport.resp import Operation, Reply, ReplyError, check, command, commands, pairs
from canvasbus.wire import later
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import INBOX_GROUP, LATER_INBOX, Keys


@dataclass(frozen=True, slots=True)
class Timer:
    """One event that is still to come."""

    due: datetime | None
    """On the server's clock; None: its time is none."""
    event_type: str
    event_id: str | None
    """None: its envelope cannot be read."""
    group: str | None
    """The group whose handler set it under a name; None: it was published with a delay, or has no name."""
    timer: str | None
    """Its name."""
    partition: int


@dataclass(frozen=True, slots=True)
class Coming:
    """What `timers` found."""

    timers: tuple[Timer, ...]
    """The next ones, the earliest first."""
    total: int
    """How many there are in all."""
    unsorted: int
    """Entries of the inbox that nobody has put among the timers yet, because no bus of the namespace runs; those that
    were put there within the last hour may be counted too."""
    unsorted_seconds: float
    """How long the oldest of those has waited; a healthy bus needs a second or two."""
    now: datetime
    """When that was, on the server's clock, by which they come: ours may be another."""


def timers(partitions: Sequence[Keys], codec: Codec, *, limit: int = 50) -> Operation[Coming]:
    """The next `limit` timers of all partitions."""
    found: list[Timer] = []
    total = unsorted = 0
    oldest: list[float] = []
    for keys in partitions:
        rows, count, groups = yield commands(
            ("ZRANGE", keys.timers, 0, limit - 1, "WITHSCORES"),
            ("ZCARD", keys.timers),
            ("XINFO", "GROUPS", keys.stream(LATER_INBOX)),
        )
        flat = check(rows, "look at the timers")
        total += check(count, "look at the timers")
        cursor = sorted_until(groups)
        start = b"(" + cursor if cursor is not None else b"-"
        (waiting,) = yield command("XRANGE", keys.stream(LATER_INBOX), start, "+", "COUNT", 1000)
        if isinstance(waiting, list) and waiting:
            unsorted += len(waiting)
            oldest.append(id_order(waiting[0][0])[0] / 1000)
        names = flat[::2]
        if not names:
            continue
        (bodies,) = yield command("HMGET", keys.timer_bodies, *names)
        for name, score, body in zip(names, flat[1::2], check(bodies, "look at the timers"), strict=True):
            found.append(_timer(name, score, body or b"", keys.partition, codec))
    found.sort(key=lambda timer: timer.due or datetime.max.replace(tzinfo=UTC))
    seconds, micros = map(int, check((yield command("TIME"))[0], "ask the time"))
    now = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
    waited = max(0.0, now.timestamp() - min(oldest)) if oldest else 0.0
    return Coming(tuple(found[:limit]), total, unsorted, waited, now)


def sorted_until(groups: Reply) -> bytes | None:
    """The last entry of an inbox that was put among the timers, from its XINFO GROUPS; None: none was."""
    rows = [] if isinstance(groups, ReplyError) else map(pairs, groups)
    return next((row[b"last-delivered-id"] for row in rows if row[b"name"] == INBOX_GROUP.encode()), None)


def _timer(name: bytes, score: bytes, body: bytes, partition: int, codec: Codec) -> Timer:
    kind, data = later.carried(body)
    try:
        event_id: str | None = str(codec.open_envelope(data, stream_type=kind, entry_id="0-0").id)
    except DecodeError:
        event_id = None
    try:
        due: datetime | None = datetime.fromtimestamp(float(score) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        due = None
    group, newline, timer = text(name).partition("\n")
    named = bool(newline)
    return Timer(due, kind, event_id, group if named else None, timer if named else None, partition)
