"""The worker's door: declare handlers, run them as a program.

worker = Worker("auto-retrain")

@worker.on(DriftDetected, concurrency=4)
async def on_drift(event: DriftDetected, ctx: Context) -> RetrainRequested | None: ...

if __name__ == "__main__":
    run(worker, url="redis://localhost:6379")
"""

import gc
import os
import sys
import threading
from contextlib import suppress
from typing import Any

import trio

from canvasbus.bus import EventBus
from canvasbus.config import section
from canvasbus.consume.breaker import Breaker
from canvasbus.consume.context import Context
from canvasbus.consume.handlers import Worker
from canvasbus.consume.instances import PER_INSTANCE
from canvasbus.consume.middleware import Handle, Middleware
from canvasbus.consume.middleware.gate import gate
from canvasbus.consume.middleware.log_context import log_context
from canvasbus.consume.middleware.log_runs import log_runs
from canvasbus.consume.middleware.max_age import max_age
from canvasbus.consume.middleware.rate_limit import rate_limit
from canvasbus.consume.middleware.trace import trace
from canvasbus.consume.policy import NEVER, Backoff, BatchFailure, HandlerTimeout, Reject, RetryLater
from canvasbus.consume.state import Parts, State
from canvasbus.consume.timers import Cancel, Later
from canvasbus.signals import until_signal

__all__ = [
    "PER_INSTANCE",
    "NEVER",
    "Backoff",
    "BatchFailure",
    "Breaker",
    "Cancel",
    "Context",
    "Handle",
    "HandlerTimeout",
    "Later",
    "Parts",
    "Middleware",
    "Reject",
    "RetryLater",
    "State",
    "Worker",
    "gate",
    "log_context",
    "log_runs",
    "max_age",
    "rate_limit",
    "run",
    "section",
    "serve",
    "trace",
]

FLUSH_SECONDS = 1.0


def run(*workers: Worker, url: str, **options: Any) -> None:
    """Run workers until SIGTERM or SIGINT, then drain; a second signal ends at once. Options are those of EventBus. A
    worker whose loop is stuck (see `max_block`) ends the process with exit code 70."""
    options.setdefault("on_stuck", end_stuck)
    tune_collector()
    trio.run(serve, workers, url, options)


def tune_collector() -> None:
    """Set the garbage collector up for a process that does nothing but run workers; `run` and canvasbus-worker do.

    Each event in flight is half a dozen objects that live for milliseconds and die by themselves. At the default
    threshold (700) the collector looks at them again and again, and at all that was imported: a third of a worker's
    time (measured: 4.0 µs of CPU an event before, 2.8 after). Cycles are still found, some thousand objects later.
    """
    gc.collect()
    gc.freeze()  # what start-up made stays
    gc.set_threshold(10_000, 10, 10)


async def serve(workers: tuple[Worker, ...], url: str, options: dict[str, Any]) -> None:
    """The same inside a running trio program."""
    async with EventBus(url, **options) as bus:
        for worker in workers:
            bus.add(worker)
        async with until_signal():
            await trio.sleep_forever()


def end_stuck() -> None:
    """End a worker program whose loop is stuck: nothing in it could hand back or say goodbye, and whoever started it
    starts it anew. Called from another thread, after the log has been told why."""
    with suppress(RuntimeError):  # no more threads here: nothing is flushed then, for nobody may read it
        threading.Timer(FLUSH_SECONDS, os._exit, (os.EX_SOFTWARE,)).start()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
    os._exit(os.EX_SOFTWARE)
