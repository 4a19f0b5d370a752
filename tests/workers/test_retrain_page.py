"""The retrain worker's page: its jobs run, its settings are the worker's, and what it names exists."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servers import python_path
from studio import Eyes, running
from waiting import until

from canvasbus.config import load, section
from canvasbus.contract.registry import registry
from canvasbus.events import RetrainRequested
from canvasbus_workers import retrain
from canvasbus_workers.retrain.settings import Settings

PAGE = Path(__file__).parent.parent.parent / "workers" / "canvasbus_workers" / "retrain" / "README.md"
TEXT = PAGE.read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))


@pytest.mark.parametrize(("job", "answer"), [("train.py", "file"), ("train_and_tell.py", "bus")])
async def test_the_jobs_run(
    server_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, answer: str
) -> None:
    """With the settings of the page: each trains, tells in its way, and is promoted under the request's correlation."""
    (tmp_path / job).write_text(FILES[job])
    config = FILES["canvasbus.toml"].replace("/tmp/retrain-runs", str(tmp_path / "runs"))
    config = config.replace('["python", "train.py"]', json.dumps([sys.executable, job]))
    config = config.replace("CUDA_*", '*URL", "PYTHONPATH').replace("timeout", f'answer = "{answer}"\ntimeout')
    (tmp_path / "canvasbus.toml").write_text(config + f'cwd = "{tmp_path}"\n')
    monkeypatch.setenv("CANVASBUS_CONFIG", str(tmp_path / "canvasbus.toml"))
    monkeypatch.setenv("CANVASBUS_URL", server_url)
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    # The job publishes to the default namespace, as the page has it.
    eyes = Eyes(server_url, "canvasbus")
    asked = RetrainRequested(model_name=f"m-{namespace}")

    def promoted() -> list[Any]:
        return [event for event in eyes.events("model.promoted") if event.model_name == asked.model_name]

    async with running(server_url, retrain.worker, namespace="canvasbus") as bus:
        await bus.publish(asked)
        await until(promoted, 30)
    (event,) = promoted()
    assert event.correlation_id == asked.correlation_id
    (done,) = [one for one in eyes.events("retrain.succeeded") if one.model_name == asked.model_name]
    assert done.metrics == {"accuracy": 0.91}
    eyes.close()


def read(path: Path, text: str, monkeypatch: Any) -> tuple[Settings, Any]:
    path.write_text(text)
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    loaded = load()
    return section("retrain", Settings, loaded), loaded.workers["retrain"]


def test_the_settings_are_all_there_with_their_defaults(tmp_path: Path, monkeypatch: Any) -> None:
    """The table on the page is what the worker has when it is told nothing, and names every setting."""
    settings, tables = read(tmp_path / "c.toml", FILES["settings.toml"], monkeypatch)
    assert settings == Settings()
    whole = msgspec.to_builtins(Settings())
    assert set(tables) | {"models"} == set(whole)
    for name in ("subprocess", "http", "prefect"):
        assert set(tables[name]) == set(whole[name])


def test_the_other_tables_are_accepted(tmp_path: Path, monkeypatch: Any) -> None:
    """http, prefect, and what is different for some models."""
    assert read(tmp_path / "c.toml", FILES["http.toml"], monkeypatch)[0].says == "state"
    assert read(tmp_path / "c.toml", FILES["prefect.toml"], monkeypatch)[0].prefect.deployment == "train/nightly"
    settings, _ = read(tmp_path / "c.toml", FILES["models.toml"], monkeypatch)
    policy = settings.policy("StyleGAN-Canvas-v3")
    assert (policy.launcher, policy.approval, policy.daily_runs) == ("subprocess", True, 2)
    assert policy.subprocess.command == ("python", "train_gan.py") and settings.policy("Pix").launcher == "bus"


def test_what_it_names_exists() -> None:
    """Event types, and every variable that a job gets."""
    named = set(re.findall(r"`((?:drift|metric|retrain|labels|model)\.[a-z_]+)`", TEXT))
    assert named and named <= set(registry.names())
    source = (PAGE.parent / "launchers" / "subprocess.py").read_text()
    table = set(re.findall(r"`(RETRAIN_[A-Z_]+|TRACEPARENT)`", TEXT))
    assert table == set(re.findall(r'"(RETRAIN_[A-Z_]+|TRACEPARENT)"', source))
