"""One worker in this process: join, run, leave.

Theory of operation. A `Runner` lives as long as the worker runs here. What it does it does as an *incarnation*: a
consumer name that nobody had before (host-pid-random), a heartbeat, a fence, the lanes, and for each partition a
subscription and a settler. An incarnation that finds itself fenced (others declared it dead, for example after a pause
of the whole process) drops everything it holds, which others have by now, and the runner joins again as a new one.

Leaving (SIGTERM, end of the bus): stop reading; hand back at once what no handler has begun; let the running handlers
finish within the grace time and commit; cancel and hand back the rest; leave the group where nothing is owned.

Once a second each incarnation sweeps: all watch the heartbeats, and the one that holds the group's lease moves what a
dead consumer owns to the pool of suspects; everyone takes from the pools what it has room for; globs look for new topics.
"""

import json
import math
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import trio

from canvasbus import clock, ids
from canvasbus.consume.batches import BatchLane
from canvasbus.consume.dispatch import Lane
from canvasbus.consume.handlers import Handler, Worker
from canvasbus.consume.liveness import Heart, Progress, Watcher
from canvasbus.consume.settle import Settler
from canvasbus.consume.subscription import Subscription
from canvasbus.contract.event import Event
from canvasbus.errors import ContractError, Refused, TransportError
from canvasbus.log import get_logger
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.resp import ReplyError, check, code, command, commands, pairs, translate
from canvasbus.transport.scripts import REAP, RELEASE
from canvasbus.transport.server import Server
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import FREE_POOL, SUSPECT_POOL, Keys

SWEEP_SECONDS = 1.0
GRACE_SECONDS = 25.0
"""How long running handlers may go on after a SIGTERM (Kubernetes kills after 30)."""

LEAVE_SECONDS = 3.0
"""What handing back and leaving the group may take at the very end."""

LEASE_MS = 4000
FENCE_SECONDS = 7 * 24 * 3600
REAP_AT_ONCE = 500
TAKE_AT_ONCE = 100
SUSPECTS_AT_ONCE = 16
SCAN_EVERY = 30  # sweeps between two searches for streams that a foreign writer made
AUDIT_EVERY = 30  # sweeps between two looks for entries that are ours without our knowing

T = TypeVar("T")

log = get_logger("canvasbus.worker")


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """A moment's picture of one worker in this process."""

    group: str
    consumer: str
    """The name of the present incarnation."""
    state: str
    """joining, running, draining or left."""
    topics: tuple[str, ...]
    handled: int
    failed: int
    timeouts: int
    retries: int
    dead: int
    running: int
    """Handlers running now."""
    held: int
    """Deliveries in hand: queued, running or being settled."""
    waiting: int
    """Deliveries that wait for a retry."""
    derived: int
    """Events committed with acknowledgements."""
    not_ours: int
    """Outcomes dropped because the entry had been taken over."""


