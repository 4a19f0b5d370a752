"""What Producer.publish costs its caller, and how fast the sender empties a full buffer.

python tests/bench/producer.py           # baselines: appending to a deque under a lock; raw MULTI batches of the same bytes

The caller's time is measured one call at a time with the sender asleep in between, as in a training job that publishes
now and then, and in a burst with the sender at work, where both share the interpreter; without a spool and with one, on
the disk of the system's temporary folder (CANVASBUS_BENCH_SPOOL names another). The sender's baseline sends
prebuilt batches of 500 over a blocking socket and waits for each answer.
"""

import os
import statistics
import tempfile
import threading
import time
from collections import deque

from common import BenchEvent, RawSocket, arguments, flush, report, server

from canvasbus import Producer
from canvasbus.transport.resp import pack
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys

BATCH = 500


def caller(url: str, n: int, *, burst: bool, spool: str | None = None) -> tuple[float, float]:
    """Median nanoseconds of the baseline and of publish."""
    event = BenchEvent()
    clock = time.perf_counter_ns
    lock = threading.RLock()
    queue: deque[object] = deque()
    plain: list[int] = []
    ours: list[int] = []
    with Producer(url, source="bench", spool=spool) as bus:
        publish = bus.publish
        publish(event)
        bus.flush(10)
        for at in range(n):
            started = clock()
            with lock:
                queue.append(event)
            plain.append(clock() - started)
            started = clock()
            publish(event)
            ours.append(clock() - started)
            if not burst and at % 20 == 19:
                bus.flush(10)
        bus.flush(30)
    return statistics.median(plain), statistics.median(ours)


def sender(url: str, n: int, *, spool: str | None = None) -> float:
    """Events per second from a full buffer to the server."""
    with Producer(url, source="bench", buffer_bytes=1 << 30, spool=spool) as bus:
        held, go_on = threading.Event(), threading.Event()
        bus.publish(BenchEvent(), on_delivery=lambda *_: (held.set(), go_on.wait()))
        held.wait()
        bus.publish_many([BenchEvent()] * n)
        started = time.perf_counter()  # the sender starts when everything is queued
        go_on.set()
        if not bus.flush(60):
            raise RuntimeError(f"not everything was stored: {bus!r}")
        return n / (time.perf_counter() - started)


def raw(url: str, n: int) -> float:
    """Events per second of prebuilt MULTI … EXEC batches, one at a time."""
    value = Codec("bench").encode(BenchEvent()).data
    packet = pack("MULTI") + pack("XADD", Keys("raw").stream("bench.event"), "*", "e", value) * BATCH + pack("EXEC")
    connection = RawSocket(url)
    started = time.perf_counter()
    for _ in range(n // BATCH):
        connection.call(packet, BATCH + 2)
    rate = n / (time.perf_counter() - started)
    connection.socket.close()
    return rate


def main() -> None:
    options = arguments(__doc__ or "", count=100_000)
    quiet: list[tuple[float, float]] = []
    burst: list[tuple[float, float]] = []
    spooled_quiet: list[tuple[float, float]] = []
    spooled_burst: list[tuple[float, float]] = []
    rates: list[tuple[float, float]] = []
    spooled_rates: list[tuple[float, float]] = []
    with server() as url, tempfile.TemporaryDirectory(dir=os.environ.get("CANVASBUS_BENCH_SPOOL")) as spool:
        for _ in range(options.rounds):
            quiet.append(caller(url, options.n // 20, burst=False))
            spooled_quiet.append(caller(url, options.n // 20, burst=False, spool=spool))
            burst.append(caller(url, options.n // 4, burst=True))
            spooled_burst.append(caller(url, options.n // 4, burst=True, spool=spool))
            flush(url)
            rates.append((raw(url, options.n), sender(url, options.n)))
            flush(url)
            spooled_rates.append((raw(url, options.n), sender(url, options.n, spool=spool)))
            flush(url)
    report("Producer.publish, now and then", "≤ 2,000 ns", quiet, unit="ns")
    report("Producer.publish, in a burst", "≤ 2,000 ns", burst, unit="ns")
    report("the same with a spool, now and then", "a few µs", spooled_quiet, unit="ns")
    report("the same with a spool, in a burst", "a few µs", spooled_burst, unit="ns")
    report("Producer's sender", "≥ 150,000/s", rates)
    report("the same with a spool", "≥ 150,000/s", spooled_rates)


if __name__ == "__main__":
    main()
