"""Resident memory of a worker process over a million events.

python tests/bench/memory.py             # -n events in all; a sample every tenth of them
"""

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import trio
from common import BenchEvent, arguments, flush, server

from canvasbus.bus import EventBus
from canvasbus.worker import Worker


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def handle(url: str, n: int, pipe: Connection) -> None:
    samples: list[float] = []

    async def main() -> None:
        done = trio.Event()
        seen = 0
        worker = Worker("bench-memory")

        @worker.on(BenchEvent)
        async def on_event(event: BenchEvent) -> None:
            nonlocal seen
            seen += 1
            if seen % (n // 10) == 0:
                samples.append(resident_mb())
            if seen == n:
                done.set()

        async with EventBus(url) as bus:
            bus.add(worker)
            await done.wait()

    trio.run(main)
    pipe.send(samples)


async def fill(url: str, n: int) -> None:
    async with EventBus(url) as bus:
        for _ in range(10):
            await bus.publish_many([BenchEvent()] * (n // 10))


def main() -> None:
    options = arguments(__doc__ or "", count=1_000_000)
    with server() as url:
        flush(url)
        trio.run(fill, url, options.n)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=handle, args=(url, options.n, there))
        process.start()
        samples = here.recv()
        process.join()
    print(
        f"worker over {options.n:,} events: {samples[0]:.1f} MB after a tenth, {samples[-1]:.1f} MB at the end, "
        f"peak {max(samples):.1f} MB; goal ≤ 60 MB and flat"
    )


if __name__ == "__main__":
    main()
