"""The drift worker's page: its code runs, its settings are the worker's, and what it names exists."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from servers import python_path

import canvasbus.events
from canvasbus.config import load, section
from canvasbus.contract.registry import registry
from canvasbus_workers.drift.settings import Settings
from canvasbus_workers.monitoring.expectations import Check

PAGE = Path(__file__).parent.parent.parent / "workers" / "canvasbus_workers" / "drift" / "README.md"
TEXT = PAGE.read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))


def run(folder: Path, name: str, **environ: str) -> str:
    (folder / name).write_text(FILES[name])
    full = dict(os.environ) | {"PYTHONPATH": python_path(folder), **environ}
    done = subprocess.run([sys.executable, name], cwd=folder, env=full, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_runs(tmp_path: Path) -> None:
    """The library's example flags what it says."""
    assert run(tmp_path, "notebook.py").startswith("ks:aesthetic")


def test_the_model_server_runs(tmp_path: Path, make_server: Any) -> None:
    """The example of a model server publishes what the worker needs: a window and its accuracy come of it."""
    import trio
    from waiting import until

    from canvasbus.bus import EventBus
    from canvasbus_workers import drift

    url = make_server().url
    run(tmp_path, "serve.py", CANVASBUS_URL=url, ARTIFACT_ROOT=os.environ["ARTIFACT_ROOT"])
    told: list[Any] = []

    async def main() -> None:
        async with EventBus(url) as bus:
            bus.subscribe(canvasbus.events.WindowEvaluated, told.append, group="told")
            bus.subscribe(canvasbus.events.MetricReported, told.append, group="told-too")
            bus.add(drift.worker)
            await until(lambda: len(told) == 2, 30)

    trio.run(main)
    found = {type(event).__name__: event for event in told}
    assert found["WindowEvaluated"].items == 100
    assert (found["MetricReported"].value, found["MetricReported"].items) == (1.0, 30)


def test_the_helper_is_light(tmp_path: Path) -> None:
    """What a model server imports brings numpy and no trio, and tells numpy nothing about threads."""
    code = (
        "import os, sys; before = dict(os.environ); import canvasbus_workers.drift.record, canvasbus_workers.drift.settings; "
        "assert dict(os.environ) == before; print({'trio', 'structlog', 'redis'} & set(sys.modules))"
    )
    full = dict(os.environ) | {"PYTHONPATH": python_path(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=full)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_settings_are_all_there_with_their_defaults(tmp_path: Path, monkeypatch: Any) -> None:
    """The table on the page is what the worker has when it is told nothing, and names every setting."""
    path = tmp_path / "canvasbus.toml"
    path.write_text(FILES["canvasbus.toml"])
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    loaded = load()
    assert section("drift", Settings, loaded) == Settings()
    assert set(loaded.workers["drift"]) == {field.name for field in msgspec.structs.fields(Settings)}


def test_what_it_names_exists() -> None:
    """Event types, and every check of data quality in the declared event."""
    named = set(re.findall(r"`((?:window|drift|data_quality|metric)\.[a-z_]+)`", TEXT))
    assert named and named <= set(registry.names())
    declared = msgspec.inspect.type_info(canvasbus.events.DataQualityViolated)
    (check,) = [field for field in declared.fields if field.name == "check"]  # type: ignore[union-attr]
    assert set(check.type.values) == set(Check.__args__)  # type: ignore[attr-defined]
