"""A worker with default settings, async handler, acknowledging everything; and one that returns an event per event.

    python tests/bench/consume.py            # baseline: a raw XREADGROUP + XACK replay of the same entries

The baseline sends prebuilt reads and acknowledgements over a blocking socket and parses nothing but sizes: it is what
the server gives, not what a client could reach.
"""

import logging
import time

import structlog
import trio
from common import BenchEvent, RawSocket, arguments, flush, report, server

from canvasbus import Event, event
from canvasbus.bus import EventBus
from canvasbus.transport.resp import pack
from canvasbus.wire.keys import Keys
from canvasbus.worker import Worker, tune_collector


@event("bench.derived", key="model_name")
class Derived(Event):
    model_name: str


async def consume(url: str, n: int, *, derive: bool) -> float:
    seen = 0
    done = trio.Event()
    worker = Worker("bench-derive" if derive else "bench")

    if derive:

        @worker.on(BenchEvent)
        async def on_event(event: BenchEvent) -> Derived:
            return Derived(model_name=event.model_name)
    else:

        @worker.on(BenchEvent)
        async def on_event(event: BenchEvent) -> None:
            nonlocal seen
            seen += 1
            if seen == n:
                done.set()

    async with EventBus(url, source="bench") as bus:
        bus.add(worker)
        await bus.wait_ready()
        started = time.perf_counter()
        if derive:
            while bus.statistics()[0].derived < n:
                await trio.sleep(0.005)
        else:
            await done.wait()
            while bus.statistics()[0].held:
                await trio.sleep(0.001)
        return n / (time.perf_counter() - started)


async def fill(url: str, n: int) -> None:
    async with EventBus(url, source="bench") as bus:
        await bus.publish_many([BenchEvent()] * n)


def replay(url: str, n: int, count: int = 500) -> float:
    """Read and acknowledge everything with bytes that were built before the clock starts."""
    stream = Keys().stream("bench.event")
    raw = RawSocket(url)
    raw.call(pack("XGROUP", "CREATE", stream, "replay", "0"), 1)
    ids: list[bytes] = []
    start = b"-"
    while rows := raw.call(pack("XRANGE", stream, start, "+", "COUNT", 10_000), 1)[0]:
        ids += [row[0] for row in rows]  # type: ignore[attr-defined]
        start = b"(" + ids[-1]
    read = pack("XREADGROUP", "GROUP", "replay", "me", "COUNT", count, "STREAMS", stream, ">")
    packets = [pack("XACK", stream, "replay", *ids[at : at + count]) + read for at in range(0, len(ids), count)]
    # The size of each answer, so that the timed loop only counts bytes: one pass over an identical group.
    raw.call(pack("XGROUP", "CREATE", stream, "sizes", "0"), 1)
    sizes = []
    for _ in packets:
        raw.socket.sendall(pack("XREADGROUP", "GROUP", "sizes", "me", "COUNT", count, "STREAMS", stream, ">"))
        sizes.append(_count_reply(raw))
    started = time.perf_counter()
    raw.socket.sendall(read)
    _drain(raw, sizes[0])
    for packet, size, acked in zip(packets, [*sizes[1:], 5], _batches(len(ids), count), strict=True):
        raw.socket.sendall(packet)
        _drain(raw, size + len(b":%d\r\n" % acked))
    return n / (time.perf_counter() - started)


def _batches(total: int, count: int) -> list[int]:
    return [min(count, total - at) for at in range(0, total, count)]


def _count_reply(raw: RawSocket) -> int:
    import hiredis

    reader = hiredis.Reader()
    size = 0
    while True:
        data = raw.socket.recv(1 << 20)
        size += len(data)
        reader.feed(data)
        if reader.gets() is not False:
            return size


def _drain(raw: RawSocket, size: int) -> None:
    while size > 0:
        size -= len(raw.socket.recv(1 << 20))


def main() -> None:
    options = arguments(__doc__ or "", count=200_000)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    tune_collector()  # as canvasbus-worker does
    plain: list[tuple[float, float]] = []
    derived: list[tuple[float, float]] = []
    with server() as url:
        for _ in range(options.rounds):
            flush(url)
            trio.run(fill, url, options.n)
            baseline = replay(url, options.n)
            plain.append((baseline, trio.run(lambda: consume(url, options.n, derive=False))))
            derived.append((baseline, trio.run(lambda: consume(url, options.n, derive=True))))
    report("worker, async handler, ack on", "≥ 0.4 × raw replay and ≥ 250,000/s", plain)
    report("worker, one derived event per event", "≥ 60,000/s", derived)


if __name__ == "__main__":
    main()
