"""One worker in this process: join, run, leave.

Theory of operation. A `Runner` lives as long as the worker runs here. What it does it does as an *incarnation*: a
consumer name that nobody had before (host-pid-random), a heartbeat, a fence, the lanes, and for each partition a
subscription and a settler. An incarnation that finds itself fenced (others declared it dead, for example after a pause
of the whole process) drops everything it holds, which others have by now, and the runner joins again as a new one. That
waits for nothing of the old one: a handler behind a shield may hang for ever.

The parts of an incarnation have rooms of their own: `joining`, `subscription` (reads), `dispatch` (runs), `settle`
(commits), `liveness` (beats), `sweep` (watches over the others), `taking` (from the pools), `leaving`. This one puts
them together and starts and ends them in order.
"""

import math
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from canvasbus import ids
from canvasbus.consume import accepting
from canvasbus.consume.backoff import ServerBackoff
from canvasbus.consume.batches import BatchLane
from canvasbus.consume.dispatch import Lane
from canvasbus.consume.handlers import Handler, Worker
from canvasbus.consume.instances import PER_INSTANCE, dismiss
from canvasbus.consume.joining import Joining
from canvasbus.consume.leaving import GRACE_SECONDS, Leaving
from canvasbus.consume.lifespan import Lifespan
from canvasbus.consume.liveness import MAX_BLOCK_SECONDS, Heart, Progress
from canvasbus.consume.parking import PATIENCE_SECONDS, Parking
from canvasbus.consume.pausing import Pause, Pausing
from canvasbus.consume.settle import Settler
from canvasbus.consume.subscription import Subscription
from canvasbus.consume.sweep import Sweep
from canvasbus.consume.taking import Taking
from canvasbus.errors import ContractError, Refused, TransportError
from canvasbus.log import get_logger
from canvasbus.transport.here import PLACE, Place
from canvasbus.transport.link import SharedLink
from canvasbus.transport.server import Server
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys

CANCEL_SECONDS = 1.0
"""What handlers may take to end once they are cancelled, before it is told that they do not."""

