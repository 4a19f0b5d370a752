"""The one place that acknowledges: commits verdicts of one partition to the server, in batches.

Theory of operation. Handlers finish, lanes hand over outcomes, and `poke` wakes the settler task. By the time it runs,
a fast lane has finished its whole batch, so outcomes coalesce by themselves; while a commit is at the server the next
outcomes gather. Nothing waits for a slow sibling, nor for one that the server has no memory for.

Two ways to the server:

* Deliveries that emit nothing: one XACK per stream. It is idempotent, so it is simply repeated until answered. It
  needs no ownership check, because it changes nothing but "done", and done is what the handler said.
* Everything else (derived events, timers, state, dead letters, written attempts): the settle script, which checks the
  fence and changes all or nothing. When its reply is lost the fence is raised first, over the new connection (see
  `fence`), and the repeated commit looks up entry by entry what is still ours.

Fenced means: others have declared this incarnation dead and taken its entries. Nothing was changed; `on_fenced` makes
the runner join again under a new name.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import trio

from canvasbus.consume import aside
from canvasbus.consume.aside import LACKS_RIGHT, Aside, awaited
from canvasbus.consume.backoff import ServerBackoff
from canvasbus.consume.changes import Changes
from canvasbus.consume.commit import Commit, script_words
from canvasbus.consume.delivery import NO_DOUBT, Delivery, Topic, deliver
from canvasbus.consume.fence import Fence
from canvasbus.consume.holding import Holding
from canvasbus.consume.policy import count_for
from canvasbus.consume.state import StateStore
from canvasbus.errors import Refused, TransportError, Unavailable
from canvasbus.log import get_logger
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.resp import (
    Argument,
    Reply,
    ReplyError,
    code,
    command,
    commands,
    is_no_group,
    translate,
)
from canvasbus.transport.server import REPLY_TIMEOUT, Server
from canvasbus.transport.settle_script import SETTLE
from canvasbus.wire import deadletter
from canvasbus.wire.codec import Codec
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.keys import Keys
from canvasbus.wire.outgoing import Outgoing

if TYPE_CHECKING:
    from canvasbus.consume.dispatch import Lane

COMMIT_ENTRIES = 500
COMMIT_BYTES = 1024 * 1024

CONFLICT = 2
"""What the settle script says of an outcome whose state has changed."""
DOUBLE = 3
"""What it says of one whose event was handled under another entry."""
AWAY = 4
"""What it says of one that it was to look up in a group that is not there."""

BROKEN = 3
"""Connections that may break over one outcome, and the server answer in between, before that is taken for the outcome's doing."""

SURE_SECONDS = 0.5
"""Between two attempts at raising a fence that nothing but the certainty waits for."""

log = get_logger("canvasbus.worker")


@dataclass(slots=True)
class SettlerStatistics:
    """Counters of one settler."""

    acked: int = 0
    """Deliveries acknowledged."""
    derived: int = 0
    """Events committed together with an acknowledgement."""
    buried: int = 0
    """Dead letters written."""
    parked: int = 0
    """Deliveries left to newer workers."""
    not_ours: int = 0
    """Outcomes dropped because the entry had been taken over."""
    conflicts: int = 0
    """Outcomes that were not committed because a state had changed meanwhile; their events run again."""
    repeated: int = 0
    """Commits sent again after a failure."""


