"""One simulated run: processes with real Workers, EventBuses and publishers, and what happens to them.

A "process" is an EventBus with its own way to the server (network.Site). What its handlers do is in the plan; what they
did, what was published and what was done to the server is written down for the judge (judge.py).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import trio
from simulation.network import CALM, CALM_SECONDS, HotLoop, Killed, Network, SimServer, Site
from simulation.plan import GROUPS, STALE_SECONDS, Happening, Placed, Plan, Publish, Rung, Seen, timer_of
from simulation.producers import Attempt, Programs
from studio import Eyes, replace_server
from waiting import TrioClock

from canvasbus import EncodeError, Event, Unavailable, clock
from canvasbus.bus import PER_INSTANCE, EventBus, Retention
from canvasbus.consume.breaker import Breaker
from canvasbus.consume.policy import Backoff, Reject, RetryLater
from canvasbus.consume.timers import Cancel, Later
from canvasbus.contract.registry import registry
from canvasbus.errors import StreamFull
from canvasbus.operate.timers import sorted_until
from canvasbus.produce.publisher import Publisher
from canvasbus.transport.resp import pairs
from canvasbus.wire.keys import LATER_INBOX
from canvasbus.worker import Context, Worker

HEAL_SECONDS = 40.0
"""In which everything must be done once the faults are over: the heartbeat limit, a lease, suspects one by one."""

IDLE_SECONDS = 3.0
IDLE_COMMANDS = 25.0
"""Packets a second that an idle worker may send, for each of its groups."""

OUTAGE_COMMANDS = 40.0
"""Attempts a second of a process whose server is away, for each of its groups."""


class Boom(Exception):
    """What a handler raises that fails."""


@dataclass
class Run:
    """One run of a handler."""

    group: str
    n: int
    partition: int
    entry_id: str
    site: Site
    consumer: str
    attempt: int
    suspect: bool
    """Its worker before had died: in quarantine an attempt is counted before it begins."""
    began: float
    ended: float = math.inf
    end: str = "runs"
    """returned, raised, down, later, rejected, cancelled, killed"""


@dataclass
class Instance:
    """A process with a group of its own."""

    group: str
    since: int
    """From which ms of the server's clock on it reads."""
    stayed: bool = True
    """It was there to the end."""


@dataclass(frozen=True)
class Cut:
    """A restart of the server after which it knows nothing of what happened between two moments."""

    since: float
    milliseconds: range


@dataclass
class History:
    """What the judge needs to know."""

    fate: dict[int, str] = field(default_factory=dict)
    """Of each event: accepted, refused or unknown."""
    entry: dict[int, str] = field(default_factory=dict)
    """The entry ids of what was accepted."""
    foreign: set[str] = field(default_factory=set)
    """Entry ids of what strangers wrote."""
    trimmed: dict[bytes, list[tuple[str, list[bytes]]]] = field(default_factory=lambda: defaultdict(list))
    """By stream: entries that were trimmed by hand."""
    retained: dict[bytes, list[tuple[str, list[bytes]]]] = field(default_factory=lambda: defaultdict(list))
    """The same: by retention."""
    lost_pending: dict[str, set[str]] = field(default_factory=dict)
    """By group that was destroyed: the entry ids that were pending then."""
    lost_done: dict[str, set[str]] = field(default_factory=dict)
    """The same: those that were acknowledged."""
    runs: list[Run] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)
    """Kills, pauses and cut networks: each may cost what ran an attempt. Stops do not."""
    stale: dict[int, float] = field(default_factory=dict)
    """Events that expire soon, and when: handled before that or skipped."""
    due: dict[int, float] = field(default_factory=dict)
    """Events published with a delay: before which ms they must not come."""
    instances: dict[str, Instance] = field(default_factory=dict)
    cut: Cut | None = None
    attempts: list[Attempt] = field(default_factory=list)
    """What programs with a Producer published, in this order."""
    ended_well: set[str] = field(default_factory=set)
    """Their lives that ended of themselves, with nothing left to do."""
    wrong: list[str] = field(default_factory=list)
    """What was seen to be wrong on the way."""


