"""A reader that is told to look again does so at once, whatever it is doing."""

from typing import Any

import trio
from studio import PaintingMade, running, subscription_of
from waiting import until

from canvasbus.transport.memory import MemoryServer
from canvasbus.worker import Worker


async def test_an_interruption_while_asking_is_not_lost(memory: MemoryServer, namespace: str) -> None:
    """A handler gets room while the reader's question is on its way: the reader asks again instead of waiting a second."""
    worker = Worker("narrow")

    @worker.on(PaintingMade, concurrency=1)
    async def paint(event: PaintingMade) -> None: ...

    async with running(memory, worker, namespace=namespace) as bus:
        subscription = subscription_of(bus)
        ask = subscription._link.request
        asked: list[float] = []

        async def interrupted(packet: Any, **options: Any) -> Any:
            reply = await ask(packet, **options)
            if len(asked) == 3:
                subscription.interrupt()
            asked.append(trio.current_time())
            return reply

        subscription._link.request = interrupted  # type: ignore[method-assign]
        await until(lambda: len(asked) > 4)
        assert asked[4] - asked[3] < 0.5
