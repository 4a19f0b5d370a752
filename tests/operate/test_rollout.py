"""Can a version be published? The answer of the living groups, on memory and on real servers."""

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from faulty import FaultyServer
from studio import Eyes, quiet, runner_of
from versions import LAID, Era, framing
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.consume.accepting import Does
from canvasbus.operate.groups import Reading, groups
from canvasbus.operate.rollout import Answer, GroupAnswer, WorkerAnswer, can_publish
from canvasbus.transport.connect import open_server
from canvasbus.transport.resp import Pause
from canvasbus.wire.keys import Keys
from canvasbus.worker import Worker

pytestmark = pytest.mark.usefixtures("quick_hearts")


async def ask(bus: EventBus, version: int, *, kind: str = LAID, partitions: int = 1) -> dict[str, GroupAnswer]:
    """Group → answer. (By trio's link: hearts on a memory server beat in this very loop.)"""
    keys = [Keys(bus._namespace, partition) for partition in range(partitions)]
    return {one.group: one for one in await bus.link.run(can_publish(keys, [(kind, version)]))}


async def beating(eyes: Eyes, *groups: str) -> None:
    """Return when workers of these groups, one for each name, have said what they accept."""
    for group in set(groups):
        await until(lambda group=group: eyes.call("HLEN", eyes.keys.accepts(group)) == groups.count(group))


def consumer(bus: EventBus, index: int = 0) -> str:
    return runner_of(bus, index).statistics().consumer


def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on workers are of a canvasbus that does not say what it accepts."""
    monkeypatch.setattr("canvasbus.consume.runner._Incarnation._accepts", lambda _: b"")


@pytest.mark.parametrize("partitions", [1, 3])
async def test_old_and_new_workers_side_by_side(any_url: str, namespace: str, eyes: Eyes, partitions: int) -> None:
    """A group is asked as a whole: one that takes it is enough, the others park it; of another group all are too old."""
    where: dict[str, Any] = {"namespace": namespace, "partitions": partitions}
    async with (
        Era(2).running(any_url, framing("framers"), framing("archive"), **where) as old,
        Era(3).running(any_url, framing("framers", "mosaic.*"), **where) as new,
    ):
        await beating(eyes, "framers", "framers", "archive")
        for version in (1, 2):
            answers = await ask(new, version, partitions=partitions)
            assert {name: one.answer for name, one in answers.items()} == dict.fromkeys(("archive", "framers"), "taken")
            assert all(one.fine and one.move == "" for one in answers.values())
        answers = await ask(old, 3, partitions=partitions)
        assert sorted(answers["framers"].workers, key=lambda worker: worker.does or "") == [
            WorkerAnswer(consumer(old), Does.PARK, (1, 2)),
            WorkerAnswer(consumer(new), Does.TAKE, (1, 3)),
        ]
        assert answers["framers"].fine and answers["framers"].answer is Answer.TAKEN
        assert answers["archive"].workers == (WorkerAnswer(consumer(old, 1), Does.PARK, (1, 2)),)
        assert not answers["archive"].fine and answers["archive"].answer is Answer.PARKED
        assert answers["archive"].move == "nobody takes mosaic.laid v3: deploy its workers that know it first"


async def test_nobody_reads_it(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Groups of other types are not asked; without any there is nothing in the way."""
    async with Era(2).running(any_url, framing("framers"), namespace=namespace) as bus:
        await beating(eyes, "framers")
        assert await ask(bus, 1, kind="painting.made") == {}


