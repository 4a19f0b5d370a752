"""Worker processes and a Producer under three sentinels whose master is killed: what is in doubt is told or handled."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import trio
from process.asked import Asked
from servers import Watched
from studio import Eyes, quiet
from waiting import until

from canvasbus import Producer
from canvasbus.errors import CanvasbusError
from canvasbus.produce.fenced import Durability

pytestmark = pytest.mark.long


@pytest.mark.parametrize("durability", ["server", "replicated"])
async def test_worker_processes_follow_to_a_promoted_replica(
    watched: Watched, namespace: str, start: Callable[..., Any], durability: Durability
) -> None:
    """kill -9 of the master and of a worker under load: on the promoted replica every event that is there is answered
    once, whatever the workers had settled on the old master alone. What was acknowledged and is gone is the last that the
    old master acknowledged, without a gap, and there is none of it where a replica had to have it, too."""
    where = ("--url", watched.url, "--namespace", namespace)
    programs = [start(*where) for _ in range(3)]
    await until(lambda: all(program.said("worker joined") for program in programs), 30)
    stored: dict[int, float] = {}
    failed: list[CanvasbusError] = []
    numbers: dict[UUID, int] = {}
    token = trio.lowlevel.current_trio_token()

    def told(event_id: UUID, error: CanvasbusError | None) -> None:
        at = time.monotonic()

        def note() -> None:
            if error is None:
                stored[numbers[event_id]] = at
            else:
                failed.append(error)

        token.run_sync_soon(note)

    agreed, number = 0.0, 0
    with Producer(watched.url, namespace=namespace, durability=durability) as producer:
        while number < 4000:
            event_id = producer.publish(Asked(number=number), on_delivery=told)
            assert event_id is not None
            numbers[event_id] = number
            number += 1
            if number % 20 == 0:
                await trio.sleep(0.01)
            if number == 2000:
                watched.master.kill()
                programs[0].process.kill()
                await until(lambda: watched.agreed, 30)
                agreed = time.monotonic()
                # There is no replica until the old master comes back, as the sentinels see to. Earlier they would still
                # send people to it.
                watched.master.start()
        flushed = await trio.to_thread.run_sync(producer.flush, 30)
        assert flushed, (producer.statistics(), failed)
    eyes = Eyes(watched.replica.url, namespace)
    await quiet(eyes, "unit", event_type="crash.asked", timeout=40)
    there = [event.number for event in eyes.events("crash.asked")]
    answered = Counter(event.number for event in eyes.events("crash.answered"))
    lost = stored.keys() - set(there)
    assert failed == []
    assert len(there) == len(set(there)) and there == sorted(there)
    assert answered == dict.fromkeys(there, 1)
    assert eyes.dead("unit") == []
    if durability == "replicated" or not lost:
        assert not lost
    else:
        assert not set(range(min(lost), max(lost) + 1)) & set(there)
        late = [stored[one] - agreed for one in sorted(lost) if stored[one] >= agreed]
        assert not late, f"lost although acknowledged so many seconds after the failover: {late}"
    eyes.close()
