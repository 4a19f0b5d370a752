"""One simulated run: processes with real Workers, EventBuses and publishers, and what happens to them.

A "process" is an EventBus with its own way to the server (network.Site). What its handlers do is in the plan; what they
did, what was published and what was done to the server is written down for the judge (judge.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio
from simulation.network import CALM, HotLoop, Killed, Network, SimServer, Site
from simulation.plan import GROUPS, Happening, Placed, Plan, Publish
from studio import Eyes, replace_server

from canvasbus import EncodeError, Event, Unavailable
from canvasbus.bus import EventBus
from canvasbus.consume.policy import Backoff, Reject, RetryLater
from canvasbus.contract.registry import registry
from canvasbus.transport.resp import pairs
from canvasbus.worker import Context, Worker

HEAL_SECONDS = 40.0
"""In which everything must be done once the faults are over: the heartbeat limit, a lease, suspects one by one."""

IDLE_SECONDS = 3.0
IDLE_COMMANDS = 20.0
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
    entry_id: str
    site: Site
    consumer: str
    attempt: int
    began: float
    end: str = "runs"
    """returned, raised, later, rejected, cancelled, killed"""


@dataclass
class History:
    """What the judge needs to know."""

    fate: dict[int, str] = field(default_factory=dict)
    """Of each event: accepted, refused or unknown."""
    entry: dict[int, str] = field(default_factory=dict)
    """The entry ids of what was accepted."""
    foreign: set[str] = field(default_factory=set)
    """Entry ids of what strangers wrote."""
    trimmed: dict[str, list[tuple[str, list[bytes]]]] = field(default_factory=lambda: defaultdict(list))
    """By type: entries that were trimmed by hand."""
    lost_pending: dict[str, set[str]] = field(default_factory=dict)
    """By group that was destroyed: the entry ids that were pending then."""
    lost_done: dict[str, set[str]] = field(default_factory=dict)
    """The same: those that were acknowledged."""
    runs: list[Run] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)
    """Kills, pauses and cut networks: each may cost what ran an attempt. Stops do not."""
    stale: set[int] = field(default_factory=set)
    """Events that expire soon: handled or skipped."""
    wrong: list[str] = field(default_factory=list)
    """What was seen to be wrong on the way."""


class World:
    """One run of a plan."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self.plan = plan
        self.dice = Random(f"{plan.seed} world")
        self.history = History()
        self.log: list[str] = []
        self.trace = trace
        self.sites: dict[str, Site] = {}
        self.over = False
        self.failed: dict[tuple[str, int, str], int] = defaultdict(int)
        self._active: dict[tuple[str, str], Run] = {}
        self._publishing = len(plan.publishes)
        self._still_up: set[str] = set()

    def note(self, who: str, what: str) -> None:
        line = f"{trio.current_time():8.3f}  {who:12} {what}"
        self.log.append(line)
        if self.trace:
            print(line)

    def wrong(self, what: str) -> None:
        self.note("WRONG", what)
        self.history.wrong.append(what)

    # --- the run -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole run; what is wrong is in the history."""
        async with trio.open_nursery() as nursery:
            self.network = Network(Random(f"{self.plan.seed} network"), nursery, self.note)
            self.eyes = Eyes(self.network.memory, "sim")
            self.network.weather = self.plan.weather
            for number in range(self.plan.processes):
                self._still_up.add(f"worker {number}")
                nursery.start_soon(self._keep_alive, "worker", number)
            self._still_up.add("publisher 0")
            nursery.start_soon(self._keep_alive, "publisher", 0)
            for happening in self.plan.happenings:
                nursery.start_soon(self._happen, happening, nursery)
            await trio.sleep(self.plan.seconds)
            self._heal()
            await self._be_done()
            if not self.history.wrong:
                await self._be_idle()
            self.over = True
            with trio.move_on_after(20) as scope:
                await self._leave()
            if scope.cancelled_caught:
                self.wrong(f"did not leave within 20 s: {sorted(self._still_up)}")
            nursery.cancel_scope.cancel()

    def _heal(self) -> None:
        self.note("world", "no more faults")
        network = self.network
        network.weather, network.mood, network.away = CALM, "", ""
        for site in self.sites.values():
            site.unreachable = ""
            site.falls_at = None
            site.awake.set()

    async def _be_done(self) -> None:
        """Wait until everything that was published is done."""
        with trio.move_on_after(HEAL_SECONDS):
            while self._publishing or not all(self._done(group) for group in self.plan.groups):
                await trio.sleep(0.5)
            self.note("world", "everything is done")
            return
        self.wrong(
            f"not done {HEAL_SECONDS:.0f} s after the last fault: {self._publishing} publishes, "
            + "; ".join(f"{g} {self.eyes.pending(g, _input(g))[:5]}" for g in self.plan.groups)
        )

    def _done(self, group: str) -> bool:
        stream = self.eyes.stream(_input(group))
        if not self.eyes.call("EXISTS", stream):
            return False
        info = next((row for row in self._rows("GROUPS", stream) if row[b"name"] == group.encode()), None)
        last = pairs(self.eyes.call("XINFO", "STREAM", stream))[b"last-generated-id"]
        return info is not None and info[b"pending"] == 0 and info[b"last-delivered-id"] == last

    def _rows(self, what: str, *where: bytes | str) -> list[dict[bytes, Any]]:
        return [pairs(row) for row in self.eyes.call("XINFO", what, *where)]

    async def _be_idle(self) -> None:
        """Nothing to do: few commands."""
        await trio.sleep(0.5)
        before = Counter(self.network.commands)
        await trio.sleep(IDLE_SECONDS)
        for site in self.sites.values():
            rate = (self.network.commands[site.name] - before[site.name]) / IDLE_SECONDS
            most = IDLE_COMMANDS * (len(self.plan.groups) if site.kind == "worker" else 1)
            if rate > most:
                self.wrong(f"{site.name} sends {rate:.1f} packets a second with nothing to do")

    async def _leave(self) -> None:
        for site in self.sites.values():
            site.leave.set()
        while self._still_up:
            await trio.sleep(0.05)

    def seen(self) -> Counter[str]:
        """What happened, counted."""
        seen = Counter(self.network.seen)
        for run in self.history.runs:
            seen[f"run {run.end}"] += 1
            if run.attempt > 1:
                seen["retry"] += 1
        for group in self.plan.groups:
            seen.update(f"dead letter: {letter.reason}" for letter in self.eyes.dead(group))
        seen.update(f"loss: {loss.reason}" for loss in self.eyes.events("bus.loss"))
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
                    else:
                        await self._publish(site)
                    ended = "left"
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
            self.note(site.name, ended or "is dead")
            if not ended and not site.dead:
                self.wrong(f"{site.name} ended by itself")
            if not self.over:
                await trio.sleep(self.dice.uniform(0.1, 3.0))
        self._still_up.discard(f"{kind} {number}")

    async def _work(self, site: Site) -> None:
        bus = EventBus("memory://", namespace="sim", grace=self.plan.grace)
        replace_server(bus, SimServer(self.network, site))
        for group in self.plan.groups:
            bus.add(self._worker(site, group))
        async with bus:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look, site, bus)
                await site.leave.wait()
                nursery.cancel_scope.cancel()
            self.note(site.name, "leaves")

    async def _look(self, site: Site, bus: EventBus) -> None:
        """Somebody who asks over the bus's own link, and does not always wait for the answer."""
        asked = 0
        while True:
            await trio.sleep(self.dice.uniform(0.5, 1.5))
            asked += 1
            word = f"{site.name} {asked}".encode()
            with trio.move_on_after(self.dice.choice([0.0, 0.001, 0.1, 5.0])):
                try:
                    reply = await bus.link.call("ECHO", word)
                except Unavailable:
                    continue
                if isinstance(reply, bytes) and reply != word:
                    self.wrong(f"{site.name} asked for {word!r} and was given {reply!r}")

    # --- handlers ------------------------------------------------------------------------------------------------

    def _worker(self, site: Site, group: str) -> Worker:
        plan, worker = self.plan, Worker(group)
        takes, gives = GROUPS[group]
        retry = Backoff(plan.attempts, base=0.2, cap=1.0)
        if plan.batch:

            @worker.on_batch(takes, max_size=plan.concurrency, max_wait=0.05, timeout=plan.timeout, retry=retry)
            async def handle_batch(events: list[Any], ctxs: list[Context]) -> list[tuple[int, Event]]:
                for event, ctx in zip(events, ctxs, strict=True):
                    await self._handle(site, group, event.n, ctx)
                return [(i, gives(n=event.n)) for i, event in enumerate(events)]

        else:

            @worker.on(takes, concurrency=plan.concurrency, timeout=plan.timeout, retry=retry)
            async def handle(event: Any, ctx: Context) -> Event:
                await self._handle(site, group, event.n, ctx)
                return gives(n=event.n)

        return worker

    async def _handle(self, site: Site, group: str, n: int, ctx: Context) -> None:
        consumer = ctx._delivery.topic.settler.consumer
        run = Run(group, n, ctx.entry_id, site, consumer, ctx.attempt, trio.current_time())
        self._check_alone(run)
        self._active[group, run.entry_id] = run
        self.history.runs.append(run)
        try:
            await self._behave(run)
            run.end = "returned"
        except trio.Cancelled:
            run.end = "killed" if site.dead else "cancelled"
            raise
        except BaseException as error:
            run.end = {RetryLater: "later", Reject: "rejected"}.get(type(error), "raised")  # type: ignore[arg-type]
            raise
        finally:
            self.note(site.name, f"{group} {n} attempt {run.attempt} {run.end}")

    def _check_alone(self, run: Run) -> None:
        """Nobody else runs it, but for those whom others may take for dead."""
        other, history = self._active.get((run.group, run.entry_id)), self.history
        if other is None or other.end != "runs":
            return
        if run.entry_id in history.lost_pending.get(run.group, ()) or run.entry_id in history.lost_done.get(
            run.group, ()
        ):
            return
        if self.eyes.call("GET", self.eyes.keys.fence(other.consumer)) != b"dead":
            self.wrong(f"{run.group} {run.n} runs in {other.site.name}, and {run.site.name} begins it too")

    async def _behave(self, run: Run) -> None:
        behaviour = self.plan.behaviours[run.n]
        times = self.failed
        key = run.group, run.n, behaviour

        def first(count: int) -> bool:
            times[key] += 1
            return times[key] <= count

        if behaviour == "brief":
            await trio.sleep(run.n % 10 / 10)
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
        bus = EventBus("memory://", namespace="sim", patience=self.plan.patience)
        replace_server(bus, SimServer(self.network, site))
        todo = self.plan.publishes
        async with bus, trio.open_nursery() as nursery:
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
            self.history.stale.add(n)
        try:
            if publish.how == "many":
                try:
                    entry.update(zip(numbers, await bus.publish_many([Placed(n=n) for n in numbers]), strict=True))
                    fate.update(dict.fromkeys(numbers, "accepted"))
                except* Unavailable:
                    pass  # which of them it does not say
            elif publish.how == "foreign":
                written = self.eyes.put(self.dice.choice([b"", b"\xc1", b"{", b'{"data": 1}']), "sim.placed")
                self.history.foreign.add(written)
                fate[n] = "refused"
            else:
                event = Placed(n=n, weight=float("nan") if publish.how == "bad" else 0.0)
                with trio.move_on_after(self.dice.uniform(0, 0.01) if publish.how == "impatient" else 1e9):
                    found = await bus.publish(event, expires_in=0.3 if publish.how == "stale" else None)
                    assert found is not None
                    entry[n] = found
                    fate[n] = "accepted"
        except EncodeError:
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
                site.kill()
            else:
                site.falls_at = site.packets + int(what.seconds), what.how
        elif what.kind == "kill publisher":
            self.sites["publisher 0"].kill()
        elif what.kind == "stop":
            site.leave.set()
        elif what.kind == "pause":
            self.history.deaths["paused"] += 1
            site.awake = trio.Event()
            await trio.sleep(what.seconds)
            site.awake.set()
        elif what.kind == "cut off":
            self.history.deaths["cut off"] += 1
            site.unreachable = what.how
            self._break([site], what.how)
            await trio.sleep(what.seconds)
            site.unreachable = ""
        elif what.kind == "outage":
            await self._be_away(what)
        elif what.kind == "mood":
            network.mood = what.how
            await trio.sleep(what.seconds)
            network.mood = ""
        elif what.kind == "scripts flushed":
            self.eyes.call("SCRIPT", "FLUSH")
        elif what.kind == "trim":
            self._trim()
        elif what.kind == "group lost":
            self._destroy(self.plan.groups[what.who])

    async def _be_away(self, what: Happening) -> None:
        network = self.network
        network.away = what.how
        self._break(list(self.sites.values()), what.how)
        await trio.sleep(1.0 if what.seconds > 2 else 0.0)  # the first attempts come fast
        before = Counter(network.commands)
        seconds = what.seconds - 1
        await trio.sleep(max(seconds, 0.5))
        for site in self.sites.values():
            rate = (network.commands[site.name] - before[site.name]) / max(seconds, 1.0)
            most = OUTAGE_COMMANDS * (len(self.plan.groups) if site.kind == "worker" else 1)
            if seconds > 1 and rate > most:
                self.wrong(f"{site.name} tries {rate:.1f} times a second while the server is away")
        network.away = ""

    def _break(self, sites: list[Site], how: str) -> None:
        if how == "refuse":
            for site in sites:
                for connection in list(site.connections):
                    connection.break_off("reset")

    def _trim(self) -> None:
        """Trim what every group has read, handled or not."""
        event_type = "sim.placed"
        stream = self.eyes.stream(event_type)
        if not self.eyes.call("EXISTS", stream):
            return
        cursors = [_order(row[b"last-delivered-id"]) for row in self._rows("GROUPS", stream)]
        if len(cursors) < sum(_input(group) == event_type for group in self.plan.groups):
            return
        rows = [row for row in self.eyes.call("XRANGE", stream, "-", "+") if _order(row[0]) <= min(cursors)]
        rows = rows[: self.dice.randrange(len(rows) + 1)]
        if rows:
            self.history.trimmed[event_type] += [(row[0].decode(), row[1]) for row in rows]
            milliseconds, sequence = _order(rows[-1][0])
            self.eyes.call("XTRIM", stream, "MINID", f"{milliseconds}-{sequence + 1}")
            self.note("world", f"trimmed {len(rows)} entries")

    def _destroy(self, group: str) -> None:
        stream = self.eyes.stream(_input(group))
        if group in self.history.lost_pending or not self.eyes.call("EXISTS", stream):
            return
        infos = self._rows("GROUPS", stream)
        cursor = next((_order(info[b"last-delivered-id"]) for info in infos if info[b"name"] == group.encode()), None)
        if cursor is None:
            return
        pending = {entry_id for entry_id, _, _ in self.eyes.pending(group, _input(group))}
        there = self.eyes.call("XRANGE", stream, "-", "+")
        read = {row[0].decode() for row in there if _order(row[0]) <= cursor}
        read |= {entry_id for entry_id, _ in self.history.trimmed[_input(group)]}
        self.history.lost_pending[group] = pending
        self.history.lost_done[group] = read - pending
        self.eyes.call("XGROUP", "DESTROY", stream, group)


def _input(group: str) -> str:
    return registry.of(GROUPS[group][0]).name


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
