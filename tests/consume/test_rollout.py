"""Old and new workers side by side, through an upgrade and back, while events of both versions are published."""

import itertools
from collections import Counter
from typing import Any

import pytest
import trio
from studio import Eyes, running
from versions import LAID, Era, framing
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.operate.rollout import can_publish
from canvasbus.wire.keys import Keys

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("quick_hearts")]

GROUPS = ("framers", "archive")


class Rollout:
    """Two groups, whose workers frame what they get, and producers that go on whatever happens."""

    def __init__(self, nursery: trio.Nursery, bus: EventBus, url: str, namespace: str, eyes: Eyes) -> None:
        self.nursery = nursery
        self.bus = bus
        self.eyes = eyes
        self.published: Counter[int] = Counter()
        """Version → events of it, the one on its way included."""
        self.producing = {1}
        """Versions that producers publish at present."""
        self._url = url
        self._namespace = namespace
        self._running: dict[tuple[str, int], tuple[trio.Event, trio.Event]] = {}
        self._numbers = itertools.count()
        self._eras = {1: Era(1), 2: Era(2)}

    async def produce(self, version: int) -> None:
        """Publish events of a version as long as it is among those that are produced, one after another."""
        while True:
            if version in self.producing:
                self.published[version] += 1
                await self.bus.publish(self._eras[version].event(number=next(self._numbers)))
            await trio.sleep(0.002)

    async def more(self, count: int = 25) -> None:
        """Return when so many more events have been published of each version that is produced."""
        wanted = {version: self.published[version] + count for version in self.producing}
        await until(lambda: all(self.published[version] >= n for version, n in wanted.items()))

    async def start(self, group: str, version: int) -> None:
        """Start a worker of a group that knows this version."""
        await self.nursery.start(self._work, group, version)

    async def _work(self, group: str, version: int, *, task_status: trio.TaskStatus[None]) -> None:
        stop, left = self._running[group, version] = trio.Event(), trio.Event()
        async with self._eras[version].running(self._url, framing(group), namespace=self._namespace):
            task_status.started()
            await stop.wait()
        left.set()

    async def stop(self, *which: tuple[str, int]) -> None:
        """Let workers leave in order; all of them, when none is named."""
        for key in which or list(self._running):
            stop, left = self._running.pop(key)
            stop.set()
            await left.wait()

    async def may_publish(self, version: int) -> bool:
        """What can-publish says."""
        answers = await self.bus.link.run(can_publish([Keys(self._namespace)], [(LAID, version)]))
        assert {answer.group for answer in answers} == set(GROUPS)
        return all(answer.fine for answer in answers)

    def parked(self, group: str) -> int:
        """Events that wait for a worker of version 2."""
        return [owner for _, owner, _ in self.eyes.pending(group, LAID)].count(f"~v:{LAID}:2")

    def effects(self) -> Counter[tuple[str, int]]:
        """(Group, number) → how often it was framed."""
        return Counter((one.title.split()[0], one.number) for one in self.eyes.events("painting.framed"))


@pytest.fixture
async def rollout(any_url: str, namespace: str, eyes: Eyes, nursery: trio.Nursery) -> Any:
    async with running(any_url, namespace=namespace) as bus:
        made = Rollout(nursery, bus, any_url, namespace, eyes)
        for version in (1, 2):
            nursery.start_soon(made.produce, version)
        yield made
        await made.stop()
        nursery.cancel_scope.cancel()


async def test_an_upgrade_and_the_way_back(rollout: Rollout, eyes: Eyes) -> None:
    """As the README has it: ask, workers, ask, producers; and back. Nothing is lost or doubled, nothing dead-lettered; what
    a straggling producer publishes after the workers have gone back waits until somebody knows it again."""
    for group in GROUPS:
        await rollout.start(group, 1)
    await rollout.more()
    assert await rollout.may_publish(1) and not await rollout.may_publish(2)

    for group in GROUPS:  # the workers, one group after another, old and new side by side
        assert not await rollout.may_publish(2)
        await rollout.start(group, 2)
        await rollout.more()
    assert await rollout.may_publish(2)
    rollout.producing = {1, 2}  # the producers, not all at once
    await rollout.more()
    for group in GROUPS:
        await rollout.stop((group, 1))
        await rollout.more()
    rollout.producing = {2}
    await rollout.more()
    await until(lambda: not any(rollout.parked(group) for group in GROUPS), 20)

    rollout.producing = {1, 2}  # the way back, in which one producer is forgotten
    await rollout.more()
    for group in GROUPS:
        await rollout.start(group, 1)
        await rollout.more()
        await rollout.stop((group, 2))
        await until(lambda group=group: rollout.parked(group) >= 10)
    assert await rollout.may_publish(1) and not await rollout.may_publish(2)
    rollout.producing = {1}
    await rollout.more()
    assert all(rollout.parked(group) for group in GROUPS)

    for group in GROUPS:  # and once more
        await rollout.start(group, 2)
    await rollout.more()
    rollout.producing = set()
    total = sum(rollout.published.values())
    await until(lambda: eyes.count("painting.framed") >= 2 * total, 30)
    await rollout.stop()
    assert rollout.effects() == dict.fromkeys(itertools.product(GROUPS, range(total)), 1)
    assert [eyes.dead(group) for group in GROUPS] == [[], []]
    assert min(rollout.published.values()) >= 75
