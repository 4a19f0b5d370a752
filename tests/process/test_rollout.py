"""Rolling out a new version of an event while the old workers still run: real processes."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from cli.commands import runner
from studio import Eyes, quiet
from waiting import until

from canvasbus import Event, Producer, event

pytestmark = pytest.mark.long

UNIT = """
import os
from canvasbus import Event, event
from canvasbus.worker import Worker

@event("rollout.asked", version=1)
class AskedBefore(Event):
    number: int

@event("rollout.answered")
class Answered(Event):
    number: int
    known: int

known = 1
worker = Worker("unit")

@worker.on("rollout.asked", concurrency=4)
async def on_asked(event: Event) -> Answered:
    return Answered(number=event.number, known=known)
"""

NEXT = (
    UNIT
    + """
@event("rollout.asked", version=2, upcast={1: dict})
class Asked(Event):
    number: int
    tone: str = "kind"

known = 2
"""
)


@event("rollout.asked", version=1)
class AskedBefore(Event):
    number: int


@event("rollout.asked", version=2, upcast={1: dict})
class Asked(Event):
    number: int
    tone: str = "kind"


@event("rollout.answered")
class Answered(Event):
    number: int
    known: int


async def test_producers_may_be_upgraded_before_the_workers(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """Events of the new version wait while only old workers run, and while old and new ones run side by side the new
    ones answer all of them: each once, without a dead letter."""
    where = ("--url", server_url, "--namespace", namespace)
    old = start(*where, unit=UNIT)
    await until(lambda: old.said("worker joined"), 20)
    with Producer(server_url, namespace=namespace) as bus:
        for number in range(300):
            bus.publish(Asked(number=number) if number % 3 else AskedBefore(number=number))
        assert bus.flush(20)
        await until(lambda: eyes.count("rollout.answered") == 100)
        pool = Counter({"~v:rollout.asked:2": 200})
        await until(lambda: Counter(owner for _, owner, _ in eyes.pending("unit", "rollout.asked")) == pool)
        assert len(old.said("events of a newer version than this worker knows are parked for newer workers")) == 1

        new = start(*where, unit=NEXT)
        await until(lambda: eyes.count("rollout.answered") == 300, 30)
        for number in range(300, 600):
            bus.publish(Asked(number=number) if number % 3 else AskedBefore(number=number))
        assert bus.flush(20)
        await until(lambda: eyes.count("rollout.answered") == 600, 30)
    await quiet(eyes, event_type="rollout.asked")
    answers = eyes.events("rollout.answered")
    assert Counter(answer.number for answer in answers) == dict.fromkeys(range(600), 1)
    assert {answer.known for answer in answers if answer.number % 3} == {2}
    assert eyes.dead("unit") == [] and new.process.poll() is None


async def test_an_upgrade_and_a_rollback_with_kills(
    server_url: str,
    namespace: str,
    eyes: Eyes,
    start: Callable[..., Any],
    nursery: trio.Nursery,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two groups go from old programs to new ones and back, one worker of each direction by kill -9, while producers
    publish; can-publish says at each step whose move it is. Each event has its effect once per group, without a dead
    letter, also those of version 2 that came when nobody knew it any more."""
    monkeypatch.chdir(tmp_path)
    run, groups = runner(server_url, namespace, capsys), ("unit", "second")
    numbers, published = itertools.count(), Counter[type]()
    producing: set[type] = {AskedBefore}

    def begin(group: str, unit: str) -> Any:
        return start("--url", server_url, "--namespace", namespace, unit=unit.replace('"unit"', f'"{group}"'))

    async def joined(*programs: Any) -> None:
        for program in programs:
            await until(lambda program=program: program.said("worker joined"), 30)
        await until(lambda: all(eyes.call("HLEN", eyes.keys.accepts(group)) for group in groups))

    async def gone(program: Any) -> None:
        await until(lambda: program.process.poll() is not None, 30)

    def can_publish(version: int) -> tuple[int, set[str]]:
        """The exit code, and the groups that are in the way."""
        ran = run("schema", "can-publish", f"rollout.asked@{version}", "--json")
        return ran.code, {record["group"] for record in ran.records if not record["fine"]}

    with Producer(server_url, namespace=namespace) as bus:

        async def produce(cls: type) -> None:
            while True:
                if cls in producing:
                    bus.publish(cls(number=next(numbers)))
                    published[cls] += 1
                await trio.sleep(0.005)

        async def more(cls: type, count: int = 50) -> None:
            wanted = published[cls] + count
            await until(lambda: published[cls] >= wanted)

        def parked(group: str) -> int:
            return [owner for _, owner, _ in eyes.pending(group, "rollout.asked")].count("~v:rollout.asked:2")

        nursery.start_soon(produce, AskedBefore)
        nursery.start_soon(produce, Asked)
        old = {group: begin(group, UNIT) for group in groups}
        await joined(*old.values())
        await more(AskedBefore)
        assert can_publish(1) == (0, set()) and can_publish(2) == (1, set(groups))

        new = {"unit": begin("unit", NEXT)}
        await joined(new["unit"])
        await until(lambda: eyes.call("HLEN", eyes.keys.accepts("unit")) == 2)
        assert can_publish(2) == (1, {"second"})
        new["second"] = begin("second", NEXT)
        await joined(new["second"])
        await until(lambda: eyes.call("HLEN", eyes.keys.accepts("second")) == 2)
        old["second"].process.kill()
        assert can_publish(2) == (0, set())
        producing.add(Asked)
        await more(Asked)
        old["unit"].process.terminate()
        await gone(old["unit"])
        producing.discard(AskedBefore)
        await more(Asked)

        producing.add(AskedBefore)
        old = {group: begin(group, UNIT) for group in groups}
        await joined(*old.values())
        await more(Asked)
        new["unit"].process.kill()
        new["second"].process.terminate()
        await gone(new["second"])
        for group in groups:
            await until(lambda group=group: parked(group) >= 20, 30)
        assert can_publish(1) == (0, set()) and can_publish(2) == (1, set(groups))
        producing.discard(Asked)
        await more(AskedBefore)

        new = {group: begin(group, NEXT) for group in groups}
        await joined(*new.values())
        await more(AskedBefore)
        producing.clear()
        assert bus.flush(20)
        total = next(numbers)
        await until(lambda: eyes.count("rollout.answered") >= 2 * total, 60)
    await quiet(eyes, event_type="rollout.asked")
    answers = Counter((envelope.source, answer.number) for envelope, answer in eyes.entries("rollout.answered"))
    assert answers == dict.fromkeys(itertools.product(groups, range(total)), 1)
    assert [eyes.dead(group) for group in groups] == [[], []]
    assert not any(parked(group) for group in groups)
