"""The whole chain: every worker a process of its own on a real server, and an HTTP server in the place of Slack."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from serving import Server, answering
from studio import Eyes, quiet
from waiting import until

from canvasbus import Event, Producer
from canvasbus_workers.artifacts import ArtifactStore
from canvasbus_workers.drift import record
from canvasbus_workers.features import FeatureReader

MODEL = "StyleGAN-Canvas-v3"
WORKERS = ("drift", "metrics", "alerts", "retrain", "features")

SETTINGS = """
[workers.metrics.rules.accuracy]
metric = "accuracy"
min = 0.7

[workers.alerts.destinations.studio]
kind = "slack"
url = {url}
plain_http = true
allow = ["127.0.0.1"]

[workers.alerts.destinations.pager]
kind = "webhook"
url = {url}
plain_http = true
allow = ["127.0.0.1"]

[workers.retrain]
launcher = "subprocess"
folder = {runs}
debounce_seconds = 0.5

[workers.retrain.subprocess]
command = {command}
cwd = {cwd}
"""

JOB = """
import json, os
with open("ran", "a") as file:
    file.write(os.environ["RETRAIN_CORRELATION_ID"] + "\\n")
with open(os.environ["RETRAIN_RESULT"], "w") as file:
    json.dump({"model_version": "v2", "metrics": {"accuracy": 0.95}}, file)
"""


def configure(folder: Path, url: str) -> Path:
    """canvasbus.toml and the training job that it names."""
    (folder / "train.py").write_text(JOB)
    values = {"url": url, "runs": str(folder / "runs"), "command": [sys.executable, "train.py"], "cwd": str(folder)}
    path = folder / "canvasbus.toml"
    path.write_text(SETTINGS.format(**{name: json.dumps(value) for name, value in values.items()}))
    return path


def known(random: np.random.Generator) -> Event:
    """What the model says where it is known to be good."""
    rows = {"correct": random.random(1000) < 0.95, "aesthetic": random.standard_normal(1000)}
    return record.reference(MODEL, "v1", store=ArtifactStore(), **rows)


def worse(random: np.random.Generator) -> Iterator[Event]:
    """Four windows of pictures that have become worse: every answer scores higher than in the reference, and half of them
    are wrong. Each event comes twice, as from a model server that is not sure."""
    for number in range(4):
        batch = {"ids": [f"{number}/{row}" for row in range(100)], "batch_id": f"b{number}"}
        scores = random.standard_normal(100) + 1.5
        seen = record.observations(MODEL, version="v1", predictions=[1] * 100, aesthetic=scores, **batch)
        labels = record.labels(MODEL, truth=random.integers(0, 2, 100), **batch)
        yield from (seen, labels) * 2


def everything(url: str, namespace: str) -> dict[str, dict[str, Any]]:
    """All events of the namespace as CloudEvents, by id, as `canvasbus tail` shows them."""
    where = ("--url", url, "--namespace", namespace)
    command = (sys.executable, "-m", "canvasbus", "tail", "--from", "0", "--json", *where)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return {event["id"]: event for event in map(json.loads, done.stdout.splitlines())}


@pytest.mark.long
async def test_from_observations_to_slack_and_a_new_model(
    server_url: str,
    namespace: str,
    eyes: Eyes,
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model server's batches in: drift and lost quality are noticed, Slack and a webhook are told, the training runs
    once and its model is promoted, the window is a row of the feature store, within seconds; and all of it, the outside
    included, under the one correlation that the model server gave. What caused what leads from the promoted model back to
    what the model server published."""
    monkeypatch.setenv("ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    ours = str(uuid.uuid4())

    def promoted() -> bool:
        return eyes.count("model.promoted") > 0

    def told_of_the_worst() -> list[dict[str, Any]]:
        bodies = [json.loads(request.body) for request in outside.requests]
        critical = [body for body in bodies if "critical" in json.dumps(body)]
        return bodies if {"blocks" in body for body in critical} == {True, False} else []

    async with trio.open_nursery() as nursery:
        outside = await Server(answering(200, b"ok")).start(nursery)
        monkeypatch.setenv("CANVASBUS_CONFIG", str(configure(tmp_path, outside.url)))
        programs = [start("--url", server_url, "--namespace", namespace, target=name) for name in WORKERS]
        await until(lambda: all(program.said("worker joined") for program in programs), 90)
        random = np.random.default_rng(3)
        with Producer(server_url, namespace=namespace, source="model-server") as bus, bus.correlation(uuid.UUID(ours)):
            bus.publish(known(random))
            assert bus.flush(10)
            await quiet(eyes, "drift", event_type="reference.registered", timeout=30)  # else the windows are in warmup
            began = time.monotonic()
            bus.publish_many(worse(random))
        await until(promoted, 30)
        print(f"promoted after {time.monotonic() - began:.1f} s")
        bodies = await until(told_of_the_worst, 30)
        with FeatureReader(server_url, namespace) as online:
            row = await until(lambda: online.get("drift", [MODEL])[0], 30)
        print(f"told after {time.monotonic() - began:.1f} s")
        nursery.cancel_scope.cancel()

    assert (tmp_path / "ran").read_text().split() == [ours]
    (model,) = eyes.events("model.promoted")
    assert (model.model_name, model.model_version, model.run_id) == (MODEL, "v2", f"{MODEL}/v1")
    assert len(eyes.events("retrain.started")) == 1

    for body in bodies:
        shown = body["blocks"][-1]["elements"][0]["text"] if "blocks" in body else body["correlationid"]
        assert shown.endswith(ours)

    found = everything(server_url, namespace)
    assert {event["type"] for event in found.values()} >= {
        *("reference.registered", "observations.recorded", "labels.recorded", "window.evaluated", "drift.detected"),
        *("metric.reported", "metric.threshold_breached", "incident.opened"),
        *("retrain.started", "retrain.succeeded", "model.promoted"),
    }
    assert {event["correlationid"] for event in found.values()} == {ours}
    assert found[str(uuid.UUID(row.event_id))]["type"] == "window.evaluated" and row.values["flagged"] == 1.0
    way = [next(event for event in found.values() if event["type"] == "model.promoted")]
    while cause := way[-1].get("causationid"):
        way.append(found[cause])
    *steps, signal, origin = [event["type"] for event in way]
    assert steps == ["model.promoted", "retrain.succeeded", "retrain.started", "retrain.due"]
    assert signal in ("metric.threshold_breached", "drift.detected")  # what is critical first is chance
    assert origin in ("labels.recorded", "observations.recorded") and way[-1]["source"] == "model-server"
    assert [eyes.dead(name) for name in WORKERS] == [[]] * len(WORKERS)