log = get_logger("canvasbus.worker")


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """A moment's picture of one worker in this process."""

    group: str
    consumer: str
    """The name of the present incarnation."""
    state: str
    """starting (its lifespan opens), joining, running, paused, draining or left."""
    topics: tuple[str, ...]
    handled: int
    failed: int
    timeouts: int
    retries: int
    dead: int
    expired: int
    """Events that were stale when they came; skipped."""
    duplicates: int
    """Events that the group had handled under another entry (`dedupe=`)."""
    running: int
    """Handlers running now."""
    held: int
    """Deliveries in hand: queued, running or being settled."""
    spared: int
    """Runs that failed while a circuit was open; they cost no attempt."""
    open_circuits: tuple[str, ...]
    """Handlers that rest because what they call is down."""
    parked: int
    """Events of a newer version, left to workers that know it."""
    waiting: int
    """Deliveries that wait for a retry."""
    next_retry: float
    """When the first of them runs again, on trio's clock; inf: none waits."""
    derived: int
    """Events committed with acknowledgements."""
    not_ours: int
    """Outcomes dropped because the entry had been taken over."""
    unheard: str
    """Why its heartbeat is not counted, though the server is not away; empty: it is."""


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
        grace: float = GRACE_SECONDS,
        park: float = PATIENCE_SECONDS,
        progress: Progress,
        max_block: float = MAX_BLOCK_SECONDS,
        allowed: Callable[[], float] | None = None,
        on_stuck: Callable[[], None] | None = None,
        random: Random | None = None,
    ) -> None:
        if not worker.handlers:
            raise ContractError(f"worker {worker.name!r} has no handlers: register some with @worker.on(...)")
        self.worker = worker
        self.group = worker.name if worker.group is None else f"{worker.name}@{consumer_name()}"
        """The consumer group; for PER_INSTANCE one that only this runner ever has."""
        self.state = "joining"
        self.ready = trio.Event()
        """Set once the groups exist and reading has begun."""
        self._server = server
        self._shared = shared
        self._codec = codec
        self._keys = [Keys(namespace, partition) for partition in range(partitions)]
        self._grace = grace
        self._park = park
        self._progress = progress
        self._max_block = max_block
        self._allowed = allowed or (lambda: self.extended)
        self._on_stuck = on_stuck
        self._random = random or ids.generator()
        self._stop = trio.Event()
        self._stop_by = -math.inf
        self._lifespan = Lifespan(worker.name, worker.open) if worker.open else None
        self._current: _Incarnation | None = None

    async def run(self) -> None:
        """Join and run until `stop`. Raises Refused when the server will not have this worker at all, LifespanError
        when what it opens around its life fails."""
        PLACE.set(Place(self._server, self._keys[0].namespace))
        if self._lifespan is None:
            await self._live(None)
        elif not self._stop.is_set():
            self.state = "starting"
            await self._lifespan.around(self._live, lambda: self._stop_by - trio.current_time())
        self.state = "left"

    async def _live(self, resources: Any) -> None:
        refused = None
        async with trio.open_nursery() as lives:
            try:
                while True:
                    self.state = "joining"
                    incarnation = self._current = _Incarnation(self, resources)
                    if not await incarnation.run(lives):
                        break
                    log.warning("others took this worker for dead; it joins again", group=self.group)
            except Refused as error:  # the nursery would make a group of it
                refused = error
            finally:
                if self.worker.group is PER_INSTANCE and self._current is not None:
                    await dismiss(self._server, self._shared, self._keys, self.group, self._current.heart)
        if refused is not None:
            raise refused

    def stop(self, grace: float | None = None) -> None:
        """Leave; `run` returns when that is done."""
        if grace is not None:
            self._grace = grace
        self._stop_by = trio.current_time() + self._grace
        self._stop.set()
        if self._current is not None:
            self._current.joining_scope.cancel()
        if self._lifespan is not None:
            self._lifespan.interrupt()

    async def tell_when_late(self) -> None:
        """Tell when the worker leaves late because of its lifespan; until cancelled. (Handlers are told of by the worker.)"""
        if self._lifespan is not None:
            await self._lifespan.tell_when_late()

    @property
    def extended(self) -> float:
        """Until when some running handler may go on by its own word (`ctx.extend`), on our monotonic clock."""
        current = self._current
        return max([lane.watchdog.extended for lane in current.lanes], default=0.0) if current else 0.0

    def statistics(self) -> WorkerStatistics:
        current = self._current
        lanes = current.lanes if current else []
        settlers = current.settlers if current else []
        return WorkerStatistics(
            group=self.group,
            consumer=current.consumer if current else "",
            state=self.state,
            topics=tuple(current.topics()) if current else (),
            handled=sum(lane.statistics.handled for lane in lanes),
            failed=sum(lane.statistics.failed for lane in lanes),
            timeouts=sum(lane.statistics.timeouts for lane in lanes),
            retries=sum(lane.statistics.retries for lane in lanes),
            dead=sum(lane.statistics.dead for lane in lanes),
            expired=sum(lane.statistics.expired for lane in lanes),
            duplicates=sum(lane.statistics.duplicates for lane in lanes),
            running=sum(lane.running for lane in lanes),
            held=sum(lane.held for lane in lanes),
            spared=sum(lane.statistics.spared for lane in lanes),
            open_circuits=tuple(sorted(lane.handler.name for lane in lanes if lane.blocked)),
            parked=sum(lane.statistics.parked for lane in lanes),
            waiting=sum(lane.waiting for lane in lanes),
            next_retry=min((lane.next_retry for lane in lanes), default=math.inf),
            derived=sum(settler.statistics.derived for settler in settlers),
            not_ours=sum(settler.statistics.not_ours for settler in settlers),
            unheard=current.heart.refused if current else "",
        )

    def __repr__(self) -> str:
        return f"<Runner {self.group} {self.state}>"


