"""The worker's door: declare handlers, run them as a program.

worker = Worker("auto-retrain")

@worker.on(DriftDetected, concurrency=4)
async def on_drift(event: DriftDetected, ctx: Context) -> RetrainRequested | None: ...

if __name__ == "__main__":
    run(worker, url="redis://localhost:6379")
"""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from canvasbus.bus import EventBus
from canvasbus.consume.context import Context
from canvasbus.consume.handlers import Worker
from canvasbus.consume.policy import Backoff, BatchFailure, HandlerTimeout, Reject, RetryLater
from canvasbus.log import get_logger

__all__ = [
    "Backoff",
    "BatchFailure",
    "Context",
    "HandlerTimeout",
    "Reject",
    "RetryLater",
    "Worker",
    "run",
    "serve",
]

log = get_logger("canvasbus.worker")


def run(*workers: Worker, url: str, **options: Any) -> None:
    """Run workers until SIGTERM or SIGINT, then drain; a second signal ends at once. Options are those of EventBus."""
    trio.run(serve, workers, url, options)


async def serve(workers: tuple[Worker, ...], url: str, options: dict[str, Any]) -> None:
    """The same inside a running trio program."""
    async with EventBus(url, **options) as bus:
        for worker in workers:
            bus.add(worker)
        async with until_signal():
            await trio.sleep_forever()


@asynccontextmanager
async def until_signal() -> AsyncIterator[None]:
    """Run the block until SIGTERM or SIGINT. A second signal while the program drains ends the process at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for number in signals:
                    log.info("signal received; draining", signal=signal.Signals(number).name)
                    nursery.cancel_scope.cancel()
                    return

            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_now)


def _end_now(number: int, _frame: object) -> None:
    os._exit(128 + number)