class Runner:
    """Runs one Worker until it is stopped."""

    def __init__(
        self,
        worker: Worker,
        server: Server,
        shared: SharedLink,
        codec: Codec,
        *,
        namespace: str,
        partitions: int,
        announce: Callable[[Event], None],
        grace: float = GRACE_SECONDS,
        random: Random | None = None,
    ) -> None:
        if not worker.handlers:
            raise ContractError(f"worker {worker.name!r} has no handlers: register some with @worker.on(...)")
        self.worker = worker
        self.state = "joining"
        self.ready = trio.Event()
        """Set once the groups exist and reading has begun."""
        self._server = server
        self._shared = shared
        self._codec = codec
        self._keys = [Keys(namespace, partition) for partition in range(partitions)]
        self._announce = announce
        self._grace = grace
        self._random = random or Random()
        self._stop = trio.Event()
        self._current: _Incarnation | None = None

    async def run(self) -> None:
        """Join and run until `stop`. Raises Refused when the server will not have this worker at all."""
        while True:
            incarnation = self._current = _Incarnation(self)
            if not await incarnation.run():
                break
            log.warning("others took this worker for dead; it joins again", group=self.worker.name)
        self.state = "left"

    def stop(self, grace: float | None = None) -> None:
        """Leave; `run` returns when that is done."""
        if grace is not None:
            self._grace = grace
        self._stop.set()

    @property
    def progressing(self) -> bool:
        """False when the loop has not turned for a while, for example because a handler blocks it (see `/livez`)."""
        current = self._current
        return current is None or clock.monotonic() - current.progress.at < 15.0

    def statistics(self) -> WorkerStatistics:
        current = self._current
        lanes = current.lanes if current else []
        settlers = current.settlers if current else []
        return WorkerStatistics(
            group=self.worker.name,
            consumer=current.consumer if current else "",
            state=self.state,
            topics=tuple(sorted({t.event_type for s in current.subscriptions for t in s.topics.values()}))
            if current
            else (),
            handled=sum(lane.statistics.handled for lane in lanes),
            failed=sum(lane.statistics.failed for lane in lanes),
            timeouts=sum(lane.statistics.timeouts for lane in lanes),
            retries=sum(lane.statistics.retries for lane in lanes),
            dead=sum(lane.statistics.dead for lane in lanes),
            running=sum(lane.running for lane in lanes),
            held=sum(lane.held for lane in lanes),
            waiting=sum(lane.waiting for lane in lanes),
            derived=sum(settler.statistics.derived for settler in settlers),
            not_ours=sum(settler.statistics.not_ours for settler in settlers),
        )

    def __repr__(self) -> str:
        return f"<Runner {self.worker.name} {self.state}>"


def consumer_name() -> str:
    """host-pid-random: readable, and never used twice."""
    host = re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:40] or "host"
    return f"{host}-{os.getpid()}-{ids.uuid7().hex[-12:]}"