class Settler:
    """Commits outcomes of one group in one partition, under one incarnation."""

    def __init__(
        self,
        server: Server,
        shared: SharedLink,
        keys: Keys,
        group: str,
        consumer: str,
        codec: Codec,
        *,
        on_fenced: Callable[[], None],
    ) -> None:
        self.consumer = consumer
        self.fence = Fence(keys.fence(consumer))
        self.holding = Holding(self.fence, group, consumer, on_due=self._hold)
        self.reads_from = ""
        """The history of the server that the subscription reads from."""
        self.statistics = SettlerStatistics()
        self.keys = keys
        self._group = group
        self._codec = codec
        self._link = Link(server)
        self._on_fenced = on_fenced
        self.states = StateStore(shared, keys, group)
        """What handlers keep in this partition; committed here."""
        self._topics: list[Topic] = []
        self._commits: deque[Commit] = deque()
        self._aside = Aside(group)
        """What the server refuses, and is tried again later, while the rest goes on."""
        self._known: set[str] = set()
        self._fresh: set[str] = set()
        self._work = trio.Event()
        self._passing = False
        self._compared = ""
        self.ask_group: Callable[[Link], Awaitable[None]]
        """Hears whether the group was made anew, and asks for `holding` then."""
        self.on_away: Callable[[], None]
        """Called when the group is not there."""

    def watch(self, topic: Topic) -> None:
        """Take care of this topic's acknowledgements."""
        self._topics.append(topic)

    def poke(self) -> None:
        """There is something to settle."""
        self._work.set()

    def commit(self, delivery: Delivery, derived: list[Outgoing], changes: Changes | None = None) -> None:
        """Acknowledge, and in the same step add the derived events and make the changes."""
        keys = self.keys
        payloads = [(keys.stream(item.type), item.data) for item in derived]
        self._commits.append(Commit(delivery, payloads, derived=len(derived), changes=changes))
        self._declare(derived)
        self._work.set()

    def bury(
        self,
        delivery: Delivery,
        record: DeadLetterRecord,
        announced: list[Outgoing],
        changes: Changes | None = None,
    ) -> None:
        """Acknowledge, and add the dead letter and its announcement in the same step."""
        keys = self.keys
        payloads = [(keys.dead(self._group), deadletter.encode(record))]
        payloads += [(keys.stream(item.type), item.data) for item in announced]
        self._commits.append(Commit(delivery, payloads, burial=True, changes=changes))
        self._declare(announced)
        self._work.set()

    def lose(self, delivery: Delivery, told: Outgoing) -> None:
        """Acknowledge an entry that is gone from its stream and publish that, once whoever else finds it too."""
        self._commits.append(Commit(delivery, [(self.keys.stream(told.type), told.data)], burial=True, lost=True))
        self._declare([told])
        self._work.set()

    def park(self, delivery: Delivery, pool: str) -> None:
        """Leave the entry to workers that take from this pool."""
        self._commits.append(Commit(delivery, [], pool=pool))
        self._work.set()

    def note_failures(self, delivery: Delivery, failures: int) -> None:
        """Write down how often the delivery has failed, so that whoever gets it next knows."""
        count = count_for(failures, delivery.topic.lane.handler.retry)
        self._write(Commit(delivery, [], count=count))

    def write_ahead(self, delivery: Delivery, failures: int) -> trio.Event:
        """Write down, before it runs, how often it has failed should its worker die. The event is set when the server has it."""
        commit = Commit(delivery, [], count=failures + 1)
        commit.done = trio.Event()
        self._write(commit)
        return commit.done

    def _write(self, commit: Commit) -> None:
        self._commits.append(commit)
        self._work.set()

    def _hold(self) -> None:
        """The group is a new one; some of what is set aside may have waited for that."""
        self._aside.hurry()
        self._work.set()

    def leave(self) -> None:
        """The worker leaves: what waits for somebody to clear a key is tried once more, and no longer waited for."""
        self._aside.leaves = True
        self._aside.hurry()
        self._work.set()

    def forget_topics(self) -> None:
        """The list of topics is gone from the server: announce again what is published."""
        self._fresh |= self._known
        self._known.clear()

    def _declare(self, items: Sequence[Outgoing]) -> None:
        for item in items:
            if item.type not in self._known:
                self._fresh.add(item.type)

    # --- the task ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Settle until cancelled."""
        try:
            while True:
                with trio.move_on_after(self._rest()):
                    await self._work.wait()
                self._work = trio.Event()
                await self._settle()
        finally:
            with trio.CancelScope(shield=True):
                await self._link.aclose()

    def _rest(self) -> float:
        """After how many seconds there is work again."""
        if self.fence.in_doubt:
            return SURE_SECONDS
        return aside.ASIDE_SECONDS if self._aside or self.holding.due else math.inf

    async def make_sure(self) -> None:
        """Return when nothing that was sent under our fence until now is executed any more. (By the task that commits: a
        fence that is raised while a commit is on its way would shut that out.)"""
        raised = self.fence.raised
        self.fence.in_doubt = True
        self._work.set()
        await raised.wait()

    async def _settle(self) -> None:
        if self.fence.in_doubt and not self._commits:  # those see to it themselves
            with suppress(TransportError):  # acknowledgements need no fence
                await self._raise_fence()
        if self.holding.due and not self._commits:
            with suppress(TransportError):  # before the next commit, or soon
                await self.holding.run(self._link)
        self._commits.extend(self._aside.due())
        waiting = [topic for topic in self._topics if topic.acks]
        if waiting:
            await self._acknowledge(waiting)
        while self._commits:
            chunk: list[Commit] = []
            size = 0
            burial = self._commits[0].burial  # on their own: they pass where others wait for memory
            while self._commits and len(chunk) < COMMIT_ENTRIES and size < COMMIT_BYTES:
                if self._commits[0].burial != burial:
                    break
                chunk.append(self._commits.popleft())
                size += chunk[-1].size
            await self._commit(chunk)

    async def _acknowledge(self, topics: list[Topic]) -> None:
        done = {topic: topic.acks for topic in topics}
        for topic in topics:
            topic.acks = []
        try:
            failures = await self._repeat(done)
        except trio.Cancelled:  # whoever leaves says it once more
            for topic, acks in done.items():
                topic.acks[:0] = acks
            raise
        for (topic, acks), refused in zip(done.items(), failures, strict=True):
            entry_ids = [entry_id for entry_id, _ in acks]
            if refused is None:
                self.statistics.acked += len(entry_ids)
            else:
                log.error(
                    "acknowledging was refused; the entries stay pending",
                    group=self._group,
                    topic=topic.event_type,
                    error=str(refused),
                )
            topic.let_go(entry_ids)
            topic.lane.settled(len(entry_ids))

    async def _repeat(self, done: dict[Topic, list[tuple[bytes, list[bytes]]]]) -> list[TransportError | None]:
        """Send acknowledgements until they are answered, and this user may send them; returns which were refused, and why.
        What the server may have given to another event meanwhile becomes a commit, which looks."""
        backoff = ServerBackoff("settling waits for the server", self._group)
        while True:
            try:
                await self._link.connect()
                self._commit_doubtful(done)
                words: list[tuple[Argument, ...]] = [
                    ("XACK", topic.stream, self._group, *[entry_id for entry_id, _ in acks])
                    for topic, acks in done.items()
                ]
                replies = await self._link.request(commands(*words)) if words else []
                failures = [translate(r, "acknowledge") if isinstance(r, ReplyError) else None for r in replies]
                waiting = (
                    found
                    for found, reply in zip(failures, replies, strict=True)
                    if isinstance(found, Unavailable) or (found is not None and code(reply) == "NOPERM")
                )
                failure: TransportError | None = next(waiting, None)
                if failure is None or (self._aside.leaves and not isinstance(failure, Unavailable)):
                    return failures
            except TransportError as error:
                failure = error
            self.statistics.repeated += 1
            await backoff.wait(failure)

    def _commit_doubtful(self, done: dict[Topic, list[tuple[bytes, list[bytes]]]]) -> None:
        # Only until that was looked into: a server takes another history also when its first replica comes, and then the two
        # connections stay at odds for as long as that of the reader lives.
        replaced = self._link.history != self.reads_from and self._compared != self.reads_from
        for topic, acks in list(done.items()):
            if replaced or topic.doubt is not NO_DOUBT:
                doubtful = {entry_id: fields for entry_id, fields in acks if replaced or topic.doubts(entry_id)}
                self._commits.extend(Commit(deliver(self._codec, topic, *ack), []) for ack in doubtful.items())
                done[topic] = [ack for ack in acks if ack[0] not in doubtful]
                if not done[topic]:
                    del done[topic]

    async def _commit(self, chunk: list[Commit]) -> None:
        backoff = ServerBackoff("settling waits for the server", self._group)
        look = any(commit.delivery.look for commit in chunk)
        asked = False
        while True:
            sent, began = False, 0.0
            try:
                if self.fence.in_doubt:  # of this very commit, or by a raising of ours that came late
                    await self._raise_fence()
                    look = True
                look = await self._prepare(chunk) or look
                sent, began = True, trio.current_time()
                reply = await self._send(chunk, look)
                if reply == b"STALE":
                    continue
                if not isinstance(reply, ReplyError):
                    break
                if is_no_group(reply):
                    # The group was lost with its entries. Whoever recreates it tells; these outcomes have no entry.
                    reply = [0] * len(chunk)
                    break
                failure = translate(reply, "settle")
                if not isinstance(failure, Unavailable):
                    waits_for = await self._awaited(reply)
                    if not waits_for and code(reply) == "NOPERM" and not asked:  # given back a moment ago?
                        asked = True
                        continue
                    await self._refused(chunk, failure, waits_for=waits_for)
                    return
            except (Unavailable, Refused) as error:
                failure = error
                if sent and isinstance(error, Unavailable) and error.ambiguous:
                    slow = trio.current_time() >= began + REPLY_TIMEOUT  # that says nothing of what it was sent
                    for commit in chunk:
                        commit.unsure, commit.broken = True, commit.broken + (not slow)
                        commit.delivery.look = True  # whoever puts it to the server next
                    if max(commit.broken for commit in chunk) >= BROKEN:
                        await self._broke(chunk, failure)
                        return
            self.statistics.repeated += 1
            refused = isinstance(failure, Unavailable) and not failure.ambiguous
            heavy = self.fence.in_doubt or any(commit.needs_memory for commit in chunk)
            if refused and not self._passing and heavy:
                await self._let_pass(backoff.next(failure))
            else:
                await backoff.wait(failure)
        if reply == b"FENCED":
            await self._stop_fenced()
        turned_down = [(commit, why) for commit, why in zip(chunk, reply, strict=True) if isinstance(why, bytes)]
        for commit, why in turned_down:
            refusal = ReplyError(why.decode("utf-8", "replace"))
            await self._refused([commit], translate(refusal, "settle"), waits_for=awaited(refusal))
        self._finish(chunk, await self._wait_for_group(chunk, reply))

    async def _wait_for_group(self, chunk: list[Commit], reply: list[int | bytes]) -> list[int | bytes]:
        """An entry that is not found while its group is away, or in a new one of which we have not heard, is not with
        others: its outcome waits until it is pending in our name again. Returns what is left to finish."""
        # What may have been committed does not: the group with the record of that is gone.
        sure = [i for i, commit in enumerate(chunk) if not commit.unsure]
        waits = {i for i in sure if reply[i] == AWAY}
        missing = {i for i in sure if reply[i] == 0 and not chunk[i].lost}
        if missing:
            try:
                await self.ask_group(self._link)
            except TransportError:
                waits |= missing
            else:
                waits |= missing if self.holding.due else set()
        waits = {i for i in waits if chunk[i].count is None}  # those are written again with what follows
        for i in waits:
            self._aside.put(chunk[i], Unavailable("settle: the consumer group is gone"))
        if waits and self.holding.due:
            self._aside.hurry()
        elif waits:
            self.on_away()
        return [b"" if i in waits else 0 if why == AWAY else why for i, why in enumerate(reply)]

    async def _raise_fence(self) -> None:
        if not await self.fence.raise_number(self._link):
            await self._stop_fenced()

    async def _stop_fenced(self) -> NoReturn:
        self._on_fenced()
        await trio.sleep_forever()

    async def _let_pass(self, seconds: float) -> None:
        """While a commit waits for a server that is there (it has no memory, say), settle what needs none of that:
        acknowledgements, attempts, and dead letters, which are what shows the trouble."""
        self._passing = True
        deadline = trio.current_time() + seconds
        while trio.current_time() < deadline:
            self._work = trio.Event()
            topics = [topic for topic in self._topics if topic.acks]
            if topics:
                await self._acknowledge(topics)
            light = [commit for commit in self._commits if not commit.needs_memory][:COMMIT_ENTRIES]
            if light and not self.fence.in_doubt:  # a server that refuses to raise it would hold us in here
                chosen = set(map(id, light))
                self._commits = deque(commit for commit in self._commits if id(commit) not in chosen)
                await self._commit(light)
            with trio.move_on_at(deadline):
                await self._work.wait()
        self._passing = False

    async def _doubts(self, chunk: list[Commit]) -> bool:
        """Whether the server may have given to others what we hold: it restarted or was replaced since it gave it to us."""
        link = self._link
        await link.connect()
        if link.history != self.reads_from and self._compared != self.reads_from:
            self._compared = self.reads_from
            await link.aclose()  # one of the two leads to a server of the past: let it not be this one
            await link.connect()
        if link.history != self.reads_from or (not link.history and link.epoch > 1):
            return True
        return any(commit.delivery.topic.doubts(commit.delivery.entry_id) for commit in chunk)

    async def _prepare(self, chunk: list[Commit]) -> bool:
        """See to what must be there before a commit. True: each entry is to be looked up."""
        doubts = await self._doubts(chunk)
        for commit in chunk if doubts else ():
            commit.compares = True
        await self.holding.run(self._link)  # first of all: what is looked up must be found
        if self._fresh:  # new topics are announced before their first entry, so that globs find them
            fresh = sorted(self._fresh)
            replies = await self._link.request(command("SADD", self.keys.topics, *fresh))
            if not isinstance(replies[0], ReplyError):
                self._known.update(fresh)
                self._fresh.difference_update(fresh)
        return doubts

    async def _send(self, chunk: list[Commit], look: bool) -> Reply:
        places, kinds, args = script_words(chunk)
        head: list[Argument] = [self._group, self.consumer, 1 if look else 0, kinds, len(chunk)]
        return await self.fence.run(self._link, SETTLE, places, head + args)

    async def _refused(self, chunk: list[Commit], failure: TransportError, *, waits_for: str = "") -> None:
        """The server refuses the commit as such, for example because a derived event's key is no stream. Find out
        whose fault it is: alone, a delivery that is refused has failed, unless it waits for somebody to mend what is no
        fault of its own."""
        if len(chunk) > 1:
            for commit in chunk:
                await self._commit([commit])
        else:
            self._aside.refused(chunk[0], failure, waits_for=waits_for)

    async def _broke(self, chunk: list[Commit], failure: TransportError) -> None:
        """The server is there, and each connection breaks over which it is sent this. Find out what it does not take, and
        let that wait: nobody can say of it that it was not done."""
        if len(chunk) > 1:
            for commit in chunk:
                await self._commit([commit])
        else:
            size = chunk[0].size
            told = Refused(f"{failure}, and so each time that {size:,} bytes are sent (its proto-max-bulk-len?)")
            self._aside.refused(chunk[0], told, waits_for="a server that takes it")

    async def _awaited(self, refusal: ReplyError) -> str:
        """What must be mended before the outcomes are taken; empty: they are refused for what they are."""
        found = awaited(refusal)
        if found or code(refusal) != "NOPERM":
            return found
        # Of a key: one that only these outcomes need, or all that there are? The fence is needed by every outcome.
        reply = await self.fence.run(self._link, SETTLE, (), (self._group, self.consumer, 0, "", 0))
        return LACKS_RIGHT if isinstance(reply, ReplyError) and code(reply) == "NOPERM" else ""

    def _finish(self, chunk: list[Commit], reply: list[int | bytes]) -> None:
        settled: dict[Lane, int] = {}  # told once per lane: being told makes a lane look for room
        statistics = self.statistics
        for commit, ours in zip(chunk, reply, strict=True):
            if isinstance(ours, bytes):
                continue
            if commit.done is not None:
                commit.done.set()
            if not ours:
                statistics.not_ours += 1
            if commit.count is not None:
                continue
            if commit.changes:
                commit.changes.settled(applied=ours == 1)
            if ours == CONFLICT:
                statistics.conflicts += 1
                commit.delivery.topic.lane.overtaken(commit.delivery)
                continue
            if ours and commit.pool:
                statistics.parked += 1
            elif ours == DOUBLE:
                statistics.acked += 1
                commit.delivery.topic.lane.statistics.duplicates += 1
            elif ours:
                statistics.acked += 1
                statistics.derived += commit.derived
                statistics.buried += commit.burial and not commit.lost
            topic = commit.delivery.topic
            topic.let_go((commit.delivery.entry_id,))
            settled[topic.lane] = settled.get(topic.lane, 0) + 1
        for lane, count in settled.items():
            lane.settled(count)

    def __repr__(self) -> str:
        return f"<Settler {self._group} {self.keys!r} {len(self._commits)} to commit, {self.statistics}>"
