"""Reading topics as one sequence in order of time, without a group: nobody's progress is touched.

Theory of operation. `begin` learns which topics there are and where each of them ends. `page` then walks from the start
to exactly there, so that reading what is there ends even while publishers are faster than the reader; streams are
merged by entry id, and an entry is handed out only once every stream that is not used up has shown its next one.
`follow` goes on from there with XREAD, finds topics that appear meanwhile and reads those from their first entry.

Reading backwards (`backwards=True`) is the same walk from the ends to the start, for "the last ten".
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from canvasbus import clock
from canvasbus.ids import id_order
from canvasbus.operate.entry import Entry, entries
from canvasbus.operate.topics import TopicKey, topic_keys
from canvasbus.transport.resp import Operation, Pause, ReplyError, check, commands, pairs
from canvasbus.wire.keys import Keys

PAGE = 200
FOLLOW_COUNT = 500
LOOK_SECONDS = 1.0
"""How often a follower looks for new topics."""

POLL_SECONDS = 0.05


@dataclass(slots=True)
class _Stream:
    key: TopicKey
    end: bytes
    """The newest entry when reading began; where following starts."""
    cursor: bytes
    """The next XRANGE begins, or backwards ends, here."""
    rows: deque[Entry] = field(default_factory=deque)
    done: bool = False


class Tail:
    """One reading of the topics whose name `wanted` accepts, from the entry id `start` (inclusive) on."""

    def __init__(
        self,
        partitions: Sequence[Keys],
        wanted: Callable[[str], bool] = lambda _: True,
        *,
        start: str = "0",
        backwards: bool = False,
        blocks: bool = True,
    ) -> None:
        self.topics: list[str] = []
        """What is read, once `begin` has run."""
        self.problems: dict[str, str] = {}
        """Topics that cannot be read, and the server's word on it."""
        self._partitions = partitions
        self._wanted = wanted
        self._start = start.encode()
        self._backwards = backwards
        self._blocks = blocks
        self._streams: dict[bytes, _Stream] = {}
        self._looked = 0.0

    def begin(self) -> Operation[None]:
        """Learn the topics and where they end now."""
        keys = [key for key in (yield from topic_keys(self._partitions)) if self._wanted(key.name)]
        for key in keys:
            (info,) = yield commands(("XINFO", "STREAM", key.stream))
            if isinstance(info, ReplyError):
                if "no such key" in str(info):
                    self._add(key, b"0-0")  # declared, and still empty
                else:
                    self.problems[key.name] = str(info)
                continue
            self._add(key, pairs(info)[b"last-generated-id"])
        self._looked = clock.monotonic()

    def _add(self, key: TopicKey, end: bytes) -> None:
        self._streams[key.stream] = _Stream(key, end, end if self._backwards else self._start)
        self.topics = sorted({stream.key.name for stream in self._streams.values()})

    def page(self) -> Operation[list[Entry]]:
        """The next entries up to where the topics ended at `begin`; empty when there are no more."""
        short = [stream for stream in self._streams.values() if not stream.rows and not stream.done]
        if short:
            replies = yield commands(*(self._range(stream) for stream in short))
            for stream, rows in zip(short, replies, strict=True):
                found = entries(stream.key.name, stream.key.partition, check(rows, f"read {stream.key.name}"))
                stream.rows.extend(found)
                stream.done = len(found) < PAGE
                if found:
                    stream.cursor = b"(" + found[-1].entry_id.encode()
        return self._merged()

    def _range(self, stream: _Stream) -> tuple[bytes | str | int, ...]:
        if self._backwards:
            return ("XREVRANGE", stream.key.stream, stream.cursor, self._start, "COUNT", PAGE)
        return ("XRANGE", stream.key.stream, stream.cursor, stream.end, "COUNT", PAGE)

    def _merged(self) -> list[Entry]:
        pick = max if self._backwards else min
        result: list[Entry] = []
        while True:
            if any(not stream.rows and not stream.done for stream in self._streams.values()):
                return result
            filled = [stream for stream in self._streams.values() if stream.rows]
            if not filled:
                return result
            result.append(pick(filled, key=lambda stream: _order(stream.rows[0])).rows.popleft())

    def follow(self, wait: float = 1.0) -> Operation[list[Entry]]:
        """What has come since `begin` or the last call; waits up to `wait` seconds for it. Empty: nothing came.

        A failure leaves the place where it was: call again when the server is back.
        """
        if clock.monotonic() - self._looked >= LOOK_SECONDS or not self._streams:
            yield from self._look()
        if not self._streams:
            yield Pause(min(wait, LOOK_SECONDS))
            return []
        streams = list(self._streams.values())
        block = ("BLOCK", max(1, int(wait * 1000))) if self._blocks and wait > 0 else ()
        names = [stream.key.stream for stream in streams]
        (reply,) = yield commands(
            ("XREAD", "COUNT", FOLLOW_COUNT, *block, "STREAMS", *names, *(stream.end for stream in streams))
        )
        result: list[Entry] = []
        for name, rows in check(reply, "follow") or ():
            stream = self._streams[name]
            stream.end = rows[-1][0]
            result += entries(stream.key.name, stream.key.partition, rows)
        if not result and not self._blocks and wait > 0:
            yield Pause(min(wait, POLL_SECONDS))
        return sorted(result, key=_order)

    def _look(self) -> Operation[None]:
        found = yield from topic_keys(self._partitions, foreign=False)
        self._looked = clock.monotonic()
        for key in found:
            if key.stream not in self._streams and key.name not in self.problems and self._wanted(key.name):
                self._add(key, b"0-0")

    def __repr__(self) -> str:
        return f"<Tail of {len(self._streams)} streams from {self._start.decode()}>"


def _order(entry: Entry) -> tuple[tuple[int, int], str, int]:
    return id_order(entry.entry_id), entry.topic, entry.partition
