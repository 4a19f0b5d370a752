"""The workers of a simulated run: what their handlers do is in the plan, what they did is written down for the judge."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import trio
from simulation.history import RETRIED, Run
from simulation.plan import GROUPS, Placed, Rung, Seen, input_of, timer_of
from simulation.site import Site

from canvasbus import Event, Unavailable, clock
from canvasbus.bus import PER_INSTANCE
from canvasbus.consume.breaker import Breaker
from canvasbus.consume.policy import Backoff, Reject, RetryLater
from canvasbus.consume.timers import Cancel, Later
from canvasbus.worker import Context, Worker

if TYPE_CHECKING:
    from simulation.world import World


STUCK_RUNS = 3
"""How often an event gets stuck."""


class Boom(Exception):
    """What a handler raises that fails."""


class Handlers:
    """Those of one run."""

    def __init__(self, world: World) -> None:
        self.active: dict[tuple[str, int, str], Run] = {}
        """The last run of each entry, by group and partition."""
        self._world = world
        self._plan = world.plan
        self._failed: dict[tuple[str, int, str], int] = defaultdict(int)

    def worker(self, site: Site, group: str) -> Worker:
        plan, worker = self._plan, Worker(group)
        takes, gives = GROUPS[group]
        retry = Backoff(plan.attempts, base=0.2, cap=1.0)
        breaker = Breaker(3, 10.0, 0.5, 2.0, (ConnectionError,)) if "breaker" in plan.parts else None
        if plan.batch:

            @worker.on_batch(
                takes, max_size=plan.concurrency, max_wait=0.05, timeout=plan.timeout, retry=retry, breaker=breaker
            )
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

    def watcher(self, site: Site) -> Worker:
        worker = Worker("watchers", group=PER_INSTANCE)

        @worker.on(Placed)
        async def see(event: Placed) -> Seen:
            await trio.sleep(event.n % 3 / 10)
            return Seen(n=event.n, who=site.name)

        return worker

    async def _handle(self, site: Site, group: str, n: int, ctx: Context) -> None:
        settler, stream = ctx._delivery.topic.settler, ctx._delivery.topic.stream
        partition = settler.keys.partition
        suspect = ctx._delivery.suspect
        entry_id = ctx.entry_id if stream == settler.keys.stream(input_of(group)) else RETRIED + ctx.entry_id
        run = Run(group, n, partition, entry_id, site, settler.consumer, ctx.attempt, suspect, trio.current_time())
        self._check_alone(run)
        expired = input_of(group) == "sim.placed" and clock.time() > self._world.history.stale.get(n, math.inf) + 0.001
        if expired and not self._plan.batch:  # there one waits for the others
            self._world.wrong(f"{group} {n} began after it had expired")
        self.active[group, partition, run.entry_id] = run
        self._world.history.runs.append(run)
        try:
            late = self._plan.behaviours[n] in (
                "slow",
                "hangs",
                "stuck",
                "kills",
            )  # others would wait for what it holds
            if not late:
                await self._count(run, ctx)
            await self._behave(run)
            if late:
                await self._count(run, ctx)
            run.end = "returned"
        except trio.Cancelled:
            if run.end == "runs":
                run.end = "killed" if site.dead else "cancelled"
            raise
        except BaseException as error:
            ends: dict[type, str] = {RetryLater: "later", Reject: "rejected", ConnectionError: "down"}
            run.end = ends.get(type(error), "raised")
            if isinstance(error, Unavailable):
                self._world.wrong(f"{group} {n} has failed because the server was away: {error}")
            raise
        finally:
            run.ended = trio.current_time()
            self._world.note(site.name, f"{group} {n} attempt {run.attempt} {run.end}")

    async def _count(self, run: Run, ctx: Context) -> None:
        """One more in a state, and a part of its own."""
        if "state" in self._plan.parts:
            ctx.parts("all", int).put(str(run.n), run.n)
            state = await ctx.state(f"count {run.n % 5}", int)
            await trio.sleep(run.n % 4 / 40)
            state.value += 1

    def _check_alone(self, run: Run) -> None:
        """Nobody else runs it, but for those whom others may take for dead."""
        other, history = self.active.get((run.group, run.partition, run.entry_id)), self._world.history
        if other is None or other.end != "runs":
            return
        if history.cut and other.began >= history.cut.since:  # the server has forgotten whom it gave it to
            return
        if run.entry_id in history.lost_pending.get(run.group, ()) or run.entry_id in history.lost_done.get(
            run.group, ()
        ):
            return
        keys = self._world.partitions[run.partition].keys
        if all(self._world.eyes.call("GET", keys.fence(one.consumer)) != b"dead" for one in (run, other)):
            self._world.wrong(f"{run.group} {run.n} runs in {other.site.name}, and {run.site.name} begins it too")

    def is_stuck(self, group: str, partition: int, entry_id: str) -> bool:
        """Whether an event is in a handler that hangs for as long as anything else is to be done."""
        run = self.active.get((group, partition, entry_id))
        stuck = run is not None and run.end == "runs" and self._plan.behaviours[run.n] == "stuck" and not run.site.dead
        return stuck and not self._world.unstuck

    async def _be_stuck(self, site: Site) -> None:
        world = self._world
        with trio.CancelScope(shield=True):
            while not (world.unstuck or world.over or site.dead or site.leave.is_set()):
                await trio.sleep(0.1)
        await trio.lowlevel.checkpoint()

    async def _behave(self, run: Run) -> None:
        behaviour = self._plan.behaviours[run.n]
        times = self._failed
        key = run.group, run.n, behaviour

        def first(count: int) -> bool:
            times[key] += 1
            return times[key] <= count

        if behaviour == "stuck" and first(STUCK_RUNS):
            await self._be_stuck(run.site)
        if self._plan.away[0] <= trio.current_time() < self._plan.away[1] and behaviour != "kills":
            raise ConnectionError("what is outside is away")
        if behaviour == "brief":
            await trio.sleep(run.n % 10 / (50 if "state" in self._plan.parts else 10))
        elif behaviour == "slow":
            await trio.sleep(5.5 + run.n % 2)
        elif behaviour == "hangs" and first(1):
            await trio.sleep_forever()
        elif behaviour == "later" and first(2):
            raise RetryLater(0.5)
        elif behaviour in ("rejected", "poison") and run.retried:  # somebody has mended what was wrong
            return
        elif behaviour == "rejected":
            raise Reject("no")
        elif behaviour == "poison" or behaviour.startswith("fails"):
            await trio.sleep(run.n % 3 / 10)
            if first({"fails once": 1, "fails twice": 2}.get(behaviour, 1 << 30)):
                raise Boom(run.n)
        elif behaviour == "kills":
            self._world.note(run.site.name, f"killed by its handler of {run.n}")
            self._world.history.deaths["killed by an event"] += 1
            run.end = "kills"
            run.site.kill()
            await trio.sleep_forever()
