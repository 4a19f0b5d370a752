"""The retrain worker in real processes on a real server, under kill -9."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studio import Eyes
from waiting import until

from canvasbus import Producer
from canvasbus.events import RetrainRequested

UNIT = "from canvasbus_workers.retrain import worker\n"

JOB = """
import json, os, time
with open("ran", "a") as file:
    file.write(f"{os.getpid()} {os.environ['RETRAIN_CORRELATION_ID']}\\n")
while not os.path.exists("go on"):
    time.sleep(0.01)
json.dump({"metrics": {"accuracy": 0.9}}, open(os.environ["RETRAIN_RESULT"], "w"))
"""


@pytest.mark.long
async def test_a_worker_is_killed_while_it_trains(
    server_url: str,
    namespace: str,
    eyes: Eyes,
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kill -9: the training goes on, the other worker adopts it, and its result is promoted. It ran once, under the
    correlation of the request."""
    (tmp_path / "train.py").write_text(JOB)
    config = tmp_path / "canvasbus.toml"
    config.write_text(
        f'[workers.retrain]\nlauncher = "subprocess"\nfolder = "{tmp_path}/runs"\n[workers.retrain.subprocess]\n'
        f'command = {json.dumps([sys.executable, "train.py"])}\ncwd = "{tmp_path}"\n'
    )
    monkeypatch.setenv("CANVASBUS_CONFIG", str(config))
    where = ("--url", server_url, "--namespace", namespace)
    first = start(*where, unit=UNIT)
    await until(lambda: first.said("worker joined"), 60)
    asked = RetrainRequested(model_name="m")
    with Producer(server_url, namespace=namespace) as bus:
        bus.publish(asked)
        assert bus.flush(10)
    ran = tmp_path / "ran"
    await until(lambda: ran.exists() and ran.read_text().endswith("\n"), 60)
    os.kill(first.process.pid, 9)
    first.process.wait()
    second = start(*where, unit=UNIT)
    await until(lambda: second.said("worker joined"), 60)
    await until(lambda: len(eyes.pending("retrain", "retrain.started")) == 1, 60)
    os.kill(int(ran.read_text().split()[0]), 0)  # it lives
    (tmp_path / "go on").touch()
    await until(lambda: eyes.events("model.promoted"), 60)
    (promoted,) = eyes.events("model.promoted")
    assert (promoted.run_id, promoted.correlation_id) == ("m/v1", asked.correlation_id)
    (line,) = ran.read_text().splitlines()
    assert line.split()[1] == str(asked.correlation_id)
    assert len(eyes.events("retrain.succeeded")) == 1
    assert eyes.dead("retrain") == []
