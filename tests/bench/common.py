"""What the benchmarks share: a server of their own, the same 200-byte event, baselines, and a table at the end.

Every benchmark measures its raw baseline in the same run, in turn with the product (A B A B …), and prints medians and
the median of the pairwise ratios: on a shared machine only those mean something.
"""

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from canvasbus import Event, event

ROUNDS = 5


@event("bench.event", key="model_name")
class BenchEvent(Event):
    """With its envelope just about 200 bytes."""

    model_name: str = "StyleGAN-Canvas-v3"
    drift_score: float = 0.1
    drift_type: str = "KL Divergence, column 17"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a server: CANVASBUS_BENCH_URL, or a redis-server or valkey-server of our own without persistence."""
    given = os.environ.get("CANVASBUS_BENCH_URL")
    if given:
        yield given
        return
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        sys.exit("no redis-server or valkey-server on PATH; set CANVASBUS_BENCH_URL to one without data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/")[0])


class RawSocket:
    """A blocking socket that sends prebuilt bytes and counts reply bytes: what the server gives at best."""

    def __init__(self, url: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port_of(url)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, data: bytes, replies: int) -> list[object]:
        """Send, and parse `replies` replies with hiredis."""
        import hiredis

        self.socket.sendall(data)
        reader = hiredis.Reader()
        found: list[object] = []
        while len(found) < replies:
            reader.feed(self.socket.recv(1 << 20))
            while (reply := reader.gets()) is not False:
                found.append(reply)
        return found


def flush(url: str) -> None:
    raw = RawSocket(url)
    raw.call(b"*1\r\n$8\r\nFLUSHALL\r\n", 1)
    raw.socket.close()


def arguments(description: str, *, count: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-n", type=int, default=count, help=f"events a round (default {count:,})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds (default {ROUNDS})")
    return parser.parse_args()


def redis_benchmark(url: str, n: int, size: int) -> float:
    """Events per second of `redis-benchmark -c 1 -P 500` XADD with a value of `size` bytes."""
    if shutil.which("redis-benchmark") is None:
        sys.exit("redis-benchmark is not on PATH (Debian: redis-tools)")
    output = subprocess.run(
        ["redis-benchmark", "-p", str(port_of(url)), "-c", "1", "-P", "500", "-n", str(n), "--csv",
         "XADD", "bench:raw", "*", "e", "x" * size],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return float(output.strip().splitlines()[-1].split('","')[1])


def report(title: str, goal: str, pairs: list[tuple[float, float]], *, unit: str = "events/s") -> float:
    """Print baseline, ours and ratio; return the median ratio ours/baseline."""
    baseline = statistics.median(b for b, _ in pairs)
    ours = statistics.median(o for _, o in pairs)
    ratios = sorted(o / b for b, o in pairs)
    ratio = statistics.median(ratios)
    print(
        f"{title}: baseline {baseline:,.0f}, ours {ours:,.0f} {unit}; ratio {ratio:.2f} "
        f"({ratios[0]:.2f}–{ratios[-1]:.2f}, {len(pairs)} rounds); goal {goal}"
    )
    return ratio


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
