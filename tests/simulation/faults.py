"""What happens to the processes and to the server of a simulated run, and what is undone by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from simulation.history import Cut
from simulation.plan import Happening, input_of
from simulation.site import CALM_SECONDS, Site
from simulation.weather import CALM
from studio import Eyes
from waiting import TrioClock

from canvasbus import clock
from canvasbus.bus import Retention
from canvasbus.consume.liveness import DEAD_SECONDS
from canvasbus.ids import id_order
from canvasbus.operate import steering
from canvasbus.operate.deadletter import Filter, dead_letters
from canvasbus.operate.redrive import portions, redrive
from canvasbus.transport.resp import pairs

if TYPE_CHECKING:
    from simulation.world import World

NOTICE_SECONDS = 1.5
"""In which workers notice that their group is paused."""

ANSWER_SECONDS = 6.0
"""So long a worker may wait for an answer that does not come."""

OUTAGE_COMMANDS = 40.0
"""Attempts a second of a process whose server is away, for each of its groups."""


class Faults:
    """Those of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._plan = world.plan
        self._network = world.network

    async def happen(self, what: Happening, nursery: trio.Nursery) -> None:
        await trio.sleep(what.at)
        network, site = self._network, self._world.sites[f"worker {what.who % self._plan.processes}"]
        self._world.note("world", f"{what.kind} {what.who} {what.seconds:.2f} {what.how}")
        network.seen[f"fault: {what.kind}"] += 1
        match what.kind:
            case "kill":
                await self._kill(what, site)
            case "late" | "lose":
                site.next_fate = what.kind
            case "take late" | "release late" | "raise late":
                self._fate_of_workers(what.kind)
            case "publish late" | "publish lost":
                self._world.sites["publisher 0"].next_fate = "late" if what.kind == "publish late" else "lose"
            case "kill publisher":
                self._world.sites["publisher 0"].kill()
            case "stop":
                await self._stop(what, site)
            case "pause":
                await self._pause(what, site)
            case "cut off":
                await self._cut_off(what, site)
            case "outage":
                await self._be_away(what)
            case "mood":
                network.mood = what.how
                await trio.sleep(what.seconds)
                network.mood = ""
                self.recover()
            case "restart":
                await self._restart(what)
            case "clock":
                wall = clock.current()
                assert isinstance(wall, TrioClock)
                wall.jump(what.seconds)
            case "scripts flushed":
                self._world.eyes.call("SCRIPT", "FLUSH")
            case "trim":
                self._trim()
            case "group paused":
                await self._pause_group(self._plan.groups[what.who % len(self._plan.groups)], what)
            case "redrive":
                await self._redrive(self._plan.groups[what.who % len(self._plan.groups)])
            case "group lost":
                await self._be_busy(many=2)
                if not self._world.healed:
                    self._destroy(self._plan.groups[what.who % len(self._plan.groups)], leave=what.how == "leave")
            case _:
                assert "producer" in what.kind and self._world.programs is not None, what
                await self._world.programs.happen(what)

    async def _pause_group(self, group: str, what: Happening) -> None:
        """As `canvasbus groups pause` does, and in some pauses `groups reset`. Those who are well all the while read nothing
        then."""
        eyes, since = self._world.eyes, trio.current_time()
        key = eyes.keys.paused(group)
        eyes.run(steering.pause([eyes.keys], group, by="somebody", seconds=what.seconds))
        await trio.sleep(NOTICE_SECONDS)
        if what.how == "reset" and not self._world.healed and eyes.call("EXISTS", key):
            self._set_back(group)
        before, workers = self._world.cursors(group), [*self._world.sites.values()]
        await trio.sleep(max(0.0, what.seconds - NOTICE_SECONDS - 0.1))
        workers += self._world.sites.values()
        well = self._network.back < since and all(
            site.was_well_since(max(0.0, since - ANSWER_SECONDS)) for site in workers if site.kind == "worker"
        )
        after = self._world.cursors(group)
        on = any(id_order(cursor) > id_order(then) for cursor, then in zip(after, before, strict=False))
        if well and not self._network.mood and eyes.call("EXISTS", key) and on:
            self._world.wrong(f"{group} is paused, and has read from {before} to {after}")

    def _set_back(self, group: str) -> None:
        """To the earliest, once: what it has read it is given again."""
        history, eyes = self._world.history, self._world.eyes
        stream = eyes.stream(input_of(group))
        if group in history.lost_done or not self._world.cursors(group):
            return
        cursor = id_order(self._world.cursors(group)[0])
        history.lost_done[group] = {
            row[0].decode() for row in eyes.call("XRANGE", stream, "-", "+") if id_order(row[0]) <= cursor
        }
        self._network.seen["group set back"] += 1
        moves = eyes.run(steering.plan([eyes.keys], group, "earliest", lambda topic: topic == input_of(group)))
        eyes.run(steering.reset([eyes.keys], group, moves))

    async def _redrive(self, group: str) -> None:
        """As `canvasbus dlq redrive` does, of what a handler has failed at, as soon as there is some."""
        wanted = Filter(group=group, event_type=input_of(group))
        with trio.move_on_after(3.0):
            while not self._world.healed:
                for eyes in self._world.partitions:
                    found = eyes.run(dead_letters([eyes.keys], wanted, limit=1000)).letters
                    letters = [one for one in found if one.record and one.record.reason in ("rejected", "exhausted")]
                    for portion in portions(letters):
                        eyes.run(redrive([eyes.keys], portion))
                        ids = [one.record.event_id for one in portion if one.record and one.record.event_id]
                        self._world.history.redriven[group].update(ids)
                        self._network.seen["redriven"] += len(portion)
                    if letters:
                        return
                await trio.sleep(0.1)

    async def _kill(self, what: Happening, site: Site) -> None:
        self._world.history.deaths["killed"] += 1
        if what.how == "now":
            await self._be_busy(site)
            site.kill()
        else:
            site.falls_at = int(what.seconds), what.how

    async def _stop(self, what: Happening, site: Site) -> None:
        """Tell it to leave; with a fate while what it has said last is on its way, or has missed what it was told last."""
        await self._be_busy(site, many=2)
        if what.how:
            site.next_fate = what.how
            with trio.move_on_after(1.0):
                while site.next_fate:
                    await trio.sleep(0.01)
            await trio.sleep(0.6 if what.how == "mute" else 0.0)
        if not site.leave.is_set():
            self._tell_to_leave(site)

    def _tell_to_leave(self, site: Site) -> None:
        site.leave.set()
        site.leaving_since = trio.current_time()

    async def _pause(self, what: Happening, site: Site) -> None:
        """Stop a process as SIGSTOP does. The weather is calm in a long pause: who loses a packet takes nobody for dead."""
        self._world.history.deaths["paused"] += 1
        site.pause()
        if what.seconds > DEAD_SECONDS:
            self._network.weather = CALM
        await trio.sleep(what.seconds)
        if not self._world.healed:
            self._network.weather = self._plan.weather
        site.go_on()
        site.calm_from = trio.current_time() + CALM_SECONDS

    async def _cut_off(self, what: Happening, site: Site) -> None:
        self._world.history.deaths["cut off"] += 1
        site.unreachable = what.how
        self._break([site], what.how)
        await trio.sleep(what.seconds)
        site.unreachable = ""
        site.calm_from = trio.current_time() + CALM_SECONDS

    async def _be_busy(
        self, site: Site | None = None, since: float = 0.0, many: int = 1, patience: float = 2.0
    ) -> None:
        """Wait until a process (None: any) has something in its hands that began after a moment, for a while."""
        deadline = trio.current_time() + patience
        while trio.current_time() < deadline:
            busy = 0
            for run in self._world.handlers.active.values():
                busy += run.end == "runs" and run.began >= since and site in (None, run.site)
            if busy >= many:
                return
            await trio.sleep(0.01)

    async def _be_away(self, what: Happening) -> None:
        network = self._network
        await self._be_busy()
        if self._world.healed:
            return
        network.away = what.how
        self._break(list(self._world.sites.values()), what.how)
        await trio.sleep(1.0 if what.seconds > 2 else 0.0)  # the first attempts come fast
        before = Counter(network.commands)
        seconds = what.seconds - 1
        await trio.sleep(max(seconds, 0.5))
        for site in self._world.sites.values():
            rate = (network.commands[site.name] - before[site.name]) / max(seconds, 1.0)
            if network.away and seconds > 1 and rate > OUTAGE_COMMANDS * self._world.shares(site):
                self._world.wrong(f"{site.name} tries {rate:.1f} times a second while the server is away")
        network.away = ""
        self.recover()

    def recover(self) -> None:
        """All have been in trouble, and are no longer."""
        self._network.back = trio.current_time()
        self._network.calm_from = self._network.back + CALM_SECONDS

    async def _restart(self, what: Happening) -> None:
        """The server ends, and comes back with what it had some time before that. "commit late": what each worker commits
        next is late, before it ends and after it has come back."""
        data, since, from_ms = self._network.copy(), trio.current_time(), clock.time_ns() // 1_000_000
        gone = [
            {stream: [*rows] for stream, rows in of.items()}
            for of in (self._world.history.trimmed, self._world.history.retained)
        ]
        late = what.how == "commit late"
        if late:
            self._fate_of_workers(what.how)
        await trio.sleep(what.seconds)
        await self._be_busy(since=since, patience=5.0)
        if self._world.healed:
            return
        self._network.away = "refuse" if late else what.how
        self._break(list(self._world.sites.values()), "refuse")
        self._network.restart(data)
        if late:
            self._fate_of_workers(what.how)
        for of, before in zip((self._world.history.trimmed, self._world.history.retained), gone, strict=True):
            of.clear()  # what was trimmed since is there again, or never was
            of.update(before)
        self._world.history.cut = Cut(since, range(from_ms, clock.time_ns() // 1_000_000 + 1))
        await trio.sleep(what.seconds / 4)
        self._network.away = ""
        self.recover()

    def _fate_of_workers(self, fate: str) -> None:
        for site in self._world.sites.values():
            if site.kind == "worker":
                site.next_fate = fate

    async def retain(self) -> None:
        """Set the targets as soon as every group is declared: a group that is not keeps nothing."""
        keep = Retention(max_age=None, max_length=self._plan.keep, cap=self._plan.cap, when_full="reject")
        policy = msgspec.json.encode(keep)
        for eyes in self._world.partitions:
            while not {*self._plan.groups} <= {name.decode() for name in eyes.call("HKEYS", eyes.keys.groups)}:
                await trio.sleep(0.1)
            eyes.call("HSET", eyes.keys.retention, "sim.placed", policy)
            if "hangers" in self._plan.groups:
                eyes.call("HSET", eyes.keys.retention, "sim.framed", policy)

    def before_trim(self, stream: bytes) -> Callable[[list[list[Any]]], None]:
        """Remember what the declared groups have handled, to see that nothing else goes. What the groups of single processes
        have not read counts from when these have joined to their end; a minute after that it counts no more."""
        eyes = next(
            eyes for eyes in self._world.partitions if stream.startswith(eyes.keys.topics.removesuffix(b"topics"))
        )
        here = {site.name for site in self._world.sites.values() if not site.dead}
        living = {one.group.encode() for who, one in self._world.history.instances.items() if who in here}
        declared = {name for name in eyes.call("HKEYS", eyes.keys.groups) if b"@" not in name or name in living}
        event_type = stream.rpartition(b":")[2].decode()
        read = {}
        for row in groups_of(eyes, stream):
            name = row[b"name"].decode()
            if row[b"name"] in declared:
                pending = {entry_id.encode() for entry_id, _, _ in eyes.pending(name, event_type)}
                read[name] = id_order(row[b"last-delivered-id"]), pending

        def told(gone: list[list[Any]]) -> None:
            self._world.note("world", f"{event_type}: retention removed {len(gone)} up to {gone[-1][0].decode()}")
            self._world.history.retained[stream] += [(row[0].decode(), row[1]) for row in gone]
            for name, (cursor, pending) in read.items():
                early = [row[0].decode() for row in gone if row[0] in pending or id_order(row[0]) > cursor]
                if early:
                    self._world.wrong(f"retention removed {early} of {event_type}, which {name} has not handled")

        return told

    def _break(self, sites: list[Site], how: str) -> None:
        if how == "refuse":
            for site in sites:
                for connection in list(site.connections):
                    connection.break_off("reset")

    def _trim(self) -> None:
        """Trim what every group has read, handled or not."""
        event_type = "sim.placed"
        for eyes in self._world.partitions:
            stream = eyes.stream(event_type)
            if not eyes.call("EXISTS", stream):
                continue
            cursors = [id_order(row[b"last-delivered-id"]) for row in groups_of(eyes, stream)]
            if len(cursors) < sum(input_of(group) == event_type for group in self._plan.groups):
                continue
            rows = [row for row in eyes.call("XRANGE", stream, "-", "+") if id_order(row[0]) <= min(cursors)]
            rows = rows[: self._world.dice.randrange(len(rows) + 1)]
            if rows:
                self._world.history.trimmed[stream] += [(row[0].decode(), row[1]) for row in rows]
                milliseconds, sequence = id_order(rows[-1][0])
                eyes.call("XTRIM", stream, "MINID", f"{milliseconds}-{sequence + 1}")
                self._world.note("world", f"trimmed {len(rows)} entries")

    def _destroy(self, group: str, *, leave: bool) -> None:
        """`leave`: one that has something of it in its hands is told to leave in this moment."""
        stream = self._world.eyes.stream(input_of(group))
        if group in self._world.history.lost_pending or not self._world.eyes.call("EXISTS", stream):
            return
        infos = groups_of(self._world.eyes, stream)
        cursor = next((id_order(info[b"last-delivered-id"]) for info in infos if info[b"name"] == group.encode()), None)
        if cursor is None:
            return
        owners = {entry_id: owner for entry_id, owner, _ in self._world.eyes.pending(group, input_of(group))}
        pending = set(owners)
        running = {i: run for (of, part, i), run in self._world.handlers.active.items() if (of, part) == (group, 0)}
        there = self._world.eyes.call("XRANGE", stream, "-", "+")
        read = {row[0].decode() for row in there if id_order(row[0]) <= cursor}
        history = self._world.history
        read |= {entry_id for entry_id, _ in [*history.trimmed[stream], *history.retained[stream]]}
        history.lost_pending[group] = pending
        history.lost_done[group] = read - pending
        history.lost_held[group] = {
            i: run for i, run in running.items() if run.end == "runs" and run.consumer == owners.get(i)
        }
        self._world.eyes.call("XGROUP", "DESTROY", stream, group)
        sites = [run.site for run in history.lost_held[group].values() if not run.site.leave.is_set()]
        if leave and sites:
            self._tell_to_leave(sites[-1])


def groups_of(eyes: Eyes, stream: bytes) -> list[dict[bytes, Any]]:
    return [pairs(row) for row in eyes.call("XINFO", "GROUPS", stream)] if eyes.call("EXISTS", stream) else []