class _Incarnation:
    """One life of a runner under one consumer name."""

    def __init__(self, runner: Runner) -> None:
        worker = runner.worker
        self.runner = runner
        self.group = worker.name
        self.consumer = consumer_name()
        self.progress = Progress()
        self._fenced = trio.Event()
        self._room = trio.Event()
        self._shared = runner._shared
        quarantine = trio.Lock()
        self._lane_of: dict[Handler, Lane] = {
            handler: (BatchLane if handler.batch else Lane)(
                handler,
                self.group,
                runner._codec,
                on_room=self._on_room,
                quarantine=quarantine,
                random=Random(runner._random.getrandbits(64)),
            )
            for handler in worker.handlers
        }
        self.lanes = list(self._lane_of.values())
        self.settlers: list[Settler] = []
        self.subscriptions: list[Subscription] = []
        for keys in runner._keys:
            settler = Settler(runner._server, keys, self.group, self.consumer, on_fenced=self._fenced.set)
            self.settlers.append(settler)
            self.subscriptions.append(
                Subscription(
                    runner._server,
                    runner._shared,
                    keys,
                    self.group,
                    self.consumer,
                    runner._codec,
                    settler,
                    announce=runner._announce,
                )
            )
        self._watchers = [Watcher(self.consumer) for _ in runner._keys]
        self._heart = Heart(runner._server, runner._keys, self.group, self.consumer, self.progress)
        self._sweeps = 0
        self._unusable: set[str] = set()
        self._told: dict[str, float] = {}
        self._others: dict[int, list[bytes]] = {}

    def _on_room(self) -> None:
        self._room.set()
        for subscription in self.subscriptions:
            subscription.room()

    async def run(self) -> bool:
        """Live. True: fenced, a new incarnation must follow. False: left on purpose."""
        runner = self.runner
        if not await self._join():
            return False
        try:
            await self._live()
        finally:
            # Also when cancelled from outside or when something of ours crashed: a heart that went on beating would
            # keep everybody's hands off what we hold.
            self._heart.stop()
            if not self._fenced.is_set():
                with trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_SECONDS):
                    await self._leave()
        return self._fenced.is_set() and not runner._stop.is_set()

    async def _live(self) -> None:
        runner = self.runner
        async with trio.open_nursery() as nursery:
            for settler in self.settlers:
                nursery.start_soon(settler.run)
            for lane in self.lanes:
                nursery.start_soon(lane.run)
            readers = [trio.Event() for _ in self.subscriptions]
            for subscription, done in zip(self.subscriptions, readers, strict=True):
                nursery.start_soon(self._read, subscription, done)
            if runner._server.shared:
                self._heart.start_thread()
            else:
                nursery.start_soon(self._heart.run_task, self._shared.request)
            nursery.start_soon(self._run_pulse)
            nursery.start_soon(self._run_sweep)
            nursery.start_soon(self._run_taker)
            runner.state = "running"
            runner.ready.set()
            log.info("worker joined", group=self.group, consumer=self.consumer, topics=self._topics())
            await _first(self._fenced, runner._stop)
            if not self._fenced.is_set():
                runner.state = "draining"
                async with trio.open_nursery() as leaving:

                    async def give_up() -> None:
                        await self._fenced.wait()  # nothing that still runs could be committed
                        leaving.cancel_scope.cancel()

                    leaving.start_soon(give_up)
                    await self._drain(readers)
                    leaving.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    def _topics(self) -> list[str]:
        return sorted({t.event_type for s in self.subscriptions for t in s.topics.values()})

    # --- joining -------------------------------------------------------------------------------------------------

    async def _join(self) -> bool:
        backoff = 0.1
        warned = -math.inf
        while not self.runner._stop.is_set():
            try:
                for subscription in self.subscriptions:
                    await self._join_partition(subscription)
                return True
            except TransportError as error:
                if isinstance(error, Refused):
                    raise
                now = trio.current_time()
                if now - warned > 60:
                    warned = now
                    log.warning("joining waits for the server", group=self.group, error=str(error))
            with trio.move_on_after(backoff):
                await self.runner._stop.wait()
            backoff = min(backoff * 2, 2.0)
        return False

    async def _join_partition(self, subscription: Subscription) -> None:
        worker = self.runner.worker
        keys = subscription.keys
        about = json.dumps(
            {
                "types": sorted({t for h in worker.handlers for t in h.types}),
                "globs": sorted({g for h in worker.handlers for g in h.globs}),
            }
        )
        (known,) = await self._shared.request(command("HEXISTS", keys.groups, self.group))
        check(known, f"join group {self.group!r}")
        for handler, lane in self._lane_of.items():
            for event_type in handler.types:
                await subscription.add(event_type, lane)
        if worker.has_globs:
            await self._discover(subscription, scan=True, from_start=bool(known))
        (reply,) = await self._shared.request(command("HSET", keys.groups, self.group, about))
        check(reply, f"join group {self.group!r}")
        if self.runner._server.shared and subscription.topics:
            await self._check_rights(keys, next(iter(subscription.topics)))

    async def _check_rights(self, keys: Keys, stream: bytes) -> None:
        """Raise Refused if the user lacks a command that is needed only when something goes wrong: without it a worker
        would run well until the day on which nobody takes over from the dead. None of these changes anything."""
        me, none, beats = self.consumer, keys.fence(self.consumer), keys.beats(self.group)
        packet = commands(
            ("XACK", stream, self.group, "0-0"),
            ("XPENDING", stream, self.group),
            ("XCLAIM", stream, self.group, me, 0, "0-0", "JUSTID"),
            ("XRANGE", stream, "-", "-", "COUNT", 1),
            ("XADD", none, "NOMKSTREAM", "*", "e", ""),
            ("XINFO", "GROUPS", stream),
            ("XINFO", "CONSUMERS", stream, self.group),
            ("XGROUP", "DELCONSUMER", stream, self.group, me),
            ("TYPE", none),
            ("GET", none),
            ("SET", none, "dead", "XX"),
            ("EXPIRE", none, 1),
            ("PEXPIRE", none, 1),
            ("HINCRBY", beats, me, 0),
            ("HGETALL", beats),
            ("HDEL", beats, me),
            ("SMEMBERS", keys.topics),
            ("SCAN", 0, "COUNT", 1),
            ("EVAL", "return 1", 0),
            ("EVALSHA", "0" * 40, 0),
        )
        for reply in await self._shared.request(packet):
            if isinstance(reply, ReplyError) and code(reply) == "NOPERM":
                raise translate(reply, f"run worker {self.group!r}")

    async def _discover(self, subscription: Subscription, *, scan: bool, from_start: bool) -> None:
        """Subscribe to topics that a glob matches and that are not read yet."""
        keys = subscription.keys
        names = {
            name.decode("utf-8", "replace")
            for name in check(await self._shared.call("SMEMBERS", keys.topics), "look for topics")
        }
        cursor: bytes | int = 0
        while scan:
            cursor, found = check(
                await self._shared.call("SCAN", cursor, "MATCH", _escaped(keys.stream_pattern), "COUNT", 1000),
                "look for streams",
            )
            names |= {keys.type_of(stream) for stream in found if stream.isascii()}
            if int(cursor) == 0:
                break
        for name in sorted(names):
            if keys.stream(name) in subscription.topics:
                continue
            handler = self.runner.worker.handler_for(name)
            if handler is None or name in handler.types or name in self._unusable:
                continue
            try:
                await subscription.add(name, self._lane_of[handler], from_start=from_start)
            except Refused as error:  # one key that is no stream must not stop the other topics
                self._unusable.add(name)
                log.error("a topic that a glob matches cannot be read", group=self.group, topic=name, error=str(error))

    # --- the sweep -----------------------------------------------------------------------------------------------

    async def _run_pulse(self) -> None:
        """Shows that the loop turns, whatever the server does."""
        while True:
            self.progress.mark()
            await trio.sleep(SWEEP_SECONDS)

    async def _run_sweep(self) -> None:
        while True:
            for subscription, watcher in zip(self.subscriptions, self._watchers, strict=True):
                try:
                    await self._sweep(subscription, watcher)
                except TransportError as error:
                    watcher.reset()
                    self._tell("watching over the other workers fails", error)
            self._sweeps += 1
            await trio.sleep(SWEEP_SECONDS)

    def _tell(self, what: str, error: TransportError) -> None:
        """A server that is away is told by those who read and settle; one that refuses these may refuse only these."""
        if isinstance(error, Refused) and trio.current_time() >= self._told.get(what, -math.inf):
            self._told[what] = trio.current_time() + 60
            log.error(what, group=self.group, error=str(error))

    async def _sweep(self, subscription: Subscription, watcher: Watcher) -> None:
        if self.runner.worker.has_globs:
            await self._discover(subscription, scan=self._sweeps % SCAN_EVERY == 0, from_start=True)
        await subscription.save_cursors()
        if self._sweeps % AUDIT_EVERY == AUDIT_EVERY - 1:
            subscription.audit_soon()
            settler = self.settlers[self.subscriptions.index(subscription)]
            if settler.fence:  # it must not be forgotten while we live: without it nothing of ours would be taken
                await self._shared.call("EXPIRE", subscription.keys.fence(self.consumer), FENCE_SECONDS)
        keys = subscription.keys
        streams = list(subscription.topics)
        flat = check(await self._shared.call("HGETALL", keys.beats(self.group)), "look at heartbeats")
        beats = {_name(flat[i]): _count(flat[i + 1]) for i in range(0, len(flat), 2)}
        # Everybody watches, so that the next reaper has seen enough when the lease of a dead one ends.
        reaper = await self._hold_lease(keys)
        if reaper and self._sweeps % AUDIT_EVERY == 0:
            self._others[keys.partition] = await self._other_streams(subscription)
        owners = await self._owners(streams + self._others.get(keys.partition, [])) if reaper else set()
        now = clock.monotonic() if self.runner._server.shared else trio.current_time()
        dead = watcher.judge(now, beats, owners)
        if reaper and dead:
            others = self._others[keys.partition] = await self._other_streams(subscription)
            for name in dead:
                await self._reap(keys, streams + others, name)

    async def _other_streams(self, subscription: Subscription) -> list[bytes]:
        """Streams of the group that this worker does not read: those of another version of it, which knows more types,
        and whose dead are ours to find as well."""
        keys, found = subscription.keys, list[bytes]()
        names = check(await self._shared.call("SMEMBERS", keys.topics), "look for topics")
        streams = {keys.stream(name.decode("utf-8", "replace")) for name in names} - subscription.topics.keys()
        for asked in _chunks(sorted(streams)):
            replies = await self._shared.request(commands(*(("XINFO", "GROUPS", stream) for stream in asked)))
            for stream, reply in zip(asked, replies, strict=True):
                if not isinstance(reply, ReplyError) and self.group.encode() in [pairs(row)[b"name"] for row in reply]:
                    found.append(stream)
        return found

    async def _owners(self, streams: list[bytes]) -> set[str]:
        """All consumers of the group, without the pools."""
        found: set[str] = set()
        for asked in _chunks(streams):
            packet = commands(*(("XINFO", "CONSUMERS", stream, self.group) for stream in asked))
            for reply in await self._shared.request(packet):
                if not isinstance(reply, ReplyError):
                    found |= {_name(row[1]) for row in reply}
        return {name for name in found if not name.startswith("~")}

    async def _hold_lease(self, keys: Keys) -> bool:
        key = keys.reaper(self.group)
        made, holder = await self._shared.request(
            commands(("SET", key, self.consumer, "NX", "PX", LEASE_MS), ("GET", key))
        )
        check(made, "lease")
        if check(holder, "lease") != self.consumer.encode():
            return False
        await self._shared.call("PEXPIRE", key, LEASE_MS)
        return True

    async def _reap(self, keys: Keys, streams: list[bytes], dead: str) -> None:
        moved = check(
            await self._shared.run(
                REAP.call(
                    [keys.fence(_plain(dead)), keys.beats(self.group), *streams],
                    [self.group, dead.encode("utf-8", "surrogateescape"), SUSPECT_POOL, REAP_AT_ONCE, FENCE_SECONDS],
                )
            ),
            f"take over from {_plain(dead)}",
        )
        if moved > 0:
            log.warning(
                "a worker is dead; its entries run in quarantine",
                group=self.group,
                consumer=_plain(dead),
                entries=moved,
            )
        self._room.set()

    async def _run_taker(self) -> None:
        """Take entries out of the pools as far as there is room."""
        while True:
            self._room = trio.Event()
            took = 0
            for subscription in self.subscriptions:
                before = subscription.statistics.taken
                try:
                    await self._take(subscription)
                except TransportError as error:
                    self._tell("taking what was handed back fails", error)
                took += subscription.statistics.taken - before
            if took:
                await self._room.wait()
            else:
                with trio.move_on_after(SWEEP_SECONDS * self.runner._random.uniform(0.75, 1.25)):
                    await trio.sleep_forever()

    async def _take(self, subscription: Subscription) -> None:
        settler = self.settlers[self.subscriptions.index(subscription)]
        free = min(TAKE_AT_ONCE, sum(max(0, lane.free) for lane in self.lanes))
        ours = await subscription.take(FREE_POOL, free, fence=settler.fence)
        if ours and not any(lane.suspects for lane in self.lanes):
            ours = await subscription.take(SUSPECT_POOL, min(SUSPECTS_AT_ONCE, free), fence=settler.fence)
        if not ours:
            self._fenced.set()

    async def _read(self, subscription: Subscription, done: trio.Event) -> None:
        await subscription.run()
        done.set()

    # --- leaving -------------------------------------------------------------------------------------------------

    async def _drain(self, readers: list[trio.Event]) -> None:
        grace = self.runner._grace
        deadline = trio.current_time() + grace
        for subscription in self.subscriptions:
            subscription.stop()
        with trio.move_on_after(max(grace, 2.0)):
            for done in readers:
                await done.wait()
        rest = [delivery for lane in self.lanes for delivery in lane.stop()]
        log.info(
            "worker leaves",
            group=self.group,
            handed_back=len(rest),
            running=sum(lane.running for lane in self.lanes),
            grace=grace,
        )
        with trio.move_on_after(2.0):
            try:
                await self._release(self._shared, [(d.topic.stream, d.entry_id) for d in rest], leave=False)
                for delivery in rest:
                    delivery.topic.held.discard(delivery.entry_id)
            except TransportError:
                pass  # tried once more at the very end
        with trio.move_on_at(deadline) as scope:
            for lane in self.lanes:
                await lane.wait_quiet()
        if scope.cancelled_caught:
            log.warning(
                "the grace time is over; what still runs is cancelled and handed back",
                group=self.group,
                running=sum(lane.running for lane in self.lanes),
            )

    async def _leave(self) -> None:
        link = Link(self.runner._server)  # of its own: the bus may be closing the shared one at this moment
        try:
            for subscription in self.subscriptions:
                for topic in subscription.topics.values():
                    if topic.acks:  # done, but the settler had no time to say so
                        await link.request(command("XACK", topic.stream, self.group, *topic.acks))
                        topic.held.difference_update(topic.acks)
            held = [(t.stream, i) for s in self.subscriptions for t in s.topics.values() for i in t.held]
            await self._release(link, held, leave=True)
        except TransportError as error:
            log.warning("could not hand back; others take over in a few seconds", group=self.group, error=str(error))
        finally:
            await link.aclose()
        self.runner.state = "left"

    async def _release(self, link: Link | SharedLink, entries: list[tuple[bytes, bytes]], *, leave: bool) -> None:
        for subscription, settler in zip(self.subscriptions, self.settlers, strict=True):
            streams = list(subscription.topics)
            place = {stream: index + 3 for index, stream in enumerate(streams)}
            free: list[tuple[bytes | str | int, ...]] = []
            suspects: list[tuple[bytes | str | int, ...]] = []
            for stream, entry_id in entries:
                if stream in place:
                    # A suspect stays one. Its attempt was written before it began, and cutting it short was our doing.
                    suspect = subscription.topics[stream].suspects.get(entry_id)
                    if suspect is None:
                        free.append((place[stream], entry_id, ""))
                    else:
                        suspects.append((place[stream], entry_id, suspect.failures + 1))
            if not free and not suspects and not leave:
                continue
            calls = [(SUSPECT_POOL, chunk) for chunk in _chunks(suspects)]
            calls += [(FREE_POOL, chunk) for chunk in _chunks(free)] or [(FREE_POOL, [])]
            for number, (pool, chunk) in enumerate(calls):
                last = leave and number == len(calls) - 1
                args: list[Any] = [settler.fence, self.group, self.consumer, pool, 1 if last else 0]
                for entry in chunk:
                    args += entry
                keys = [subscription.keys.fence(self.consumer), subscription.keys.beats(self.group), *streams]
                check(await link.run(RELEASE.call(keys, args)), "hand back")


def _chunks(items: list[T], size: int = 500) -> list[list[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _name(consumer: bytes) -> str:
    """The name of a consumer, be it ours or a stranger's."""
    return consumer.decode("utf-8", "surrogateescape")


def _plain(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _count(value: bytes) -> int:
    """A count of heartbeats; what is none stands still, and is removed like one."""
    return int(value) if value.isdigit() else -1


def _escaped(pattern: bytes) -> bytes:
    """The pattern with everything but its last star taken literally."""
    return re.sub(rb"([\[\]?\\])", rb"\\\1", pattern)


async def _first(*events: trio.Event) -> None:
    """Return when one of the events is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