async def test_a_worker_that_would_bury_it_is_one_too_many(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Somebody of the group takes it, and yet: whoever reads nothing so old, or gets the type by a glob and does not
    know it, makes a dead letter of what it reads, and nobody can say who reads the next event."""
    async with (
        Era(3).running(any_url, framing("framers"), framing("archive"), namespace=namespace) as bus,
        Era(3, since=2).running(any_url, framing("framers"), namespace=namespace),
        Era(0).running(any_url, framing("archive", "mosaic.*"), namespace=namespace),
    ):
        await beating(eyes, "framers", "framers", "archive", "archive")
        first = await ask(bus, 1)
        assert {name: one.answer for name, one in first.items()} == dict.fromkeys(("archive", "framers"), "given_up")
        assert first["framers"].move == (
            "one of its workers reads nothing before v2 (since=): mosaic.laid v1 would be a dead letter with them"
        )
        assert first["archive"].move.startswith("one of its workers would get it and does not know the type: import it")
        assert (await ask(bus, 3))["framers"].fine
        far = (await ask(bus, 1000))["framers"]
        assert far.move.startswith("the number is too far ahead of what 2 of its workers know")


async def test_who_begins_while_it_looks_is_asked_too(any_url: str, namespace: str, eyes: Eyes) -> None:
    """The answer is that of the workers that there are when it is given."""
    async with Era(3).running(any_url, framing("framers"), namespace=namespace) as bus, AsyncExitStack() as later:
        await beating(eyes, "framers")
        operation = can_publish([Keys(namespace, 0)], [(LAID, 1)])
        wish, pauses = operation.send(None), 0  # type: ignore[arg-type]
        with pytest.raises(StopIteration) as end:
            while True:
                if not isinstance(wish, Pause):
                    wish = operation.send(await bus.link.request(wish))
                    continue
                pauses += 1
                if pauses == 1:
                    other = Era(3, since=2).running(any_url, framing("framers"), namespace=namespace)
                    await later.enter_async_context(other)
                    await beating(eyes, "framers", "framers")
                await trio.sleep(wish.seconds)  # the operation's own, in which hearts beat
                wish = operation.send(None)  # type: ignore[arg-type]
        (answer,) = end.value.value
        assert answer.answer is Answer.GIVEN_UP and len(answer.workers) == 2


async def test_a_process_of_its_own_group_is_asked_for_itself(any_url: str, namespace: str, eyes: Eyes) -> None:
    """PER_INSTANCE: nobody else takes up what it would park, so the move is another one."""
    async with (
        Era(2).running(any_url, framing("framers", instance=True), namespace=namespace) as old,
        Era(3).running(any_url, framing("framers", instance=True), namespace=namespace) as new,
    ):
        mine, yours = (bus.statistics()[0].group for bus in (old, new))
        await beating(eyes, mine, yours)
        answers = await ask(old, 3)
        assert {name: (one.instance, one.fine) for name, one in answers.items()} == {
            mine: (True, False),
            yours: (True, True),
        }
        assert answers[mine].move.startswith("this process has a group of its own and does not know mosaic.laid v3")


async def test_one_that_was_killed_does_not_count(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Although it read a moment ago, and although what it said is still there; its group hinders nobody. A killed process
    of its own group is not even shown."""
    cable = FaultyServer(open_server(any_url))
    async with Era(2).running(any_url, framing("framers"), namespace=namespace) as bus:
        async with Era(3).running(
            cable,
            *(framing("framers"), framing("archive"), framing("screen", instance=True)),
            namespace=namespace,
            grace=0.1,
        ) as dying:
            dead = {one.group: one.consumer for one in dying.statistics()}
            await beating(eyes, "framers", "framers", *(group for group in dead if group != "framers"))
            assert len(await ask(bus, 3)) == 3
            cable.cut()
            answers = await ask(bus, 3)
            assert eyes.call("HEXISTS", eyes.keys.accepts("archive"), dead["archive"])
    assert {name: (one.answer, one.fine) for name, one in answers.items()} == {
        "archive": (Answer.NOBODY, True),
        "framers": (Answer.PARKED, False),
    }
    assert answers["archive"].workers == () and answers["archive"].move.startswith("no worker runs")
    assert dead["framers"] not in [worker.consumer for worker in answers["framers"].workers]


async def test_workers_of_an_older_canvasbus_are_unknown(
    any_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not say what they accept: neither yes nor no. Next to one that takes it they are no hindrance."""
    async with Era(3).running(any_url, framing("framers"), namespace=namespace) as bus:
        silent(monkeypatch)
        async with Era(2).running(any_url, framing("framers"), framing("archive"), namespace=namespace) as old:
            await beating(eyes, "framers")
            await until(lambda: eyes.call("HLEN", eyes.keys.beats("framers")) == 2)
            await until(lambda: eyes.call("HLEN", eyes.keys.beats("archive")) == 1)
            answers = await ask(bus, 3)
            assert answers["framers"].fine
            assert WorkerAnswer(consumer(old), None, None) in answers["framers"].workers
            assert (answers["archive"].answer, answers["archive"].fine) == (Answer.UNKNOWN, False)
            assert answers["archive"].move.startswith("its workers do not say what they accept")


async def test_one_that_does_not_listen_any_more(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Its group is still on the stream; what comes waits there, whatever version it is."""
    async with Era(2).running(any_url, framing("framers"), namespace=namespace):
        pass
    async with Era(2).running(any_url, framing("framers", "painting.made"), namespace=namespace) as bus:
        await beating(eyes, "framers")
        answer = (await ask(bus, 3))["framers"]
        assert (answer.answer, answer.fine) == (Answer.NOBODY, True)
        assert answer.move == "none of its workers listens to mosaic.laid, or all of them leave"


async def test_a_topic_that_does_not_exist_yet(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Whose glob matches the type will read it, and is asked, also when the declaration is by now that of an older worker."""
    async with (
        Era(2).running(any_url, framing("framers", "mosaic.*"), namespace=namespace) as bus,
        Era(2).running(any_url, framing("framers", "painting.made"), namespace=namespace),
    ):
        await beating(eyes, "framers", "framers")
        answer = (await ask(bus, 2))["framers"]
        assert {worker.does for worker in answer.workers} == {Does.TAKE, Does.LEAVE} and answer.fine
        assert (await ask(bus, 1, kind="mosaic.broken"))["framers"].answer is Answer.GIVEN_UP


async def test_garbage_is_unknown(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Of a worker whose words a stranger has spoilt nothing is known; words without a heartbeat are nobody's."""
    async with Era(3).running(any_url, framing("framers"), namespace=namespace) as bus:
        await beating(eyes, "framers")
        eyes.call(
            "HSET", eyes.keys.accepts("framers"), b"\xff", b"\xfe", "nobody", '{"types": {"mosaic.laid": [1, 99]}}'
        )
        eyes.call("HSET", eyes.keys.groups, b"\xfd", b"\xfc", "strange", b'{"types": [5], "globs": [7]}')
        eyes.call("SET", eyes.keys.accepts("strange"), "x")
        eyes.call("XGROUP", "CREATE", eyes.stream(LAID), b"\xfb", "0")
        answers = await ask(bus, 3)
        assert answers.pop("\\xfb").answer is Answer.NOBODY
        assert answers == {
            "framers": GroupAnswer(LAID, 3, "framers", False, (WorkerAnswer(consumer(bus), Does.TAKE, (1, 3)),))
        }
        for spoilt in (b"\xfe", b"[" * 50_000, b"{}"):
            eyes.call("HSET", eyes.keys.accepts("framers"), consumer(bus), spoilt)
            assert (await ask(bus, 3))["framers"].answer is (Answer.NOBODY if spoilt == b"{}" else Answer.UNKNOWN)
        eyes.call("SET", eyes.keys.accepts("framers"), "x")
        assert (await ask(bus, 3))["framers"].answer is Answer.UNKNOWN
        eyes.call("XGROUP", "DESTROY", eyes.stream(LAID), b"\xfb")
        eyes.put(Era(3).encoded(1), LAID)
        await quiet(eyes, event_type=LAID)


async def test_a_reader_that_is_no_worker_is_unknown(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Somebody with XREADGROUP of their own, who beats no heart."""
    async with EventBus(any_url, namespace=namespace) as bus:
        eyes.put(Era(1).encoded(1), LAID)
        eyes.call("XGROUP", "CREATE", eyes.stream(LAID), "theirs", "0")
        eyes.call("XREADGROUP", "GROUP", "theirs", "script", "STREAMS", eyes.stream(LAID), ">")
        answer = (await ask(bus, 1))["theirs"]
        assert answer.workers == (WorkerAnswer("script", None, None),) and answer.answer is Answer.UNKNOWN


async def test_one_that_drains_takes_nothing_more(any_url: str, namespace: str, eyes: Eyes) -> None:
    """A new worker that finishes what it holds is not there for the next event."""
    began, go_on, stop = trio.Event(), trio.Event(), trio.Event()
    worker = Worker("framers")

    @worker.on(LAID)
    async def frame(event: Any) -> None:
        began.set()
        await go_on.wait()

    async def newer() -> None:
        async with Era(3).running(any_url, worker, namespace=namespace):
            eyes.put(Era(3).encoded(1), LAID)
            await stop.wait()

    async with Era(2).running(any_url, framing("archive"), namespace=namespace) as bus, trio.open_nursery() as nursery:
        nursery.start_soon(newer)
        await began.wait()
        await beating(eyes, "framers", "archive")
        assert (await ask(bus, 3))["framers"].answer is Answer.TAKEN
        stop.set()
        await until(lambda: b"{}" in eyes.call("HVALS", eyes.keys.accepts("framers"))[0].replace(b'"types":', b""))
        assert (await ask(bus, 3))["framers"].answer is Answer.NOBODY
        go_on.set()


async def test_groups_show_what_living_workers_read(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Next to what is parked, the newest version first; the dead and those that say nothing are not counted."""
    async with (
        Era(2).running(any_url, framing("framers"), namespace=namespace) as bus,
        Era(2).running(any_url, framing("framers"), namespace=namespace),
        Era(3, since=2).running(any_url, framing("framers"), namespace=namespace),
    ):
        await beating(eyes, "framers", "framers", "framers")
        eyes.call("HSET", eyes.keys.accepts("framers"), "gone", '{"types": {"mosaic.laid": [1, 99]}}')
        (group,) = await bus.link.run(groups([eyes.keys], trust_lag=False))
        (topic,) = group.topics
        assert topic.accepts == (Reading(2, 3, 1), Reading(1, 2, 2))
