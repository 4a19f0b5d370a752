"""The retrain worker in real processes on a real server, under kill -9."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studio import Eyes, quiet
from waiting import until

from canvasbus import Event, Producer
from canvasbus.events import RetrainFailed, RetrainRequested

UNIT = "from canvasbus_workers.retrain import worker\n"

DYING = """
import os
from canvasbus_workers.retrain import launching, telling, worker
from canvasbus_workers.retrain.launchers import records, subprocess

def dies_in(place, name):
    setattr(place, name, lambda *_, **__: os.kill(os.getpid(), 9))

def dies_after(place, name):
    real = getattr(place, name)
    setattr(place, name, lambda *given, **named: (real(*given, **named), os.kill(os.getpid(), 9)))

def dies_after_awaiting(place, name):
    real = getattr(place, name)
    async def dying(*given, **named):
        await real(*given, **named)
        os.kill(os.getpid(), 9)
    setattr(place, name, dying)

"""

PHASES = {
    "it has decided, and not said so": "dies_in(telling, 'follows')",
    "the order is on the bus, and nothing is begun": "dies_in(launching, 'launch')",
    "the order is written down": "dies_after(records, 'claim')",
    "the supervisor has been started": "dies_after_awaiting(subprocess.Subprocess, '_supervise')",
    "the training has ended": "dies_in(subprocess, 'outcome')",
    "it has read the outcome, and not said so": "dies_in(launching, 'answer')",
    "it is about to promote": "dies_in(telling, 'promoted')",
}

JOB = """
import json, os, time
version = os.environ["RETRAIN_VERSION"]
with open("ran", "a") as file:
    file.write(f"{version} {os.getpid()} {os.environ['RETRAIN_CORRELATION_ID']}\\n")
while not os.path.exists(f"go on {version}"):
    time.sleep(0.01)
json.dump({"metrics": {"accuracy": 0.9}}, open(os.environ["RETRAIN_RESULT"], "w"))
"""

pytestmark = pytest.mark.long


@pytest.fixture
def config(tmp_path: Path, configure: Callable[[str], None]) -> None:
    """canvasbus.toml for workers that train with JOB."""
    (tmp_path / "train.py").write_text(JOB)
    configure(
        f'[workers.retrain]\nlauncher = "subprocess"\nfolder = "{tmp_path}/runs"\ncooldown_seconds = 0\n'
        f'[workers.retrain.subprocess]\ncommand = {json.dumps([sys.executable, "train.py"])}\ncwd = "{tmp_path}"\n'
    )


def ran(folder: Path) -> list[list[str]]:
    """[version, process, correlation] of each training that has begun."""
    path = folder / "ran"
    text = path.read_text() if path.exists() else ""
    return [line.split() for line in text.splitlines()] if text.endswith("\n") else []


async def test_a_worker_is_killed_while_it_trains(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any], tmp_path: Path, config: None
) -> None:
    """kill -9: the training goes on, the other worker adopts it, and its result is promoted. It ran once, under the
    correlation of the request."""
    where = ("--url", server_url, "--namespace", namespace)
    first = start(*where, unit=UNIT)
    await until(lambda: first.said("worker joined"), 60)
    asked = RetrainRequested(model_name="m")
    with Producer(server_url, namespace=namespace) as bus:
        bus.publish(asked)
        assert bus.flush(10)
    await until(lambda: ran(tmp_path), 60)
    os.kill(first.process.pid, 9)
    first.process.wait()
    second = start(*where, unit=UNIT)
    await until(lambda: second.said("worker joined"), 60)
    await until(lambda: len(eyes.pending("retrain", "retrain.started")) == 1, 60)
    os.kill(int(ran(tmp_path)[0][1]), 0)  # it lives
    (tmp_path / "go on v1").touch()
    await until(lambda: eyes.events("model.promoted"), 60)
    (promoted,) = eyes.events("model.promoted")
    assert (promoted.run_id, promoted.correlation_id) == ("m/v1", asked.correlation_id)
    ((_, _, correlation),) = ran(tmp_path)
    assert correlation == str(asked.correlation_id)
    assert len(eyes.events("retrain.succeeded")) == 1
    assert eyes.dead("retrain") == []


@pytest.mark.parametrize("phase", PHASES)
async def test_a_worker_is_killed_in_each_phase(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any], tmp_path: Path, config: None, phase: str
) -> None:
    """Wherever kill -9 finds it, the next worker goes on from there: one order, one training, one answer, one promotion."""
    (tmp_path / "go on v1").touch()
    where = ("--url", server_url, "--namespace", namespace)
    first = start(*where, unit=DYING + PHASES[phase])
    await until(lambda: first.said("worker joined"), 60)
    with Producer(server_url, namespace=namespace) as bus:
        bus.publish(RetrainRequested(model_name="m"))
        assert bus.flush(10)
    await until(lambda: first.process.poll() is not None, 60)
    assert first.process.returncode == -9
    assert eyes.count("model.promoted") == 0
    start(*where, unit=UNIT)
    await until(lambda: eyes.count("model.promoted"), 60)
    for event_type in ("retrain.started", "retrain.succeeded", "model.promoted"):
        await quiet(eyes, "retrain", event_type=event_type, timeout=60)
        assert [(event.run_id, event.fence) for event in eyes.events(event_type)] == [("m/v1", 1)]
    assert [version for version, _, _ in ran(tmp_path)] == ["v1"]
    assert eyes.count("retrain.failed") == 0 and eyes.dead("retrain") == []


LATE = """
import msgspec
from canvasbus_workers.retrain import handlers, worker

