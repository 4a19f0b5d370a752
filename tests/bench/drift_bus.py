"""From the last observation of a window published to drift.detected delivered: a drift worker in a process of its own, a
Redis of its own, windows of 1000 rows × 20 features in ten batches, or of 500 embeddings of 512 dimensions.

Each round is another model, with a clean window and two drifted ones, the second of which opens an episode; the clock
starts before its last batch is published and stops in a handler of drift.detected in this process.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trio
from common import server

from canvasbus import Event
from canvasbus.bus import EventBus
from canvasbus.events import DriftDetected, ReferenceRegistered
from canvasbus_workers.artifacts import ArtifactStore
from canvasbus_workers.drift import record

SHAPES: dict[str, tuple[int, int, int]] = {"features": (1000, 20, 10), "embedding": (500, 512, 5)}
"""Name → rows of a window, columns, batches."""


def window(model: str, name: str, number: int) -> Iterator[Event]:
    rows, width, batches = SHAPES[name]
    random = np.random.default_rng(number)
    values = (random.standard_normal((rows, width)) + (0.5 if number % 3 else 0.0)).astype(np.float32)
    for at, part in enumerate(np.split(values, batches)):
        ids = [f"{number}/{at}/{row}" for row in range(len(part))]
        yield record.observations(model, ids=ids, version="v1", batch_id=f"{number}.{at}", **{name: part})


async def measure(url: str, name: str, rounds: int) -> list[float]:
    """Seconds of each round."""
    width = SHAPES[name][1]
    sample = np.random.default_rng(0).standard_normal((2000, width)).astype(np.float32)
    ref = ArtifactStore().put({name: sample})
    taken: list[float] = []
    arrived: dict[str, trio.Event] = {}
    ended: dict[str, float] = {}

    async def delivered(event: DriftDetected) -> None:
        ended[event.model_name] = time.perf_counter()
        if event.model_name in arrived:
            arrived[event.model_name].set()

    async with EventBus(url, source="bench") as bus:
        bus.subscribe(DriftDetected, delivered, group="bench")
        await bus.wait_ready()
        for number in range(rounds):
            model = f"{name}-{number}"
            known = ReferenceRegistered(model_name=model, model_version="v1", reference_id=f"{model}/r", sample=ref)
            await bus.publish(known)
        await trio.sleep(3 + rounds * width / 2000)  # each is loaded and prepared
        for number in range(rounds):
            model = f"{name}-{number}"
            arrived[model] = trio.Event()
            *first, last = (event for at in range(3) for event in window(model, name, 3 * number + at))
            for event in first:
                await bus.publish(event)
            await trio.sleep(0.5 if width > 64 else 0.1)  # all but the last batch are handled
            began = time.perf_counter()
            await bus.publish(last)
            with trio.fail_after(30):
                await arrived[model].wait()
            taken.append(ended[model] - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with server() as url, tempfile.TemporaryDirectory() as folder:
        for name, (rows, width, batches) in SHAPES.items():
            settings = Path(folder) / "canvasbus.toml"
            settings.write_text(f"[workers.drift]\nwindow_items = {rows}\n")
            os.environ["ARTIFACT_ROOT"] = folder
            environ: dict[str, Any] = dict(os.environ) | {"CANVASBUS_URL": url, "CANVASBUS_CONFIG": str(settings)}
            command = [sys.executable, "-m", "canvasbus.cli.worker", "drift"]
            with open(f"{folder}/log", "wb") as log:
                worker = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
            try:
                taken = np.array(trio.run(measure, url, name, options.rounds)[5:]) * 1000
            finally:
                worker.terminate()
                worker.wait()
            middle, p99 = np.quantile(taken, [0.5, 0.99])
            print(
                f"{rows} × {width} in {batches} batches → drift.detected: median {middle:.1f} ms, p99 {p99:.1f} ms; "
                f"goal p99 ≤ 50 ({len(taken)} rounds)"
            )


if __name__ == "__main__":
    main()
