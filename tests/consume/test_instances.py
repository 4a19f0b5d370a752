"""PER_INSTANCE: every process sees all events, and nothing stays behind of it."""

import json
from typing import Any

import pytest
import trio
import trio.testing
from faulty import FaultyServer
from studio import Eyes, PaintingMade, SculptureMade, quiet, runner_of, running
from trio.abc import Clock
from waiting import until

from canvasbus.bus import PER_INSTANCE, EventBus
from canvasbus.consume import instances, maintain
from canvasbus.errors import ContractError
from canvasbus.transport.connect import open_server
from canvasbus.transport.memory import MemoryServer
from canvasbus.transport.server import Connection, Server
from canvasbus.worker import Backoff, Context, Worker


def dashboard(seen: list[int], **options: Any) -> Worker:
    worker = Worker("dashboard", group=PER_INSTANCE)

    @worker.on(PaintingMade, **options)
    async def show(event: PaintingMade) -> None:
        if event.title == "broken":
            raise ValueError
        seen.append(event.number)

    return worker


def keys_of(eyes: Eyes, what: str = "@") -> list[str]:
    """Every key of the namespace with `what` in its name."""
    return sorted(key.decode() for key in eyes.call("KEYS", f"*{eyes.keys.namespace}*") if what in key.decode())


def declared(eyes: Eyes) -> dict[str, dict[str, Any]]:
    flat = eyes.call("HGETALL", eyes.keys.groups)
    return {name.decode(): json.loads(about) for name, about in zip(flat[::2], flat[1::2], strict=True)}


def groups(eyes: Eyes, event_type: str = "painting.made") -> set[str]:
    return {row[1].decode() for row in eyes.call("XINFO", "GROUPS", eyes.stream(event_type))}


class Slow(FaultyServer):
    """Keeps the request that makes a group until `go`."""

    def __init__(self, inner: Server) -> None:
        super().__init__(inner)
        self.held, self.go = trio.Event(), trio.Event()

    async def connect(self) -> Connection:
        connection = await super().connect()
        send = connection.send

        async def slowly(data: bytes) -> None:
            if b"MKSTREAM" in data:
                self.held.set()
                await self.go.wait()
            await send(data)

        connection.send = slowly  # type: ignore[method-assign]
        return connection


