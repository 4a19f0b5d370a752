"""An EventBus whose methods are called when they should not be: an error at once, never a wait for ever."""

import pytest
import trio
from studio import PaintingMade

from canvasbus import ContractError
from canvasbus.bus import EventBus
from canvasbus.worker import Worker


async def test_waiting_for_workers_of_a_bus_that_does_not_run_is_an_error(namespace: str) -> None:
    """Before the block and after it no worker joins, so wait_ready says so instead of spinning."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def note(event: PaintingMade) -> None: ...

    bus = EventBus("memory://", namespace=namespace)
    bus.add(worker)
    with trio.fail_after(5):
        with pytest.raises(ContractError, match="async with"):
            await bus.wait_ready()
        async with bus:
            await bus.wait_ready()
        with pytest.raises(ContractError, match="async with"):
            await bus.wait_ready()