class World:
    """One run of a plan."""

    def __init__(self, plan: Plan, *, trace: bool = False, impatient: bool = False) -> None:
        """`impatient`: the first thing that is wrong ends the run, and whether it idles well is not looked at."""
        self.plan = plan
        self.impatient = impatient
        self.dice = Random(f"{plan.seed} world")
        self.history = History()
        self.log: list[str] = []
        self.trace = trace
        self.sites: dict[str, Site] = {}
        self.over = False
        self.healed = False
        """Faults that were still waiting for their moment do not happen any more."""
        self.failed: dict[tuple[str, int, str], int] = defaultdict(int)
        self._active: dict[tuple[str, int, str], Run] = {}
        self._publishing = len(plan.publishes)
        self._publisher: Publisher | None = None
        self._still_up: set[str] = set()
        self.programs = Programs(self) if "producer" in plan.parts else None

    def note(self, who: str, what: str) -> None:
        line = f"{clock.monotonic():8.3f}  {who:12} {what}"
        self.log.append(line)
        if self.trace:
            print(line)

    def wrong(self, what: str) -> None:
        self.note("WRONG", what)
        self.history.wrong.append(what)
        if self.impatient:
            self.over = True
            self._scope.cancel()

    # --- the run -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole run; what is wrong is in the history."""
        if self.programs is None:
            await self._run()
        else:
            with self.programs.running():
                await self._run()
                self.programs.finish()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            self.network = Network(Random(f"{self.plan.seed} network"), nursery, self.note)
            self.partitions = [Eyes(self.network.memory, "sim", number) for number in range(self.plan.partitions)]
            self.eyes = self.partitions[0]
            self.network.before_trim, self.network.on_reap = self._before_trim, self._check_dead
            self.network.weather = self.plan.weather
            for eyes in self.partitions:  # a cap that is never reached, so that maintainers look once a second
                eyes.call("HSET", eyes.keys.retention, "sim.tagged", msgspec.json.encode(Retention(cap=1_000_000)))
            for number in range(self.plan.processes):
                self._still_up.add(f"worker {number}")
                nursery.start_soon(self._keep_alive, "worker", number)
            self._still_up.add("publisher 0")
            nursery.start_soon(self._keep_alive, "publisher", 0)
            if self.programs is not None:
                self._still_up.add("producer 0")
                nursery.start_soon(self._keep_alive, "producer", 0)
            for happening in self.plan.happenings:
                nursery.start_soon(self._happen, happening, nursery)
            if "retention" in self.plan.parts:
                nursery.start_soon(self._retain)
            await trio.sleep(self.plan.seconds)
            self._heal()
            await self._be_done()
            if not (self.history.wrong or self.impatient):
                await self._be_idle()
            self.over = True
            with trio.move_on_after(20) as scope:
                await self._leave()
            if scope.cancelled_caught:
                self.wrong(f"did not leave within 20 s: {sorted(self._still_up)}")
            nursery.cancel_scope.cancel()

    def _heal(self) -> None:
        self.note("world", "no more faults")
        self.healed = True
        network = self.network
        network.weather = CALM
        if self.programs is not None:
            self.programs.heal()
        if network.mood or network.away:
            network.mood = network.away = ""
            self._recover()
        for site in self.sites.values():
            if site.unreachable or not site.awake.is_set():
                site.calm_from = trio.current_time() + CALM_SECONDS
            site.unreachable = ""
            site.falls_at = None
            site.awake.set()

    async def _be_done(self) -> None:
        """Wait until everything that was published is done."""
        plan = self.plan
        behaviours = Counter(plan.behaviours.values())
        kills = "kills" in behaviours  # for each group that costs some workers, one after the other
        seconds = HEAL_SECONDS * (len(plan.groups) if kills else 1)
        # What takes long does so in each group, and where there is one slot everything waits for it.
        long = plan.timeout * (behaviours["hangs"] + behaviours["slow"]) * len(plan.groups)
        seconds += long / (plan.processes * plan.concurrency)
        with trio.move_on_after(seconds):
            while self._publishing or not self._all_sent() or not all(map(self._done, self.partitions)):
                await trio.sleep(0.5)
            self.note("world", "everything is done")
            return
        self.wrong(
            f"not done {seconds:.0f} s after the last fault: {self._publishing} publishes, "
            f"programs {'done' if self._all_sent() else 'not done'}, "
            + "; ".join(f"{g} {eyes.pending(g, input_of(g))[:5]}" for g in self.plan.groups for eyes in self.partitions)
        )

    def _all_sent(self) -> bool:
        """What the impatient have given up may still be on its way."""
        sent = self._publisher is None or not self._publisher.statistics().waiting_bytes
        return sent and (self.programs is None or self.programs.settled())

    def _done(self, eyes: Eyes) -> bool:
        """Nothing waits in this partition, for a group or for its time."""
        keys, here = eyes.keys, {site.name for site in self.sites.values() if not site.dead}
        names = {group: input_of(group) for group in self.plan.groups}
        names |= {one.group: "sim.placed" for who, one in self.history.instances.items() if who in here}
        inbox = eyes.call("XREVRANGE", eyes.stream(LATER_INBOX), "+", "-", "COUNT", 1)
        read = not inbox or sorted_until(eyes.call("XINFO", "GROUPS", eyes.stream(LATER_INBOX))) == inbox[0][0]
        return (
            read
            and not eyes.call("ZCARD", keys.timers)
            and all(self._is_through(eyes, group, event_type) for group, event_type in names.items())
        )

    def _is_through(self, eyes: Eyes, group: str, event_type: str) -> bool:
        stream = eyes.stream(event_type)
        if not eyes.call("EXISTS", stream):
            return False
        info = next((row for row in _groups(eyes, stream) if row[b"name"] == group.encode()), None)
        last = pairs(eyes.call("XINFO", "STREAM", stream))[b"last-generated-id"]
        return info is not None and info[b"pending"] == 0 and info[b"last-delivered-id"] == last

    async def _be_idle(self) -> None:
        """Nothing to do: few commands. What a worker holds that the server has forgotten is still to be run then."""
        await trio.sleep(0.5)
        for _ in range(20):
            before, runs = Counter(self.network.commands), len(self.history.runs)
            await trio.sleep(IDLE_SECONDS)
            if len(self.history.runs) == runs and not any(run.end == "runs" for run in self._active.values()):
                break
        for site in self.sites.values():
            rate = (self.network.commands[site.name] - before[site.name]) / IDLE_SECONDS
            if rate > IDLE_COMMANDS * self._shares(site):
                self.wrong(f"{site.name} sends {rate:.1f} packets a second with nothing to do")

    def _shares(self, site: Site) -> int:
        """How many groups in how many partitions a process works for; a publisher counts as one, retention too."""
        groups = len(self.plan.groups) + ("instances" in self.plan.parts) if site.kind == "worker" else 1
        return (groups + ("retention" in self.plan.parts)) * self.plan.partitions

    async def _leave(self) -> None:
        for site in self.sites.values():
            if not site.leave.is_set():
                site.leave.set()
                site.leaving_since = trio.current_time()
        while self._still_up:
            await trio.sleep(0.05)

    def seen(self) -> Counter[str]:
        """What happened, counted."""
        seen = Counter(self.network.seen)
        if self.programs is not None:
            seen += self.programs.seen
        for run in self.history.runs:
            seen[f"run {run.end}"] += 1
            if run.attempt > 1:
                seen["retry"] += 1
        for eyes in self.partitions:
            for group in self.plan.groups:
                seen.update(f"dead letter: {letter.reason}" for letter in eyes.dead(group))
            seen.update(f"loss: {loss.reason}" for loss in eyes.events("bus.loss"))
            seen.update("timer fired" for _ in eyes.events("sim.rung"))
            seen.update("seen by an instance" for _ in eyes.events("sim.seen"))
        return seen

    # --- processes -----------------------------------------------------------------------------------------------

    async def _keep_alive(self, kind: str, number: int) -> None:
        """Start a process, again and again."""
        lives = 0
        while not self.over:
            site = self.sites[f"{kind} {number}"] = Site(f"{kind} {number}.{lives}", kind, number)
            lives += 1
            self.note(site.name, "starts")
            ended = ""
            try:
                with site.scope:
                    if kind == "worker":
                        await self._work(site)
                    elif kind == "producer":
                        assert self.programs is not None
                        await self.programs.live(site)
                    else:
                        await self._publish(site)
                    ended = "left"
                    self._check_left(site)
            except* Killed:
                pass
            except* HotLoop as group:
                self.wrong(f"{site.name}: {group.exceptions[0]}")
            except* Unavailable as group:
                ended = f"could not start: {group.exceptions[0]}"
            except* Exception as group:
                import traceback

                self.wrong(f"{site.name} crashed by itself: {''.join(traceback.format_exception(group)[-30:])}")
            for run in self._active.values():
                if run.site is site and run.end == "runs":
                    run.end = "killed"
            if site.name in self.history.instances:
                self.history.instances[site.name].stayed = self.over
            self.note(site.name, ended or "is dead")
            if not ended and not site.dead:
                self.wrong(f"{site.name} ended by itself")
            if not self.over:
                await trio.sleep(self.dice.uniform(0.1, 3.0))
        self._still_up.discard(f"{kind} {number}")

    async def _work(self, site: Site) -> None:
        bus = EventBus("memory://", namespace="sim", grace=self.plan.grace, partitions=self.plan.partitions)
        replace_server(bus, SimServer(self.network, site))
        for group in self.plan.groups:
            bus.add(self._worker(site, group))
        if "instances" in self.plan.parts:
            bus.add(self._watcher(site))
        async with bus:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look, site, bus)
                if "instances" in self.plan.parts:
                    nursery.start_soon(self._note_instance, site, bus)
                await site.leave.wait()
                nursery.cancel_scope.cancel()
            self.note(site.name, "leaves")

    async def _note_instance(self, site: Site, bus: EventBus) -> None:
        await bus.wait_ready()
        group = next(one.group for one in bus._runners if one.worker.group is PER_INSTANCE)
        self.history.instances[site.name] = Instance(group, clock.time_ns() // 1_000_000 + 1)

    async def _look(self, site: Site, bus: EventBus) -> None:
        """Somebody who asks over the bus's own link, and does not always wait for the answer."""
        asked = 0

        async def ask(word: bytes, patience: float) -> None:
            with trio.move_on_after(patience):
                try:
                    reply = await bus.link.call("ECHO", word)
                except Unavailable:
                    return
                if isinstance(reply, bytes) and reply != word:
                    self.wrong(f"{site.name} asked for {word!r} and was given {reply!r}")

        while True:
            await trio.sleep(self.dice.uniform(0.5, 1.5))
            asked += 1
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    word = f"{site.name} {asked}.{number}".encode()
                    nursery.start_soon(ask, word, self.dice.choice([0.0, 0.001, 0.1, 5.0]))

    # --- handlers ------------------------------------------------------------------------------------------------

    def _worker(self, site: Site, group: str) -> Worker:
        plan, worker = self.plan, Worker(group)
        takes, gives = GROUPS[group]
        retry = Backoff(plan.attempts, base=0.2, cap=1.0)
        breaker = Breaker(3, 10.0, 0.5, 2.0, (ConnectionError,)) if "breaker" in plan.parts else None
        if plan.batch:

            @worker.on_batch(takes, max_size=plan.concurrency, max_wait=0.05, timeout=plan.timeout, retry=retry)
            async def handle_batch(events: list[Any], ctxs: list[Context]) -> list[tuple[int, Event]]:
                for event, ctx in zip(events, ctxs, strict=True):
                    await self._handle(site, group, event.n, ctx)
                return [(i, gives(n=event.n)) for i, event in enumerate(events)]

        else:

            @worker.on(takes, concurrency=plan.concurrency, timeout=plan.timeout, retry=retry, breaker=breaker)
            async def handle(event: Any, ctx: Context) -> list[Event | Later | Cancel]:
                await self._handle(site, group, event.n, ctx)
                timer = timer_of(event.n) if "timers" in plan.parts and group == "framers" else None
                if timer is None:
                    return [gives(n=event.n)]
                if timer.after is None:
                    return [gives(n=event.n), Cancel(timer.name)]
                return [gives(n=event.n), Later(Rung(n=event.n), after=timer.after, timer=timer.name or None)]

        return worker

    def _watcher(self, site: Site) -> Worker:
        worker = Worker("watchers", group=PER_INSTANCE)

        @worker.on(Placed)
        async def see(event: Placed) -> Seen:
            await trio.sleep(event.n % 3 / 10)
            return Seen(n=event.n, who=site.name)

        return worker

    async def _handle(self, site: Site, group: str, n: int, ctx: Context) -> None:
        settler = ctx._delivery.topic.settler
        partition = settler.keys.partition
        suspect = ctx._delivery.suspect
        run = Run(group, n, partition, ctx.entry_id, site, settler.consumer, ctx.attempt, suspect, trio.current_time())
        self._check_alone(run)
        expired = input_of(group) == "sim.placed" and clock.time() > self.history.stale.get(n, math.inf) + 0.001
        if expired and not self.plan.batch:  # there one waits for the others
            self.wrong(f"{group} {n} began after it had expired")
        self._active[group, partition, run.entry_id] = run
        self.history.runs.append(run)
        try:
            late = self.plan.behaviours[n] in ("slow", "hangs", "kills")  # others would wait for what it holds
            if not late:
                await self._count(run, ctx)
            await self._behave(run)
            if late:
                await self._count(run, ctx)
            run.end = "returned"
        except trio.Cancelled:
            run.end = "killed" if site.dead else "cancelled"
            raise
        except BaseException as error:
            ends: dict[type, str] = {RetryLater: "later", Reject: "rejected", ConnectionError: "down"}
            run.end = ends.get(type(error), "raised")
            if isinstance(error, Unavailable):
                self.wrong(f"{group} {n} has failed because the server was away: {error}")
            raise
        finally:
            run.ended = trio.current_time()
            self.note(site.name, f"{group} {n} attempt {run.attempt} {run.end}")

    async def _count(self, run: Run, ctx: Context) -> None:
        """One more in a state, and a part of its own."""
        if "state" in self.plan.parts:
            ctx.parts("all", int).put(str(run.n), run.n)
            state = await ctx.state(f"count {run.n % 5}", int)
            await trio.sleep(run.n % 4 / 40)
            state.value += 1

    def _check_dead(self, beats: bytes, name: bytes) -> None:
        """Nobody is taken for dead who is well."""
        now, network = trio.current_time(), self.network
        if network.away or network.mood or now < network.calm_from:
            return
        for site in self.sites.values():
            alive = site.incarnations.get(beats, [b""])[-1] == name and not site.dead and not site.leave.is_set()
            if alive and site.troubled(now) < 3:
                self.wrong(f"{site.name} is taken for dead, and is well")

    def _check_left(self, site: Site) -> None:
        """Whoever leaves undisturbed leaves nothing behind."""
        now, network = trio.current_time(), self.network
        unwell = network.away or network.mood or now < network.calm_from or site.troubled(now) >= 1000
        if site.kind != "worker" or unwell or any(time >= site.leaving_since - 0.5 for time in site.troubles):
            return
        names = {name.decode() for all_names in site.incarnations.values() for name in all_names[-1:]}
        for eyes in self.partitions:
            for group in self.plan.groups:
                there = {row[0].decode() for row in eyes.call("XRANGE", eyes.stream(input_of(group)), "-", "+")}
                left = [i for i, owner, _ in eyes.pending(group, input_of(group)) if owner in names and i in there]
                if left:
                    self.wrong(f"{site.name} has left, and {group} {left} are pending in its name")

    def _check_alone(self, run: Run) -> None:
        """Nobody else runs it, but for those whom others may take for dead."""
        other, history = self._active.get((run.group, run.partition, run.entry_id)), self.history
        if other is None or other.end != "runs":
            return
        if history.cut and other.began >= history.cut.since:  # the server has forgotten whom it gave it to
            return
        if run.entry_id in history.lost_pending.get(run.group, ()) or run.entry_id in history.lost_done.get(
            run.group, ()
        ):
            return
        keys = self.partitions[run.partition].keys
        if all(self.eyes.call("GET", keys.fence(one.consumer)) != b"dead" for one in (run, other)):
            self.wrong(f"{run.group} {run.n} runs in {other.site.name}, and {run.site.name} begins it too")

    async def _behave(self, run: Run) -> None:
        behaviour = self.plan.behaviours[run.n]
        if self.plan.away[0] <= trio.current_time() < self.plan.away[1] and behaviour != "kills":
            raise ConnectionError("what is outside is away")
        times = self.failed
        key = run.group, run.n, behaviour

        def first(count: int) -> bool:
            times[key] += 1
            return times[key] <= count

        if behaviour == "brief":
            await trio.sleep(run.n % 10 / (50 if "state" in self.plan.parts else 10))
        elif behaviour == "slow":
            await trio.sleep(5.5 + run.n % 2)
        elif behaviour == "hangs" and first(1):
            await trio.sleep_forever()
        elif behaviour == "later" and first(2):
            raise RetryLater(0.5)
        elif behaviour == "rejected":
            raise Reject("no")
        elif behaviour == "poison" or behaviour.startswith("fails"):
            await trio.sleep(run.n % 3 / 10)
            if first({"fails once": 1, "fails twice": 2}.get(behaviour, 1 << 30)):
                raise Boom(run.n)
        elif behaviour == "kills":
            self.note(run.site.name, f"killed by its handler of {run.n}")
            self.history.deaths["killed by an event"] += 1
            run.end = "kills"
            run.site.kill()
            await trio.sleep_forever()

    # --- publishing ----------------------------------------------------------------------------------------------

    async def _publish(self, site: Site) -> None:
        bus = EventBus("memory://", namespace="sim", patience=self.plan.patience, partitions=self.plan.partitions)
        replace_server(bus, SimServer(self.network, site))
        todo = self.plan.publishes
        async with bus, trio.open_nursery() as nursery:
            self._publisher = bus._publisher
            while todo:
                await trio.sleep_until(todo[0].at)
                nursery.start_soon(self._publish_one, bus, todo.pop(0))
            while self._publishing:
                await trio.sleep(0.1)
            await site.leave.wait()

    async def _publish_one(self, bus: EventBus, publish: Publish) -> None:
        fate, entry, numbers = self.history.fate, self.history.entry, publish.numbers
        fate.update(dict.fromkeys(numbers, "unknown"))
        n = numbers[0]
        if publish.how == "stale":
            self.history.stale[n] = clock.time() + STALE_SECONDS
        try:
            if publish.how == "many":
                try:
                    entry.update(zip(numbers, await bus.publish_many([Placed(n=n) for n in numbers]), strict=True))
                    fate.update(dict.fromkeys(numbers, "accepted"))
                except* (Unavailable, StreamFull):
                    pass  # which of them it does not say
            elif publish.how == "foreign":
                written = self.eyes.put(self.dice.choice([b"", b"\xc1", b"{", b'{"data": 1}']), "sim.placed")
                self.history.foreign.add(written)
                fate[n] = "refused"
            else:
                event = Placed(n=n, weight=float("nan") if publish.how == "bad" else 0.0)
                with trio.move_on_after(self.dice.uniform(0, 0.01) if publish.how == "impatient" else 1e9):
                    delay = n % 5 if publish.how == "delayed" else None
                    if delay is not None:
                        self.history.due[n] = clock.time() * 1000 + delay * 1000
                    found = await bus.publish(
                        event, expires_in=STALE_SECONDS if publish.how == "stale" else None, delay=delay
                    )
                    assert found is not None
                    entry[n] = found
                    fate[n] = "accepted"
        except (EncodeError, StreamFull):
            fate[n] = "refused"
        except Unavailable as error:
            fate[n] = "unknown" if error.ambiguous else "refused"
        finally:
            self._publishing -= 1
            self.note("publisher", f"{publish.how} {numbers[0]}-{numbers[-1]}: {fate[n]}")

    # --- faults --------------------------------------------------------------------------------------------------

    async def _happen(self, what: Happening, nursery: trio.Nursery) -> None:
        await trio.sleep(what.at)
        network, site = self.network, self.sites[f"worker {what.who % self.plan.processes}"]
        self.note("world", f"{what.kind} {what.who} {what.seconds:.2f} {what.how}")
        network.seen[f"fault: {what.kind}"] += 1
        if what.kind == "kill":
            self.history.deaths["killed"] += 1
            if what.how == "now":
                await self._be_busy(site)
                site.kill()
            else:
                site.falls_at = int(what.seconds), what.how
        elif what.kind in ("late", "lose"):
            site.next_fate = what.kind
        elif what.kind in ("publish late", "publish lost"):
            self.sites["publisher 0"].next_fate = "late" if what.kind == "publish late" else "lose"
        elif what.kind == "kill publisher":
            self.sites["publisher 0"].kill()
        elif "producer" in what.kind:
            assert self.programs is not None
            await self.programs.happen(what)
        elif what.kind == "stop":
            await self._be_busy(site, many=2)
            if what.how:  # it goes while what it has said last is on its way, or has missed what it was told last
                site.next_fate = what.how
                with trio.move_on_after(1.0):
                    while site.next_fate:
                        await trio.sleep(0.01)
                await trio.sleep(0.6 if what.how == "mute" else 0.0)
            if not site.leave.is_set():
                site.leave.set()
                site.leaving_since = trio.current_time()
        elif what.kind == "pause":
            self.history.deaths["paused"] += 1
            site.awake = trio.Event()
            await trio.sleep(what.seconds)
            site.awake.set()
            site.calm_from = trio.current_time() + CALM_SECONDS
        elif what.kind == "cut off":
            self.history.deaths["cut off"] += 1
            site.unreachable = what.how
            self._break([site], what.how)
            await trio.sleep(what.seconds)
            site.unreachable = ""
            site.calm_from = trio.current_time() + CALM_SECONDS
        elif what.kind == "outage":
            await self._be_away(what)
        elif what.kind == "mood":
            network.mood = what.how
            await trio.sleep(what.seconds)
            network.mood = ""
            self._recover()
        elif what.kind == "restart":
            await self._restart(what)
        elif what.kind == "clock":
            wall = clock.current()
            assert isinstance(wall, TrioClock)
            wall.jump(what.seconds)
        elif what.kind == "scripts flushed":
            self.eyes.call("SCRIPT", "FLUSH")
        elif what.kind == "trim":
            self._trim()
        elif what.kind == "group lost":
            await self._be_busy(many=2)
            if not self.healed:
                self._destroy(self.plan.groups[what.who % len(self.plan.groups)])

    async def _be_busy(
        self, site: Site | None = None, since: float = 0.0, many: int = 1, patience: float = 2.0
    ) -> None:
        """Wait until a process (None: any) has something in its hands that began after a moment, for a while."""
        deadline = trio.current_time() + patience
        while trio.current_time() < deadline:
            busy = [run for run in self._active.values() if site in (None, run.site) and run.end == "runs"]
            if sum(run.began >= since for run in busy) >= many:
                return
            await trio.sleep(0.01)

    async def _be_away(self, what: Happening) -> None:
        network = self.network
        await self._be_busy()
        if self.healed:
            return
        network.away = what.how
        self._break(list(self.sites.values()), what.how)
        await trio.sleep(1.0 if what.seconds > 2 else 0.0)  # the first attempts come fast
        before = Counter(network.commands)
        seconds = what.seconds - 1
        await trio.sleep(max(seconds, 0.5))
        for site in self.sites.values():
            rate = (network.commands[site.name] - before[site.name]) / max(seconds, 1.0)
            if network.away and seconds > 1 and rate > OUTAGE_COMMANDS * self._shares(site):
                self.wrong(f"{site.name} tries {rate:.1f} times a second while the server is away")
        network.away = ""
        self._recover()

    def _recover(self) -> None:
        """All have been in trouble, and are no longer."""
        self.network.calm_from = trio.current_time() + CALM_SECONDS

    async def _restart(self, what: Happening) -> None:
        """The server ends, and comes back with what it had some time before that. "commit late": what each worker commits
        next is late, before it ends and after it has come back."""
        data, since, from_ms = self.network.copy(), trio.current_time(), clock.time_ns() // 1_000_000
        gone = [
            {stream: [*rows] for stream, rows in of.items()} for of in (self.history.trimmed, self.history.retained)
        ]
        late = what.how == "commit late"
        if late:
            self._commit_late()
        await trio.sleep(what.seconds)
        await self._be_busy(since=since, patience=5.0)
        if self.healed:
            return
        self.network.away = "refuse" if late else what.how
        self._break(list(self.sites.values()), "refuse")
        self.network.restart(data)
        if late:
            self._commit_late()
        for of, before in zip((self.history.trimmed, self.history.retained), gone, strict=True):
            of.clear()  # what was trimmed since is there again, or never was
            of.update(before)
        self.history.cut = Cut(since, range(from_ms, clock.time_ns() // 1_000_000 + 1))
        await trio.sleep(what.seconds / 4)
        self.network.away = ""
        self._recover()

    def _commit_late(self) -> None:
        for site in self.sites.values():
            if site.kind == "worker":
                site.next_fate = "commit late"

    async def _retain(self) -> None:
        """Set the targets as soon as every group is declared: a group that is not keeps nothing."""
        keep = Retention(max_age=None, max_length=self.plan.keep, cap=self.plan.cap, when_full="reject")
        policy = msgspec.json.encode(keep)
        for eyes in self.partitions:
            while not {*self.plan.groups} <= {name.decode() for name in eyes.call("HKEYS", eyes.keys.groups)}:
                await trio.sleep(0.1)
            eyes.call("HSET", eyes.keys.retention, "sim.placed", policy)
            if "hangers" in self.plan.groups:
                eyes.call("HSET", eyes.keys.retention, "sim.framed", policy)

    def _before_trim(self, stream: bytes) -> Callable[[list[list[Any]]], None]:
        """Remember what the declared groups have handled, to see that nothing else goes. What the groups of single processes
        have not read counts from when these have joined to their end; a minute after that it counts no more."""
        eyes = next(eyes for eyes in self.partitions if stream.startswith(eyes.keys.topics.removesuffix(b"topics")))
        here = {site.name for site in self.sites.values() if not site.dead}
        living = {one.group.encode() for who, one in self.history.instances.items() if who in here}
        declared = {name for name in eyes.call("HKEYS", eyes.keys.groups) if b"@" not in name or name in living}
        event_type = stream.rpartition(b":")[2].decode()
        read = {}
        for row in _groups(eyes, stream):
            name = row[b"name"].decode()
            if row[b"name"] in declared:
                pending = {entry_id.encode() for entry_id, _, _ in eyes.pending(name, event_type)}
                read[name] = _order(row[b"last-delivered-id"]), pending

        def told(gone: list[list[Any]]) -> None:
            self.note("world", f"{event_type}: retention removed {len(gone)} up to {gone[-1][0].decode()}")
            self.history.retained[stream] += [(row[0].decode(), row[1]) for row in gone]
            for name, (cursor, pending) in read.items():
                early = [row[0].decode() for row in gone if row[0] in pending or _order(row[0]) > cursor]
                if early:
                    self.wrong(f"retention removed {early} of {event_type}, which {name} has not handled")

        return told

    def _break(self, sites: list[Site], how: str) -> None:
        if how == "refuse":
            for site in sites:
                for connection in list(site.connections):
                    connection.break_off("reset")

    def _trim(self) -> None:
        """Trim what every group has read, handled or not."""
        event_type = "sim.placed"
        for eyes in self.partitions:
            stream = eyes.stream(event_type)
            if not eyes.call("EXISTS", stream):
                continue
            cursors = [_order(row[b"last-delivered-id"]) for row in _groups(eyes, stream)]
            if len(cursors) < sum(input_of(group) == event_type for group in self.plan.groups):
                continue
            rows = [row for row in eyes.call("XRANGE", stream, "-", "+") if _order(row[0]) <= min(cursors)]
            rows = rows[: self.dice.randrange(len(rows) + 1)]
            if rows:
                self.history.trimmed[stream] += [(row[0].decode(), row[1]) for row in rows]
                milliseconds, sequence = _order(rows[-1][0])
                eyes.call("XTRIM", stream, "MINID", f"{milliseconds}-{sequence + 1}")
                self.note("world", f"trimmed {len(rows)} entries")

    def _destroy(self, group: str) -> None:
        stream = self.eyes.stream(input_of(group))
        if group in self.history.lost_pending or not self.eyes.call("EXISTS", stream):
            return
        infos = _groups(self.eyes, stream)
        cursor = next((_order(info[b"last-delivered-id"]) for info in infos if info[b"name"] == group.encode()), None)
        if cursor is None:
            return
        pending = {entry_id for entry_id, _, _ in self.eyes.pending(group, input_of(group))}
        there = self.eyes.call("XRANGE", stream, "-", "+")
        read = {row[0].decode() for row in there if _order(row[0]) <= cursor}
        history = self.history
        read |= {entry_id for entry_id, _ in [*history.trimmed[stream], *history.retained[stream]]}
        self.history.lost_pending[group] = pending
        self.history.lost_done[group] = read - pending
        self.eyes.call("XGROUP", "DESTROY", stream, group)


def input_of(group: str) -> str:
    """The type that a group of the plan reads."""
    return registry.of(GROUPS[group][0]).name


def _groups(eyes: Eyes, stream: bytes) -> list[dict[bytes, Any]]:
    return [pairs(row) for row in eyes.call("XINFO", "GROUPS", stream)] if eyes.call("EXISTS", stream) else []


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