async def test_one_that_is_told_to_leave_while_it_joins_leaves_nothing(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """What would make its group is still on its way, and must not come after the group was removed."""
    server = Slow(open_server(any_url))
    async with running(server, namespace=namespace) as bus:
        bus.add(dashboard([]))
        await server.held.wait()
        runner_of(bus).stop()
        await until(lambda: not eyes.call("EXISTS", eyes.keys.groups) or bus._shared._waiters)
        await trio.testing.wait_all_tasks_blocked()
        server.go.set()
        await until(lambda: runner_of(bus).state == "left")
        await bus._shared.call("PING")
    assert groups(eyes) == set() and declared(eyes) == {}


async def test_each_process_sees_all_events(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Two buses, two groups with readable names; a shared group next to them shares."""
    first: list[int] = []
    second: list[int] = []
    shared: list[int] = []
    common = Worker("archive")
    common.on(PaintingMade)(lambda event: shared.append(event.number))
    async with (
        running(any_url, dashboard(first), common, namespace=namespace) as one,
        running(any_url, dashboard(second), common, namespace=namespace) as two,
    ):
        names = {bus.statistics()[0].group for bus in (one, two)}
        assert len(names) == 2 and all(name.startswith("dashboard@") for name in names)
        assert {name for name, about in declared(eyes).items() if about.get("instance")} == names
        await one.publish_many([PaintingMade(number=i) for i in range(50)])
        await quiet(eyes)
    assert sorted(first) == sorted(second) == sorted(shared) == list(range(50))


async def test_it_starts_with_the_latest(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What was there before the process is not its business, unless `start` says so."""
    latest: list[int] = []
    earliest: list[int] = []
    async with EventBus(any_url, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
    other = Worker("replayer", group=PER_INSTANCE)
    other.on(PaintingMade, start="earliest")(lambda event: earliest.append(event.number))
    async with running(any_url, dashboard(latest), other, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=2))
        await quiet(eyes)
    assert (latest, sorted(earliest)) == ([2], [1, 2])


async def test_a_topic_that_comes_later_is_seen_from_its_first_event(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Also by an instance that listens to a glob."""
    seen: list[str] = []
    worker = Worker("dashboard", group=PER_INSTANCE)
    worker.on("*.made")(lambda event: seen.append(event.title))
    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(SculptureMade(title="bust"))
        await until(lambda: seen)
    assert seen == ["bust"]


async def test_nothing_stays_behind_when_it_leaves(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Groups, heartbeats, leases, dead letters, state and the declaration go with the process."""
    seen: list[int] = []
    worker = Worker("dashboard", group=PER_INSTANCE)

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def show(event: PaintingMade, ctx: Context) -> None:
        if event.title == "broken":
            raise ValueError
        (await ctx.state("how many", list[int])).value.append(event.number)
        ctx.parts("all", int).put("one", event.number)
        seen.append(event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        group = bus.statistics()[0].group
        await bus.publish_many([PaintingMade(number=1), PaintingMade(title="broken")])
        await until(lambda: seen and eyes.dead(group))
        await quiet(eyes)
        kinds = {"beats", "dead", "state", "parts"}
        await until(lambda: kinds <= {key.split(":")[2] for key in keys_of(eyes)})
    assert keys_of(eyes) == []
    assert (groups(eyes), declared(eyes)) == (set(), {})


async def test_nothing_stays_behind_of_one_that_is_cancelled(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Neither when the bus is cancelled from outside."""
    with trio.CancelScope() as scope:
        async with running(any_url, dashboard([]), namespace=namespace):
            assert len(groups(eyes)) == 1
            scope.cancel()
            await trio.sleep_forever()
    assert (keys_of(eyes), groups(eyes), declared(eyes)) == ([], set(), {})


# --- of one that is killed --------------------------------------------------------------------------------------------


def left_behind(eyes: Eyes, group: str, *, beats: int | None, instance: bool = True) -> None:
    """What a killed process leaves on the server."""
    eyes.call("SADD", eyes.keys.topics, "painting.made")
    eyes.call("HSET", eyes.keys.groups, group, json.dumps({"instance": True} if instance else {"types": []}))
    eyes.call("XGROUP", "CREATE", eyes.stream(), group, "0", "MKSTREAM")
    eyes.call("XADD", eyes.stream(), "*", "e", "x")
    eyes.call("XREADGROUP", "GROUP", group, "me", "STREAMS", eyes.stream(), ">")
    eyes.call("XADD", eyes.keys.dead(group), "*", "e", "x")
    eyes.call("SET", eyes.keys.state(group, "how many"), "x")
    if beats is not None:
        eyes.call("HSET", eyes.keys.beats(group), "me", beats)


@pytest.mark.parametrize("beats", [7, None])
async def test_what_a_killed_one_leaves_is_removed_by_others(
    any_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch, beats: int | None
) -> None:
    """By any bus of the namespace, also one that only publishes; groups that are no instances stay."""
    monkeypatch.setattr(instances, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(instances, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(maintain, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(maintain, "IDLE_SECONDS", 0.05)
    left_behind(eyes, "dashboard@gone-1-ab", beats=beats)
    left_behind(eyes, "archive", beats=3, instance=False)
    async with EventBus(any_url, namespace=namespace):
        await until(lambda: groups(eyes) == {"archive"}, 20)
        await until(lambda: list(declared(eyes)) == ["archive"])
    assert keys_of(eyes) == []
    assert len(keys_of(eyes, "archive")) == 3


@pytest.mark.long
async def test_only_a_heartbeat_that_stands_still_counts(memory: MemoryServer, virtual: Clock) -> None:
    """Not after 50 seconds but after 60 and a few; one whose heart beats stays however long it takes."""
    eyes = Eyes(memory, "studio")
    left_behind(eyes, "dashboard@gone-1-ab", beats=7)
    async with running(memory, dashboard([]), namespace="studio") as bus:
        mine = bus.statistics()[0].group
        await trio.sleep(50)
        assert groups(eyes) == {mine, "dashboard@gone-1-ab"}
        await trio.sleep(20)
        assert groups(eyes) == {mine}
        await trio.sleep(600)
        assert (groups(eyes), list(declared(eyes))) == ({mine}, [mine])


async def test_one_that_was_paused_goes_on_where_it_was(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Its group was removed meanwhile: it is made anew after the last event that had been read, and declared again."""
    seen: list[int] = []
    async with running(any_url, dashboard(seen, concurrency=1), namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
        group = runner_of(bus).group
        eyes.run(instances.forget(eyes.keys, group))
        await bus.publish_many([PaintingMade(number=2), PaintingMade(number=3)])
        await until(lambda: seen == [1, 2, 3])
        await until(lambda: group in groups(eyes))


async def test_one_that_was_paused_is_told_what_it_may_have_missed(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Nothing waits for it once its group is removed, so that what others have trimmed by the time it goes on is gone."""
    seen: list[int] = []
    async with running(any_url, dashboard(seen), namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
        eyes.run(instances.forget(eyes.keys, runner_of(bus).group))
        await until(lambda: eyes.events("bus.loss"))
    (loss,) = eyes.events("bus.loss")
    assert loss.reason == "group_recreated" and "removed behind that while its process slept" in loss.detail
    assert "groups reset" not in loss.detail


async def test_one_that_was_paused_declares_itself_again(memory: MemoryServer, virtual: Clock) -> None:
    """Within half a minute, so that it is found again should it be killed later."""
    eyes = Eyes(memory, "studio")
    async with running(memory, dashboard([]), namespace="studio") as bus:
        group = runner_of(bus).group
        eyes.run(instances.forget(eyes.keys, group))
        await trio.sleep(32)
        assert declared(eyes)[group]["instance"] is True


async def test_a_heartbeat_in_the_last_moment_keeps_the_group(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Removing compares the heartbeats with those that were seen, in one step."""
    left_behind(eyes, "dashboard@slow-1-ab", beats=7)
    assert not eyes.run(instances.forget(eyes.keys, "dashboard@slow-1-ab", {b"me": b"6"}))
    assert not eyes.run(instances.forget(eyes.keys, "dashboard@slow-1-ab", {}))
    assert groups(eyes) == {"dashboard@slow-1-ab"} and declared(eyes)
    assert eyes.run(instances.forget(eyes.keys, "dashboard@slow-1-ab", {b"me": b"7"}))
    assert (groups(eyes), declared(eyes)) == (set(), {})


# --- the door ---------------------------------------------------------------------------------------------------------


async def test_a_bus_subscribes_for_itself(any_url: str, namespace: str, eyes: Eyes) -> None:
    """`subscribe(..., group=PER_INSTANCE)`: several handlers share the bus's own group, named after its source."""
    paintings: list[int] = []
    sculptures: list[str] = []
    async with EventBus(any_url, namespace=namespace, source="canvas 7") as bus:
        bus.subscribe(PaintingMade, lambda event: paintings.append(event.number), group=PER_INSTANCE)
        bus.subscribe(SculptureMade, lambda event: sculptures.append(event.title), group=PER_INSTANCE)
        await bus.wait_ready()
        assert [s.group.split("@")[0] for s in bus.statistics()] == ["canvas_7"]
        await bus.publish(PaintingMade(number=1))
        await bus.publish(SculptureMade(title="bust"))
        await until(lambda: paintings and sculptures)
    assert (paintings, sculptures) == ([1], ["bust"])
    assert keys_of(eyes) == []


def test_other_groups_are_refused() -> None:
    """A worker's name is its group."""
    with pytest.raises(ContractError, match="its name is its group; group='other' is not possible"):
        Worker("dashboard", group="other")  # type: ignore[arg-type]
