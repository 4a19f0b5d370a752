"""The library of monitoring: rows counted per second, time of a verdict, size of what is kept, clean windows flagged.

Baseline in the same run: scipy's KS test of each column, as a script would call it.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from canvasbus_workers.monitoring import Partial, Policy, Reference, compare, count

POLICY = Policy()


def milliseconds(function: Callable[[], object], rounds: int) -> tuple[float, float]:
    """(median, p99) of this thread's own time on a core: what others do on the machine is not the library's."""
    function()
    taken = []
    for _ in range(rounds):
        began = time.thread_time()
        function()
        taken.append((time.thread_time() - began) * 1000)
    return statistics.median(taken), float(np.quantile(taken, 0.99))


def by_hand(reference: np.ndarray, window: np.ndarray) -> None:
    """What a script does: scipy's asymptotic KS for each column."""
    for mine, theirs in zip(reference.T, window.T, strict=True):
        stats.ks_2samp(mine, theirs, method="asymp")


def tabular(rounds: int) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((5000, 20)).astype(np.float32)
    reference = Reference({"f": rows})
    for n in (100, 1000, 20_000):
        window = {"f": random.standard_normal((n, 20)).astype(np.float32)}
        middle, _ = milliseconds(lambda w=window: count(reference, w), rounds)  # type: ignore[misc]
        print(f"counting {n:,} rows × 20 columns: {n / middle * 1000:,.0f} rows/s; goal ≥ 500,000")
    window = {"f": random.standard_normal((1000, 20)).astype(np.float32)}
    hand, _ = milliseconds(lambda: by_hand(rows, window["f"]), max(5, rounds // 10))
    middle, p99 = milliseconds(lambda: compare(reference, count(reference, window), POLICY), rounds)
    print(
        f"verdict 1000 × 20 (5000): median {middle:.2f} ms, p99 {p99:.2f} ms; goal p99 ≤ 5; scipy's KS alone {hand:.1f} ms"
    )
    packed = count(reference, window).pack()
    middle, _ = milliseconds(lambda: Partial.unpack(packed), rounds)
    print(f"partial of 1000 × 20: {len(packed):,} bytes, unpacked in {middle:.3f} ms")


def embeddings(rounds: int) -> None:
    random = np.random.default_rng(1)
    began = time.perf_counter()
    reference = Reference({"embedding": random.standard_normal((2000, 512)).astype(np.float32)})
    fitted = time.perf_counter() - began
    window = {"embedding": random.standard_normal((500, 512)).astype(np.float32)}
    middle, p99 = milliseconds(lambda: compare(reference, count(reference, window), POLICY), rounds)
    print(
        f"verdict 500 × 512-d (2000): median {middle:.2f} ms, p99 {p99:.2f} ms; goal p99 ≤ 10; fitted in {fitted:.2f} s"
    )
    print(f"partial of 500 × 512-d: {len(count(reference, window).pack()):,} bytes")


def false_alarms(windows: int) -> None:
    random = np.random.default_rng(2)
    for n in (50, 100, 200, 500, 1000, 5000):
        significant = flagged = 0
        for _ in range(10):
            reference = Reference({"f": random.standard_normal((5000, 20)).astype(np.float32)})
            for _ in range(windows // 10):
                found = compare(reference, count(reference, {"f": random.standard_normal((n, 20))}), POLICY)
                significant += found.p_value <= POLICY.level
                flagged += bool(found.flagged)
        print(
            f"clean windows of {n} rows × 20: {significant / windows:.4f} significant, {flagged / windows:.4f} flagged; "
            f"goal ≤ {2 * POLICY.level}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--windows", type=int, default=1000, help="clean windows for each size")
    options = parser.parse_args()
    tabular(options.rounds)
    embeddings(options.rounds)
    false_alarms(options.windows)


if __name__ == "__main__":
    main()