real = handlers.order_of

def order_of(*given):
    order = real(*given)
    return msgspec.structs.replace(order, ordered=order.ordered - 7 * 3600)

handlers.order_of = order_of
"""
"""For this worker an order is seven hours older, an hour more than a run may take."""


@pytest.mark.parametrize("case", ["it has ended", "it goes on", "it has not begun"])
async def test_whoever_takes_over_comes_late(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any], tmp_path: Path, config: None, case: str
) -> None:
    """kill -9, and the next worker comes when the time in which the run could start is over: what has ended well meanwhile
    is promoted, what goes on is waited for, and the next one begins after it. What has not begun does not begin any more."""
    where = ("--url", server_url, "--namespace", namespace)

    def ask() -> None:
        with Producer(server_url, namespace=namespace) as bus:
            bus.publish(RetrainRequested(model_name="m"))
            assert bus.flush(10)

    first = start(*where, unit=DYING + "dies_in(launching, 'launch')" if case == "it has not begun" else UNIT)
    await until(lambda: first.said("worker joined"), 60)
    ask()
    if case == "it has not begun":
        await until(lambda: first.process.poll() is not None, 60)
    else:
        await until(lambda: ran(tmp_path), 60)
        os.kill(first.process.pid, 9)
        first.process.wait()
    if case == "it has ended":
        (tmp_path / "go on v1").touch()
        await until(lambda: list(tmp_path.glob("runs/*/ended.json")), 60)
    second = start(*where, unit=LATE)
    await until(lambda: second.said("worker joined"), 60)
    if case == "it has not begun":
        await until(lambda: eyes.count("retrain.failed"), 60)
        (failed,) = eyes.events("retrain.failed")
        assert failed.error == "it could not be started in time"
        await quiet(eyes, "retrain", event_type="retrain.failed", timeout=60)
        assert ran(tmp_path) == [] and eyes.count("retrain.succeeded") == 0
        return
    await until(lambda: eyes.pending("retrain", "retrain.started") or eyes.count("model.promoted"), 60)
    ask()
    await quiet(eyes, "retrain", event_type="retrain.requested", timeout=60)
    if case == "it goes on":
        assert [version for version, _, _ in ran(tmp_path)] == ["v1"]
    (tmp_path / "go on v1").touch()
    await until(lambda: eyes.count("model.promoted"), 60)
    await until(lambda: eyes.count("retrain.failed"), 60)  # the second order is too old for this worker
    (promoted,), (failed,) = eyes.events("model.promoted"), eyes.events("retrain.failed")
    assert (promoted.run_id, failed.run_id) == ("m/v1", "m/v2")
    assert [version for version, _, _ in ran(tmp_path)] == ["v1"]
    assert eyes.dead("retrain") == []


async def test_a_stale_run_of_a_killed_worker(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any], tmp_path: Path, config: None
) -> None:
    """Its worker is killed, it is given up, and a newer one is promoted: when it ends well after all, the worker that
    has adopted it says so, and nothing is promoted."""
    where = ("--url", server_url, "--namespace", namespace)

    def say(*events: Event) -> None:
        with Producer(server_url, namespace=namespace) as bus:
            bus.publish_many(events)
            assert bus.flush(10)

    first = start(*where, unit=UNIT)
    await until(lambda: first.said("worker joined"), 60)
    say(RetrainRequested(model_name="m"))
    await until(lambda: ran(tmp_path), 60)
    os.kill(first.process.pid, 9)
    first.process.wait()
    second = start(*where, unit=UNIT)
    await until(lambda: second.said("worker joined"), 60)
    say(RetrainFailed(model_name="m", run_id="m/v1", error="given up"))
    await quiet(eyes, "retrain", event_type="retrain.failed", timeout=60)
    say(RetrainRequested(model_name="m"))
    await until(lambda: len(ran(tmp_path)) == 2, 60)
    (tmp_path / "go on v2").touch()
    await until(lambda: eyes.count("model.promoted"), 60)
    (tmp_path / "go on v1").touch()
    await until(lambda: second.said("a run that is not in flight has succeeded: not promoted"), 60)
    await quiet(eyes, "retrain", event_type="retrain.succeeded", timeout=60)
    assert [event.run_id for event in eyes.events("retrain.succeeded")] == ["m/v2", "m/v1"]
    assert [(event.run_id, event.fence) for event in eyes.events("model.promoted")] == [("m/v2", 2)]
    assert [version for version, _, _ in ran(tmp_path)] == ["v1", "v2"]
    assert eyes.dead("retrain") == []
