"""publish_many in batches of 500, and publish from 256 tasks.

python tests/bench/publish.py            # baselines: redis-benchmark -c 1 -P 500; redis-py asyncio, 64 tasks
"""

import asyncio
import time

import trio
from common import BenchEvent, arguments, flush, redis_benchmark, report, server

from canvasbus.bus import EventBus
from canvasbus.wire.codec import Codec


async def publish_many(url: str, n: int) -> float:
    async with EventBus(url, source="bench") as bus:
        event = BenchEvent()
        await bus.publish(event)
        started = time.perf_counter()
        await bus.publish_many([event] * n)
        return n / (time.perf_counter() - started)


async def publish_tasks(url: str, n: int, tasks: int = 256) -> float:
    async with EventBus(url, source="bench") as bus:
        event = BenchEvent()
        await bus.publish(event)

        async def one() -> None:
            for _ in range(n // tasks):
                await bus.publish(event)

        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(one)
        return n / (time.perf_counter() - started)


async def redis_py(url: str, n: int, value: bytes, tasks: int = 64) -> float:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)

    async def one() -> None:
        for _ in range(n // tasks):
            await client.xadd("bench:redispy", {"e": value})

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(tasks)))
    rate = n / (time.perf_counter() - started)
    await client.aclose()
    return rate


def main() -> None:
    options = arguments(__doc__ or "", count=200_000)
    value = Codec("bench").encode(BenchEvent()).data
    print(f"event: {len(value)} bytes encoded")
    many: list[tuple[float, float]] = []
    tasks: list[tuple[float, float]] = []
    with server() as url:
        for _ in range(options.rounds):
            flush(url)
            many.append((redis_benchmark(url, options.n, len(value)), trio.run(publish_many, url, options.n)))
            flush(url)
            tasks.append((asyncio.run(redis_py(url, options.n // 10, value)), trio.run(publish_tasks, url, options.n)))
    report("publish_many, batches of 500", "≥ 0.8 × redis-benchmark -c 1 -P 500", many)
    report("publish from 256 tasks", "≥ 10 × redis-py asyncio, 64 tasks", tasks)


if __name__ == "__main__":
    main()
