"""The fence of a worker where it cannot simply be raised."""

from collections.abc import Callable

import pytest
import trio
from servers import ServerProcess
from studio import Eyes, PaintingMade, framing, quiet, runner_of, running, subscription_of
from waiting import until

from canvasbus.worker import Reject, Worker


async def test_a_fence_is_raised_at_maxmemory(make_server: Callable[..., ServerProcess], namespace: str) -> None:
    """The answer of a pool was lost, and the server has no memory left, which an INCR needs: what needs none is settled,
    dead letters among it."""
    server = make_server()
    eyes, worker, go = Eyes(server.url, namespace), Worker("framers"), trio.Event()

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        await go.wait()
        if event.number == 2:
            raise Reject("no room on the wall")

    async with running(server.url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: bus.statistics()[0].running == 3)
        settler = subscription_of(bus).settler
        eyes.call("CONFIG", "SET", "maxmemory", "1")
        with trio.fail_after(5):
            await settler.make_sure()
        go.set()
        await quiet(eyes, timeout=5)
        assert len(eyes.dead("framers")) == 1
        assert settler.fence.number == 1 == int(eyes.call("GET", settler.fence.key))
        assert eyes.call("TTL", settler.fence.key) > 0
        eyes.call("CONFIG", "SET", "maxmemory", "0")
    eyes.close()


@pytest.mark.parametrize("written", ["9223372036854775807", "-9223372036854775808", "-5", "x", "5"])
async def test_a_fence_that_somebody_has_written_over(any_url: str, namespace: str, eyes: Eyes, written: str) -> None:
    """With a number that is none of ours, or that cannot be raised: the worker goes on, if need be under another name, and
    each event has its effect once."""
    async with running(any_url, framing(), namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=0))
        await until(lambda: eyes.count("painting.framed") == 1)
        eyes.call("SET", eyes.keys.fence(runner_of(bus).statistics().consumer), written)
        await bus.publish(PaintingMade(number=1))
        await until(lambda: eyes.count("painting.framed") == 2, 20)
        await quiet(eyes)
        beats = eyes.keys.beats("framers")
        await until(lambda: runner_of(bus).statistics().consumer.encode() in eyes.call("HKEYS", beats))
    assert sorted(event.number for event in eyes.events("painting.framed")) == [0, 1]