def consumer_name() -> str:
    """host-pid-random: readable, and never used twice."""
    host = re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:40] or "host"
    return f"{host}-{os.getpid()}-{ids.uuid7().hex[-12:]}"


class _Incarnation:
    """One life of a runner under one consumer name."""

    def __init__(self, runner: Runner, resources: Any) -> None:
        worker = runner.worker
        self.runner = runner
        self.group = runner.group
        self.consumer = consumer_name()
        self.joining_scope = trio.CancelScope()
        """Cancelled when the worker is told to leave: one that joins holds nothing yet, and need not wait for the server."""
        self._fenced = trio.Event()
        self._worked = trio.Event()
        """Nothing runs any more."""
        self._lives: trio.Nursery
        self._shared = runner._shared
        quarantine = trio.Lock()
        self._lane_of: dict[Handler, Lane] = {
            handler: (BatchLane if handler.batch else Lane)(
                handler,
                self.group,
                runner._codec,
                on_room=self._on_room,
                hand_back=lambda deliveries: self._leaving.hand_back(deliveries),
                quarantine=quarantine,
                random=Random(runner._random.getrandbits(64)),
                resources=resources,
                middleware=tuple(worker.middleware),
            )
            for handler in worker.handlers
        }
        self.lanes = list(self._lane_of.values())
        self.settlers: list[Settler] = []
        self.subscriptions: list[Subscription] = []
        for keys in runner._keys:
            settler = Settler(
                runner._server,
                self._shared,
                keys,
                self.group,
                self.consumer,
                runner._codec,
                on_fenced=self._fenced.set,
            )
            self.settlers.append(settler)
            self.subscriptions.append(
                Subscription(runner._server, self._shared, keys, self.group, self.consumer, runner._codec, settler)
            )
        self.heart = Heart(
            runner._server,
            runner._keys,
            self.group,
            self.consumer,
            runner._progress,
            max_block=runner._max_block,
            allowed=runner._allowed,
            on_stuck=runner._on_stuck,
            accepts=self._accepts,
        )
        threads = runner._server.shared
        self._joining = Joining(worker, self.group, self._shared, self._lane_of, check_rights=threads)
        self._taking = Taking(self.group, self.subscriptions, self.lanes, runner._random, on_fenced=self._fenced.set)
        self._parking = Parking(
            self.group,
            self.subscriptions,
            self._shared,
            runner._codec,
            runner._random,
            patience=runner._park,
            on_fenced=self._fenced.set,
        )
        self._sweeps = [
            Sweep(
                subscription,
                self._shared,
                self._joining,
                globs=worker.has_globs,
                threads=threads,
                on_reaped=self._taking.again,
            )
            for subscription in self.subscriptions
        ]
        self._pausing = Pausing(self.group, self.subscriptions, self._shared, self._on_pause)
        self._leaving = Leaving(self.group, self.subscriptions, self.lanes, self.heart)

    def _accepts(self) -> bytes:
        """What this worker takes now, for whoever asks. Called by the heartbeat's thread."""
        leaves = self.runner.state == "draining"
        takes = accepting.accepted(self.runner.worker, self.runner._codec.registry)
        return accepting.encode(accepting.NOTHING if leaves else takes)

    def _on_room(self) -> None:
        self._taking.again()
        for subscription in self.subscriptions:
            subscription.room()

    def _on_pause(self, pause: Pause | None) -> None:
        if self.runner.state in ("running", "paused"):
            self.runner.state = "running" if pause is None else "paused"

    async def run(self, lives: trio.Nursery) -> bool:
        """Live, in a nursery in which what cannot be ended at once may end later. True: fenced, a new incarnation must
        follow. False: left on purpose."""
        runner = self.runner
        if runner._stop.is_set() or not await self._join():
            return False
        self._lives = lives
        await lives.start(self._live)
        return self._fenced.is_set() and not runner._stop.is_set()

    async def _live(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it has left, or is fenced: then it is told that it has `started`, and ends behind others' backs."""
        try:
            told = await self._work(task_status)
        finally:
            self._worked.set()
            # Also when cancelled from outside or when something of ours crashed: a heart that went on beating would
            # keep everybody's hands off what we hold.
            self.heart.stop()
            if not self._fenced.is_set():
                with trio.CancelScope(shield=True, deadline=trio.current_time() + self._leaving.seconds):
                    await self._leaving.leave(self.runner._server)
                self.runner.state = "left"
        if not told:
            task_status.started()

    async def _work(self, task_status: trio.TaskStatus[None]) -> bool:
        """Returns whether it was told that another must follow."""
        runner = self.runner
        async with trio.open_nursery() as nursery:
            for settler in self.settlers:
                nursery.start_soon(settler.run)
            for lane in self.lanes:
                nursery.start_soon(lane.run)
            for subscription in self.subscriptions:
                nursery.start_soon(subscription.run)
            if runner._server.shared:
                self.heart.start_thread()
            else:
                nursery.start_soon(self.heart.run_task)
            for sweep in self._sweeps:
                nursery.start_soon(sweep.run)
            nursery.start_soon(self._taking.run)
            nursery.start_soon(self._parking.run)
            nursery.start_soon(self._pausing.run)
            nursery.start_soon(self._leaving.run, self._shared)
            runner.state = "running" if self._pausing.pause is None else "paused"
            runner.ready.set()
            log.info("worker joined", group=self.group, consumer=self.consumer, topics=self.topics())
            await _first(self._fenced, runner._stop)
            if not self._fenced.is_set():
                runner.state = "draining"
                async with trio.open_nursery() as leaving:

                    async def give_up() -> None:
                        await self._fenced.wait()  # nothing that still runs could be committed
                        leaving.cancel_scope.cancel()

                    leaving.start_soon(give_up)
                    await self._leaving.drain(self._shared, runner._grace)
                    leaving.cancel_scope.cancel()
            fenced = self._fenced.is_set()
            if fenced:
                self.heart.stop()
                task_status.started()
            else:
                self._lives.start_soon(self._tell_of_the_last)
            nursery.cancel_scope.cancel()
        return fenced

    async def _tell_of_the_last(self) -> None:
        """Whoever waits for a worker to leave must know what it waits for, and what it does not wait for."""
        with trio.move_on_after(CANCEL_SECONDS):
            await self._worked.wait()
        over = self._worked.is_set()  # then all tasks have ended, but not the threads of plain functions
        handlers = [lane.handler.name for lane in self.lanes if lane.running and not (over and lane.handler.is_async)]
        if handlers:
            log.warning(
                "plain functions run on, since nobody can end a thread; their events are handed back, and the end of the "
                "program cuts them off"
                if over
                else "handlers run on although they were cancelled, behind a shield or in a thread; the worker leaves when "
                "they end, a program at a second signal",
                group=self.group,
                handlers=handlers,
            )

    def topics(self) -> list[str]:
        """The types that it reads."""
        return sorted({t.event_type for s in self.subscriptions for t in s.topics.values()})

    async def _join(self) -> bool:
        backoff = ServerBackoff("joining waits for the server", self.group)
        with self.joining_scope:
            while True:
                try:
                    for subscription in self.subscriptions:
                        await self._joining.join(subscription)
                    await self._pausing.look()
                    return True
                except TransportError as error:
                    if isinstance(error, Refused) and not self.runner.ready.is_set():
                        raise  # whoever has run here before waits until that is mended
                    await backoff.wait(error)
        return False


async def _first(*events: trio.Event) -> None:
    """Return when one of the events is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
