"""The drift worker in real processes on a real server, under kill -9."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studio import Eyes, quiet
from waiting import until

from canvasbus import Producer
from canvasbus_workers.artifacts import ArtifactStore
from canvasbus_workers.drift import record

UNIT = "from canvasbus_workers.drift import worker\n"
MODEL = "StyleGAN-Canvas-v3"


async def test_three_workers_share_a_model_and_two_are_killed(
    server_url: str,
    namespace: str,
    eyes: Eyes,
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows are filled by whoever gets a batch. With two workers killed in the middle of windows every row is in one
    window, in no two, and the shift that comes half way is one episode with its reference's digest."""
    monkeypatch.setenv("ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    random = np.random.default_rng(3)
    where = ("--url", server_url, "--namespace", namespace)
    programs = [start(*where, unit=UNIT) for _ in range(3)]
    await until(lambda: all(program.said("worker joined") for program in programs), 60)
    known = record.reference(MODEL, "v1", store=ArtifactStore(), aesthetic=random.standard_normal(1000))

    def windows() -> list[Any]:
        return list(eyes.events("window.evaluated"))

    async def until_evaluated(number: int) -> None:
        assert bus.flush(10)
        await until(lambda: len(windows()) >= number, 60)

    with Producer(server_url, namespace=namespace) as bus:
        bus.publish(known)
        assert bus.flush(10)
        await quiet(eyes, event_type="reference.registered", timeout=30)
        for number in range(160):
            if number == 80:  # a killed worker's batches come late: clean ones among the others would end the episode
                await until_evaluated(20)
            shift = 0.0 if number < 80 else 1.5
            scores = random.standard_normal(25) + shift
            ids = [f"{number}/{row}" for row in range(25)]
            bus.publish(record.observations(MODEL, ids=ids, version="v1", batch_id=f"b{number}", aesthetic=scores))
            if number in (30, 110):
                await until_evaluated((number - 25) // 4)
                os.kill(programs.pop(0).process.pid, 9)
        assert bus.flush(20)
    await until(lambda: len(windows()) == 40, 60)
    await quiet(eyes, event_type="observations.recorded", timeout=30)
    found = windows()
    assert [window.number for window in found] == list(range(40))
    assert {(window.items, window.batches) for window in found} == {(100, 4)}
    assert len({window.window_id for window in found}) == 40
    opened = [event for event in eyes.events("drift.detected") if event.state == "opened"]
    assert {event.episode_id for event in opened} == {f"{MODEL}/drift/1"} and len(opened) == 1
    assert opened[0].features[0].feature == "aesthetic" and opened[0].direction == "up"
    assert len(opened[0].reference_hash) == 64
    assert eyes.dead("drift") == []
