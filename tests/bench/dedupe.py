"""What dedupe costs: publishing with marks, handling with marks, and the memory of a mark.

    python tests/bench/dedupe.py             # baselines: the same without dedupe, in the same run

Half of the events of "half of them doubles" are published for the second time.
"""

import logging
import re
import time

import structlog
import trio
from common import BenchEvent, RawSocket, arguments, flush, report, server

from canvasbus import Producer
from canvasbus.bus import EventBus
from canvasbus.transport.resp import pack
from canvasbus.worker import Worker, tune_collector


async def publish_many(url: str, n: int, dedupe: bool) -> float:
    async with EventBus(url, source="bench", dedupe=dedupe) as bus:
        event = BenchEvent()
        await bus.publish(event)
        started = time.perf_counter()
        await bus.publish_many([event] * n)
        return n / (time.perf_counter() - started)


async def keyed(url: str, n: int, keys: int) -> float:
    """publish_many with a key for each event, of so many different ones."""
    async with EventBus(url, source="bench") as bus:
        events = [BenchEvent()] * n
        numbers = iter(range(n))
        started = time.perf_counter()
        await bus.publish_many(events, dedupe_key=lambda _: str(next(numbers) % keys))
        return n / (time.perf_counter() - started)


def caller(url: str, n: int, key: bool) -> float:
    """Microseconds of Producer.publish in the caller."""
    with Producer(url, source="bench", when_full="block") as bus:
        event = BenchEvent()
        started = time.perf_counter()
        for number in range(n):
            bus.publish(event, dedupe_key=str(number) if key else None)
        took = time.perf_counter() - started
        bus.flush(60)
        return 1e6 * took / n


async def handle(url: str, n: int, dedupe: float | None) -> float:
    """Events per second of a worker that acknowledges."""
    worker = Worker("bench-once" if dedupe else "bench")

    @worker.on(BenchEvent, dedupe=dedupe)
    async def on_event(event: BenchEvent) -> None: ...

    async with EventBus(url, source="bench") as bus:
        bus.add(worker)
        await bus.wait_ready()
        started = time.perf_counter()
        while bus.statistics()[0].handled < n or bus.statistics()[0].held:
            await trio.sleep(0.005)
        return n / (time.perf_counter() - started)


def memory(url: str) -> int:
    raw = RawSocket(url)
    (info,) = raw.call(pack("INFO", "memory"), 1)
    raw.socket.close()
    found = re.search(rb"used_memory:(\d+)", info)  # type: ignore[arg-type]
    assert found is not None
    return int(found[1])


def main() -> None:
    options = arguments(__doc__ or "", count=100_000)
    n = options.n
    many: list[tuple[float, float]] = []
    some: list[tuple[float, float]] = []
    doubles: list[tuple[float, float]] = []
    called: list[tuple[float, float]] = []
    handled: list[tuple[float, float]] = []
    sizes: dict[str, list[float]] = {}
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    tune_collector()
    with server() as url:
        for _ in range(options.rounds):
            flush(url)
            before = memory(url)
            plain = trio.run(publish_many, url, n, False)
            sizes.setdefault("event", []).append((memory(url) - before) / n)
            bare = trio.run(handle, url, n, None)
            before = memory(url)
            handled.append((bare, trio.run(handle, url, n, 3600.0)))
            sizes.setdefault("mark of a handler", []).append((memory(url) - before) / n)
            flush(url)
            before = memory(url)
            many.append((plain, trio.run(publish_many, url, n, True)))
            sizes.setdefault("event and its mark", []).append((memory(url) - before) / n)
            flush(url)
            some.append((plain, trio.run(keyed, url, n, n)))
            flush(url)
            doubles.append((plain, trio.run(keyed, url, n, n // 2)))
            flush(url)
            called.append((caller(url, n, False), caller(url, n, True)))
    report("publish_many, dedupe=True", "none", many)
    report("publish_many, dedupe_key=", "none", some)
    report("the same, half of them doubles", "none", doubles)
    report("Producer.publish, dedupe_key=", "none", called, unit="µs")
    report("worker, dedupe=", "none", handled)
    for what, found in sizes.items():
        print(f"{what}: {sorted(found)[len(found) // 2]:.0f} bytes on the server")


if __name__ == "__main__":
    main()
