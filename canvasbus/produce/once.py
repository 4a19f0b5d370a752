"""Events that are stored once, whoever publishes them again: by another try, after a restart, from two processes at once.

Theory of operation. The fences of `fenced` cover what one publisher does twice while it lives. An event that bears a mark
is covered against everybody: the script ONCE looks for the mark of its id and, if there is none, stores event and mark in
one step. So the script may simply be sent again when its answer was lost, as often as it takes; there is no fence to
raise, nothing to look for, and nothing that could stay unknown. A copy of the packet that was held up somewhere and comes
late finds the marks and does nothing. What the server loses in a crash or a failover it loses together, mark and event.

The price (tests/bench/dedupe.py): a third of the speed of fenced batches, and a key for each event. So a batch is cut into
runs: what bears no mark goes out by the fenced batches, untouched, what does by the script, in the order of publishing.
(One script for both would make everybody pay.) A run is a batch of its own: what was stored of the one before stays
stored when this one is refused.

Everything else is as in a fenced batch: caps of streams (which make a double wait, too), patience, refusals one by one,
confirmation by a replica. With the latter the fence is raised along with each script, only so that there is something
written behind it for WAIT to wait for: a script that found all its marks writes nothing.

A mark has an end, and a server may be away, or a program not started again, for longer than that. So the sender knows
where the streams ended before a run (asked once for each, then from the answers), and a spool notes it. Before a run is
sent again so late, it is looked for behind these entries, and what is found gets its mark back. (Not each time: what
another publisher stored under the same key a window ago lies there, too, and would count for this one. So where a stream
ends is asked again, too, before a run, when that was half a window ago.) Where the stream was trimmed past the place the
marks alone decide.

What a dead process left in its spool with a run on its way is sent as that process sent it, whatever is set now: a fenced
batch has left no marks, and the script no fence that would stop its late copy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from canvasbus import clock
from canvasbus.errors import CanvasbusError, Unavailable
from canvasbus.produce.fenced import (
    SUSPECT_SCAN_LIMIT,
    FencedSender,
    Note,
    Result,
    SenderStatistics,
    check_partitions,
    declaration,
    last_in,
)
from canvasbus.produce.lost import look_for
from canvasbus.transport.resp import Operation, Packet, Reply, ReplyError, check, code, commands, pack, translate
from canvasbus.transport.scripts import FENCE_SECONDS, ONCE
from canvasbus.wire.keys import LATER_INBOX, Keys
from canvasbus.wire.marks import WINDOW_SECONDS, window_ms
from canvasbus.wire.outgoing import Outgoing, ids_of, types_of
from canvasbus.wire.retention import read_full

BY_MARKS = ""
"""What stands in a note instead of the incarnation of a fenced sender."""

_once = attrgetter("once")


@dataclass(frozen=True, slots=True)
class Dedupe:
    """How a publisher keeps events from being stored twice."""

    always: bool = False
    """Every event bears a mark; else those that were published under a key."""
    window: float = WINDOW_SECONDS
    """Seconds for which a mark is kept."""


class PartitionSender:
    """Sends runs of events for one partition in order, one at a time (see `runs`), fenced or by their marks."""

    def __init__(
        self,
        keys: Keys,
        *,
        incarnation: str | None = None,
        replicated: bool = False,
        partitions: int = 0,
        dedupe: Dedupe = Dedupe(),
        note: Note | None = None,
    ) -> None:
        self._always = dedupe.always
        self._fenced = FencedSender(
            keys, incarnation=incarnation, replicated=replicated, partitions=partitions, note=note
        )
        self.statistics = self._fenced.statistics
        """Of both ways."""
        self._marked = _MarkedSender(
            keys,
            self.statistics,
            window_ms(dedupe.window, "dedupe_window"),
            replicated=replicated,
            partitions=partitions,
            note=note,
        )
        self._suspected = (b"", False)
        """First event id of the run that a dead process had on its way, and whether it went by marks."""

    def suspect(self, run: Sequence[Outgoing], cursors: Mapping[str, bytes], *, by_marks: bool) -> None:
        """Somebody died with this run on its way; where that was a fenced one, under this incarnation: see
        FencedSender.suspect."""
        self._suspected = (run[0].raw_id, by_marks)
        (self._marked if by_marks else self._fenced).suspect(run, cursors)

    def runs(self, batch: Sequence[Outgoing]) -> Sequence[Sequence[Outgoing]]:
        """The batch in pieces that `send` takes, in order; nearly always one."""
        if self._always or batch[0].raw_id == self._suspected[0] or not any(map(_once, batch)):
            return [batch]
        return [list(run) for _, run in groupby(batch, _once)]

    def send(
        self, run: Sequence[Outgoing], *, patience: float | None = None, following: Sequence[Outgoing] | None = None
    ) -> Operation[list[Result]]:
        """Store a run: see FencedSender.send. `following` must bear no marks."""
        suspected, by_marks = self._suspected
        if by_marks if run[0].raw_id == suspected else self._always or run[0].once:
            return self._send_marked(run, patience)
        return self._fenced.send(run, patience=patience, following=None if self._always else following)

    def _send_marked(self, run: Sequence[Outgoing], patience: float | None) -> Operation[list[Result]]:
        failures = self.statistics.failures
        sound = False
        try:
            results = yield from self._marked.send(run, patience=patience)
            sound = self.statistics.failures == failures
        finally:
            if not sound:  # the link may have another connection now, which watches nothing
                self._fenced.forget_connection()
        return results

    def forget_connection(self) -> None:
        """Somebody else used the link, which may have another connection now."""
        self._fenced.forget_connection()

    def unsure_of(self, run: Sequence[Outgoing]) -> bool:
        """Whether a run whose `send` did not return may be on the server."""
        return self._fenced.unsure_of(run) or self._marked.unsure_of(run)

    def __repr__(self) -> str:
        return f"<PartitionSender {self._fenced.keys!r} {self.statistics}>"


class _MarkedSender(FencedSender):
    """The loop of FencedSender around a packet that may be sent twice."""

    def __init__(
        self,
        keys: Keys,
        statistics: SenderStatistics,
        window: int,
        *,
        replicated: bool,
        partitions: int,
        note: Note | None,
    ) -> None:
        super().__init__(keys, replicated=replicated, partitions=partitions, note=note)
        self.incarnation = BY_MARKS
        self._scan_limit = SUSPECT_SCAN_LIMIT  # others may have published for half a window since
        self.statistics = statistics
        self._window = window
        self._by_hash = True
        self._undeclared = False
        self._maybe: frozenset[bytes] = frozenset()
        """Ids of the events that may be on the server since some try: marks that are found are their own."""
        self._since = 0.0
        """When the batch in hand was sent first."""
        self._asked = -math.inf
        """When the oldest of the cursors was asked for."""

    def suspect(self, batch: Sequence[Outgoing], cursors: Mapping[str, bytes]) -> None:
        super().suspect(batch, cursors)
        self._maybe = ids_of(batch)
        self._since = -math.inf

    def unsure_of(self, batch: Sequence[Outgoing]) -> bool:
        return super().unsure_of(batch) or self._is_maybe(batch)

    def _is_maybe(self, batch: Sequence[Outgoing]) -> bool:
        return bool(self._maybe) and not ids_of(batch).isdisjoint(self._maybe)

    def send(
        self, batch: Sequence[Outgoing], *, patience: float | None = None, following: Sequence[Outgoing] | None = None
    ) -> Operation[list[Result]]:
        results = yield from super().send(batch, patience=patience)
        if not self._is_maybe(batch):
            return results
        return [  # given up: the last try may be known to have failed, one before it is not
            Unavailable(str(result), ambiguous=True) if isinstance(result, Unavailable) else result
            for result in results
        ]

    def _investigate(self, batch: Sequence[Outgoing]) -> Operation[list[Result] | None]:
        self._maybe = ids_of(batch)
        yield from ()
        return None  # send it again

    def _renew_marks(self, batch: Sequence[Outgoing]) -> Operation[None]:
        """What is on the server bears a mark again."""
        found, _ = yield from look_for(batch, self.keys, self._cursors, self._scan_limit)
        behind = {item.raw_id: b"~" if item.type == LATER_INBOX else b"" for item in batch}
        steps = [
            ("SET", self.keys.once(event_id.hex()), behind[event_id] + entry_id, "NX", "PX", self._window)
            for event_id, entry_id in found.items()
        ]
        for reply in (yield commands(*steps)) if steps else ():
            check(reply, f"publish {batch[0].type}")

    def _look_for_room(self, batch: Sequence[Outgoing]) -> Operation[dict[str, CanvasbusError]]:
        if self._is_maybe(batch):  # what is there already must not be called refused
            return {}
        return (yield from super()._look_for_room(batch))

    def _prepare(self, batch: Sequence[Outgoing]) -> Operation[None]:
        if not self._is_maybe(batch) and clock.monotonic() - self._asked > self._window / 2000:
            self._cursors.clear()
            self._asked = clock.monotonic()
        fresh = types_of(batch) - self._cursors.keys()
        if fresh:
            ends = yield commands(*(("XREVRANGE", self.keys.stream(name), "+", "-", "COUNT", 1) for name in fresh))
            self._cursors |= {name: last_in(end, name) for name, end in zip(fresh, ends, strict=True)}
        if self._is_maybe(batch) and clock.monotonic() - self._since > self._window / 2000:
            yield from self._renew_marks(batch)
        if self._undeclared:
            replies = yield commands(*declaration(self.keys.meta, self._partitions))
            check(replies[0], "publish")
            check_partitions(self.keys, self._partitions, check(replies[1], "publish"))
            self._undeclared = False

    def _packet(self, batch: Sequence[Outgoing], following: Sequence[Outgoing] | None) -> Packet:
        if not self._is_maybe(batch):
            self._since = clock.monotonic()
        keys = self.keys
        types = dict.fromkeys(item.type for item in batch)
        places = {event_type: at for at, event_type in enumerate(types, 4)}
        args: list[bytes | str | int] = [self._window, self._partitions, len(types)]
        args += ["" if event_type == LATER_INBOX else event_type for event_type in types]
        for item in batch:
            args += (places[item.type], item.data)
        names = [keys.topics, keys.meta, keys.stream(LATER_INBOX), *map(keys.stream, types)]
        head = keys.once("")
        names += [head + item.raw_id.hex().encode() for item in batch]
        script = ONCE.packet(names, args) if self._by_hash else ONCE.source_packet(names, args)
        if not self._replicated:
            return Packet(script.data + self._get_full, 2)
        fence = pack("INCR", self._fence) + pack("EXPIRE", self._fence, FENCE_SECONDS)
        return Packet(fence + script.data + self._get_full + self._wait, 5)

    def _read(self, batch: Sequence[Outgoing], replies: list[Reply]) -> list[Result] | None:
        confirmed = replies.pop() if self._replicated else 1
        answers, full = replies[-2:]
        self._full = {} if full is None or isinstance(full, ReplyError) else read_full(full)
        self._by_hash = not (isinstance(answers, ReplyError) and code(answers) == "NOSCRIPT")
        if not self._by_hash:
            return None
        if answers == b"UNDECLARED":
            self._undeclared = True
            return None
        check(answers, f"publish {batch[0].type}")
        self._check_confirmed(confirmed, batch)
        results: list[Result] = []
        known = refused = 0
        for item, answer in zip(batch, answers, strict=True):
            if answer[:1] == b"-":
                what = f"publish {item.type} to {self.keys.stream(item.type).decode()}"
                error = translate(ReplyError(answer[1:].decode("utf-8", "replace")), what, kind="stream")
                results.append(error)
                refused += 1
                continue
            results.append(answer[1:])
            if answer[:1] == b"=":
                known += 1
            else:
                self._cursors[item.type] = answer[1:].lstrip(b"~")
        statistics = self.statistics
        statistics.batches += 1
        statistics.events += len(batch) - refused
        statistics.refused += refused
        if self._is_maybe(batch):
            self._maybe = frozenset()
            statistics.found += known
        else:
            statistics.duplicates += known
        return results
