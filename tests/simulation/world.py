"""One simulated run: processes with real Workers, EventBuses and publishers, and what happens to them.

A "process" is an EventBus with its own way to the server (network.Site). What its handlers do is in the plan; what they
did, what was published and what was done to the server is written down for the judge (judge.py).
"""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import trio
from simulation.faults import Faults, groups_of
from simulation.handlers import STUCK_RUNS, Handlers
from simulation.history import History, Instance
from simulation.lockstep import Killed
from simulation.network import HotLoop, Network, SimServer
from simulation.plan import STALE_SECONDS, Placed, Plan, Publish, input_of
from simulation.producers import Programs
from simulation.site import CALM_SECONDS, Site
from simulation.weather import CALM
from studio import Eyes, replace_server

from canvasbus import EncodeError, Unavailable, clock
from canvasbus.bus import PER_INSTANCE, EventBus, Retention
from canvasbus.errors import StreamFull
from canvasbus.operate.timers import sorted_until
from canvasbus.produce.publisher import Publisher
from canvasbus.transport.resp import pairs
from canvasbus.wire.keys import LATER_INBOX

HEAL_SECONDS = 40.0
"""In which everything must be done once the faults are over: the heartbeat limit, a lease, suspects one by one."""

NOTICE_SECONDS = 0.5
"""Whoever leaves may be so late to notice that the server is there again."""

