"""Publish to handler at 1,000 events a second, one process publishing, one handling.

    python tests/bench/latency.py            # baseline: a raw blocking XADD / XREADGROUP BLOCK pair over sockets

Both pairs run in turn. The publisher writes the wall time into the event; the other process subtracts.
"""

import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import trio
from common import RawSocket, arguments, flush, server

from canvasbus import Event, event
from canvasbus.bus import EventBus
from canvasbus.transport.resp import pack
from canvasbus.wire.keys import Keys
from canvasbus.worker import Worker

RATE = 1000
WARM_UP = 200


@event("bench.timed")
class Timed(Event):
    """Carries the moment it was published, in nanoseconds of wall time."""

    sent_ns: int


def handle(url: str, n: int, pipe: Connection) -> None:
    """A worker that notes how old each event is."""
    ages: list[int] = []

    async def main() -> None:
        done = trio.Event()
        worker = Worker("bench-latency")

        @worker.on(Timed)
        async def on_timed(event: Timed) -> None:
            ages.append(time.time_ns() - event.sent_ns)
            if len(ages) == n:
                done.set()

        async with EventBus(url) as bus:
            bus.add(worker)
            await bus.wait_ready()
            pipe.send("ready")
            await done.wait()

    trio.run(main)
    pipe.send(ages)


def publish(url: str, n: int) -> None:
    async def main() -> None:
        async with EventBus(url) as bus:
            due = time.perf_counter()
            for _ in range(n):
                due += 1 / RATE
                while (left := due - time.perf_counter()) > 0:
                    await trio.sleep(left)
                await bus.publish(Timed(sent_ns=time.time_ns()))

    trio.run(main)


def raw_handle(url: str, n: int, pipe: Connection) -> None:
    stream = Keys().stream("raw")
    raw = RawSocket(url)
    raw.call(pack("XGROUP", "CREATE", stream, "g", "0", "MKSTREAM"), 1)
    read = pack("XREADGROUP", "GROUP", "g", "c", "COUNT", 100, "BLOCK", 1000, "STREAMS", stream, ">")
    pipe.send("ready")
    ages: list[int] = []
    while len(ages) < n:
        (reply,) = raw.call(read, 1)
        now = time.time_ns()
        for _, entries in reply or ():  # type: ignore[attr-defined]
            ages += [now - int(fields[1][:19]) for _, fields in entries]
            raw.call(pack("XACK", stream, "g", *[entry_id for entry_id, _ in entries]), 1)
    pipe.send(ages)


def raw_publish(url: str, n: int) -> None:
    stream = Keys().stream("raw")
    raw = RawSocket(url)
    due = time.perf_counter()
    for _ in range(n):
        due += 1 / RATE
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        raw.call(pack("XADD", stream, "*", "e", b"%019d" % time.time_ns() + b"x" * 181), 1)


def pair(url: str, n: int, consumer: object, producer: object) -> tuple[float, float]:
    """p50 and p99 in microseconds."""
    flush(url)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=consumer, args=(url, n, there))  # type: ignore[arg-type]
    process.start()
    here.recv()
    producer(url, n)  # type: ignore[operator]
    ages = sorted(here.recv()[WARM_UP:])
    process.join()
    return ages[len(ages) // 2] / 1000, ages[int(len(ages) * 0.99)] / 1000


def main() -> None:
    options = arguments(__doc__ or "", count=4000)
    raw: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    with server() as url:
        for _ in range(options.rounds):
            raw.append(pair(url, options.n, raw_handle, raw_publish))
            ours.append(pair(url, options.n, handle, publish))
    for name, index in (("p50", 0), ("p99", 1)):
        ratios = [o[index] / r[index] for r, o in zip(raw, ours, strict=True)]
        print(
            f"publish → handler at {RATE:,}/s, {name}: raw {statistics.median(r[index] for r in raw):,.0f} µs, "
            f"ours {statistics.median(o[index] for o in ours):,.0f} µs; ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}, {options.rounds} rounds); goal ≤ 3"
        )


if __name__ == "__main__":
    main()
