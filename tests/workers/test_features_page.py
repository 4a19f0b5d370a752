"""The features worker's page: its code runs, its settings are the worker's, and its keys and commands are those on the server."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import trio
from servers import ServerProcess, python_path
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.config import load, section
from canvasbus.events import WindowEvaluated
from canvasbus.operate.doctor.judge_workers import judge_workers
from canvasbus.store import Store
from canvasbus_workers import features
from canvasbus_workers.features import FeatureReader, OfflineLog
from canvasbus_workers.features.online import WRITE
from canvasbus_workers.features.rows import row_of
from canvasbus_workers.features.settings import FeastSettings, FeastView, RedisSettings, Settings, SqliteSettings

PAGE = Path(__file__).parent.parent.parent / "workers" / "canvasbus_workers" / "features" / "README.md"
TEXT = PAGE.read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))


def run(folder: Path, name: str, *arguments: str, url: str) -> str:
    (folder / name).write_text(FILES[name])
    environ = dict(os.environ) | {"PYTHONPATH": python_path(folder), "CANVASBUS_URL": url}
    done = subprocess.run(
        [sys.executable, name, *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_code_runs_and_its_keys_are_there(tmp_path: Path, make_server: Any, monkeypatch: Any) -> None:
    """Publish, read online, read offline; every redis-cli line finds what the page says."""
    server: ServerProcess = make_server()
    path = tmp_path / "features.db"
    (tmp_path / "canvasbus.toml").write_text(
        f'[workers.features.sinks]\nonline = {{kind = "redis"}}\nlog = {{kind = "sqlite", path = "{path}"}}\n'
    )
    monkeypatch.setenv("CANVASBUS_CONFIG", str(tmp_path / "canvasbus.toml"))
    run(tmp_path, "publish.py", url=server.url)
    window = WindowEvaluated(model_name="StyleGAN-Canvas-v3", drift_score=0.75)

    async def main() -> None:
        async with EventBus(server.url) as bus:
            bus.add(features.worker)
            await bus.wait_ready()  # and has made its log
            await bus.publish(window)
            reader = FeatureReader(server.url)
            with OfflineLog(path) as log:
                await until(lambda: len(log) == 2 and None not in reader.get("embedding-v2", ["artwork-7"]), 30)

    trio.run(main)
    assert run(tmp_path, "serve.py", url=server.url).endswith("6.25 [0.0, 0.25, 0.5, 0.75]\n")
    assert run(tmp_path, "train.py", str(path), url=server.url).startswith("{'aesthetic': 6.25}")
    lines = re.findall(r"^redis-cli (\S+) '(\S+)'(.*)$", TEXT, re.MULTILINE)
    with Store(server.url) as store:
        found = [store.ask((command, key, *rest.split()))[0] for command, key, rest in lines]
    assert dict(zip(found[0][::2], found[0][1::2], strict=True))[b"value:aesthetic"] == b"6.25"
    assert found[1] == b"0.75"
    assert len(found[2]) == 1 and len(found) == 3


def test_the_settings_are_all_there_with_their_defaults(tmp_path: Path, monkeypatch: Any) -> None:
    """What the page shows is what the worker has when it is told no more than what it needs, and names every setting."""
    path = tmp_path / "canvasbus.toml"
    path.write_text(FILES["canvasbus.toml"])
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    found = section("features", Settings, load())
    assert [(one.level, one.check) for one in judge_workers(load())] == [("ok", "workers.features")]
    views = {
        "drift": FeastView(
            push_source="drift_push", entity="model", columns={"ks:sharpness": "ks_sharpness", "flagged": "flagged"}
        )
    }
    assert found == Settings(
        sinks={
            "online": RedisSettings(),
            "log": SqliteSettings(path="features.db"),
            "feast": FeastSettings(url="http://feast:6566", views=views),
        }
    )
    for kind in (Settings, RedisSettings, SqliteSettings, FeastSettings, FeastView):
        for field in msgspec.structs.fields(kind):
            assert re.search(rf"\b{field.name}\b", FILES["canvasbus.toml"]), field.name


def test_the_page_names_what_there_is() -> None:
    """Every feature of a drift row, and every command of the script."""
    row = row_of(WindowEvaluated(model_name="m", estimated_accuracy=0.5), "0")
    assert row is not None
    assert {name for name in row.values if f"`{name}`" not in TEXT} == set()
    commands = set(re.findall(r"redis\.call\('(\w+)'", WRITE)) - {"TIME"}
    assert {name for name in commands if f"`{name}" not in TEXT} == set()


def test_the_rights_on_the_page_suffice(make_server: Any) -> None:
    """A worker with the ACL that doctor prints and the keys that the page adds; a reader with what the page says."""
    server: ServerProcess = make_server()
    printed = subprocess.run(
        [sys.executable, "-m", "canvasbus", "doctor", "--acl", "worker"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    (worker_keys,) = re.findall(r"worker needs `(\S+)`", TEXT)
    (reader_rights,) = re.findall(r"a reader\s+`([^`]+)`", TEXT)
    with Store(server.url) as store:
        for words in (
            printed.split(),
            ["ACL", "SETUSER", "canvasbus-worker", ">w", worker_keys],
            ["ACL", "SETUSER", "reader", "on", ">r", "-@all", *reader_rights.split()],
        ):
            assert store.ask(words) == [b"OK"]
    host = server.url.removeprefix("redis://")

    async def main() -> None:
        async with EventBus(f"redis://canvasbus-worker:w@{host}") as bus:
            bus.add(features.worker)
            await bus.publish(WindowEvaluated(model_name="m"))
            reader = FeatureReader(f"redis://reader:r@{host}")
            await until(lambda: None not in reader.get("drift", ["m"]) + reader.get("drift", ["m"], ["items"]), 30)

    trio.run(main)