IDLE_SECONDS = 3.0
IDLE_COMMANDS = 30.0
"""Packets a second that an idle worker may send, for each of its groups."""


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
        self.unstuck = False
        """All that does not hang is done, and what hangs goes on."""
        self.handlers = Handlers(self)
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
            self.faults = Faults(self)
            self.network.before_trim, self.network.on_reap = self.faults.before_trim, self._check_dead
            self.network.on_rejoin = self._check_rejoined
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
                nursery.start_soon(self.faults.happen, happening, nursery)
            if "retention" in self.plan.parts:
                nursery.start_soon(self.faults.retain)
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
        self.eyes.call("DEL", *map(self.eyes.keys.paused, self.plan.groups))
        if self.programs is not None:
            self.programs.heal()
        if network.mood or network.away:
            network.mood = network.away = ""
            self.faults.recover()
        for site in self.sites.values():
            if site.unreachable or not site.awake.is_set():
                site.calm_from = trio.current_time() + CALM_SECONDS
            site.unreachable = ""
            site.falls_at = None
            site.awake.set()

    async def _be_done(self) -> None:
        """Wait until everything that was published is done, first what does not hang."""
        plan = self.plan
        behaviours = Counter(plan.behaviours.values())
        kills = "kills" in behaviours  # for each group that costs some workers, one after the other
        seconds = HEAL_SECONDS * (len(plan.groups) if kills else 1)
        # What takes long does so in each group, and where there is one slot everything waits for it.
        long = plan.timeout * (behaviours["hangs"] + behaviours["slow"]) * len(plan.groups)
        seconds += long / (plan.processes * plan.concurrency)
        seconds += 2 * plan.timeout * STUCK_RUNS * behaviours["stuck"]  # so long suspects wait for one of them that is
        with trio.move_on_after(seconds):
            while self._publishing or not self._all_sent() or not all(map(self._done, self.partitions)):
                await trio.sleep(0.5)
            if "stuck" in behaviours:
                await self._check_beating()
            self.unstuck = True
            while not all(map(self._done, self.partitions)):
                await trio.sleep(0.5)
            self.note("world", "everything is done")
            return
        self.wrong(
            f"not done {seconds:.0f} s after the last fault: {self._publishing} publishes, "
            f"programs {'done' if self._all_sent() else 'not done'}, "
            + "; ".join(f"{g} {eyes.pending(g, input_of(g))[:5]}" for g in self.plan.groups for eyes in self.partitions)
        )

    async def _check_beating(self) -> None:
        """Whoever is there takes part, whatever hangs in it."""

        def beats() -> dict[tuple[str, bytes, bytes], int]:
            return {
                (site.name, key, names[-1]): int(self.eyes.call("HGET", key, names[-1]) or 0)
                for site in self.sites.values()
                for key, names in site.incarnations.items()
                if site.kind == "worker" and not site.dead and not site.leave.is_set()
            }

        before = beats()
        await trio.sleep(IDLE_SECONDS)
        for life, count in beats().items():  # which may have begun meanwhile
            if count <= before.get(life, 0):
                self.wrong(f"{life[0]} takes no part in {life[1].decode()}")

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

    def cursors(self, group: str) -> list[bytes]:
        """How far a group has read, in each partition."""
        rows = [row for eyes in self.partitions for row in groups_of(eyes, eyes.stream(input_of(group)))]
        return [row[b"last-delivered-id"] for row in rows if row[b"name"] == group.encode()]

    def _is_through(self, eyes: Eyes, group: str, event_type: str) -> bool:
        stream = eyes.stream(event_type)
        if not eyes.call("EXISTS", stream):
            return False
        info = next((row for row in groups_of(eyes, stream) if row[b"name"] == group.encode()), None)
        if info is None or eyes.call("XRANGE", stream, b"(" + info[b"last-delivered-id"], "+", "COUNT", 1):
            return False
        retry = eyes.keys.retry(group, event_type)
        for row in groups_of(eyes, retry):
            last = pairs(eyes.call("XINFO", "STREAM", retry))[b"last-generated-id"]
            if row[b"pending"] or row[b"last-delivered-id"] != last:
                return False
        if eyes.call("EXISTS", retry) and not groups_of(eyes, retry):
            return False
        pending = eyes.pending(group, event_type) if info[b"pending"] else []
        return all(self.handlers.is_stuck(group, eyes.keys.partition, entry_id) for entry_id, _, _ in pending)

    async def _be_idle(self) -> None:
        """Nothing to do: few commands. What a worker holds that the server has forgotten is still to be run then."""
        await trio.sleep(0.5)
        for _ in range(20):
            before, runs = Counter(self.network.commands), len(self.history.runs)
            await trio.sleep(IDLE_SECONDS)
            if len(self.history.runs) == runs and not any(run.end == "runs" for run in self.handlers.active.values()):
                break
        for site in self.sites.values():
            rate = (self.network.commands[site.name] - before[site.name]) / IDLE_SECONDS
            if rate > IDLE_COMMANDS * self.shares(site):
                self.wrong(f"{site.name} sends {rate:.1f} packets a second with nothing to do")

    def shares(self, site: Site) -> int:
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
            for run in self.handlers.active.values():
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
            bus.add(self.handlers.worker(site, group))
        if "instances" in self.plan.parts:
            bus.add(self.handlers.watcher(site))
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

    def _check_dead(self, beats: bytes, name: bytes) -> None:
        """Nobody is taken for dead who is well."""
        now, network = trio.current_time(), self.network
        if network.away or network.mood or now < network.calm_from:
            return
        for site in self.sites.values():
            alive = site.incarnations.get(beats, [b""])[-1] == name and not site.dead and not site.leave.is_set()
            if alive and site.troubled(now) < 3:
                self.wrong(f"{site.name} is taken for dead, and is well")

    def _check_rejoined(self, site: Site, before: bytes) -> None:
        """Nobody goes on under another name whom others have not taken for dead: it costs what it holds an attempt."""
        marks = [eyes.call("GET", eyes.keys.fence(before.decode())) for eyes in self.partitions]
        if b"dead" not in marks and not self.plan.happens("restart"):
            self.wrong(f"{site.name} joins again, and nobody has taken it for dead")

    def _check_left(self, site: Site) -> None:
        """Whoever leaves undisturbed leaves nothing behind."""
        now, network = trio.current_time(), self.network
        # What it had in hand, in a group that was lost meanwhile, nobody else knows of.
        if network.away or now - network.back < NOTICE_SECONDS:
            site.troubles.append(now)
        unwell = network.away or network.mood or now < network.calm_from or site.troubled(now) >= 1000
        since = site.leaving_since - 0.5
        if site.kind != "worker" or unwell or any(time >= since for time in (*site.troubles, site.delayed)):
            return
        names = {name.decode() for all_names in site.incarnations.values() for name in all_names[-1:]}
        for eyes in self.partitions:
            for group in self.plan.groups:
                there = {row[0].decode() for row in eyes.call("XRANGE", eyes.stream(input_of(group)), "-", "+")}
                left = [i for i, owner, _ in eyes.pending(group, input_of(group)) if owner in names and i in there]
                if left:
                    self.wrong(f"{site.name} has left, and {group} {left} are pending in its name")

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
