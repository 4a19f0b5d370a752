"""The features worker against a real Feast: a program, not a test of the suite, since Feast is 445 MB.

    python tests/interop/feast_server.py [--env FOLDER]

Installs Feast into an environment of its own (in FOLDER, which may have it already; default: a temporary one), applies a
small feature repository with an online store in SQLite, starts its feature server on loopback, runs the worker on a Redis
server of its own, publishes, and asks Feast for what it has. Exit code 0: all of it is there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
import trio
from servers import ServerProcess, binaries, free_port
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.events import FeaturesComputed, FloatArray, WindowEvaluated
from canvasbus_workers import features
from canvasbus_workers.features import OfflineLog

FEAST = "feast==0.67.0"

STORE = """
project: studio
registry: data/registry.db
provider: local
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Float32, Float64

def view(name, key, *schema):
    entity = Entity(name=key, join_keys=[key])
    batch = FileSource(name=name + "_batch", path=f"data/{name}.parquet", timestamp_field="event_timestamp")
    push = PushSource(name=name + "_push", batch_source=batch)
    return entity, push, FeatureView(name=name, entities=[entity], ttl=timedelta(days=1), schema=list(schema), source=push)

model, drift_push, drift = view("drift", "model", Field(name="ks_sharpness", dtype=Float64), Field(name="flagged", dtype=Float64))
artwork, artworks_push, artworks = view(
    "artworks", "artwork", Field(name="aesthetic", dtype=Float64), Field(name="clip", dtype=Array(Float32))
)
"""
SETTINGS = """
[workers.features.sinks.log]
kind = "sqlite"
path = "{folder}/features.db"

[workers.features.sinks.feast]
kind = "feast"
url = "{url}"

[workers.features.sinks.feast.views.drift]
push_source = "drift_push"
entity = "model"
columns = {{"ks:sharpness" = "ks_sharpness", flagged = "flagged"}}

[workers.features.sinks.feast.views."artworks"]
push_source = "artworks_push"
entity = "artwork"
"""


def installed(folder: Path) -> Path:
    """The folder of programs of an environment that has Feast."""
    programs = folder / "bin"
    if not (programs / "feast").exists():
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([programs / "pip", "install", "-q", FEAST], check=True)
        print(f"installed {FEAST} in {time.monotonic() - begun:.0f} s")
    return programs


@contextmanager
def feast_server(programs: Path, folder: Path) -> Iterator[str]:
    """The URL of a feature server."""
    (folder / "data").mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(STORE)
    (folder / "definitions.py").write_text(DEFINITIONS)
    environ = os.environ | {"FEAST_USAGE": "False"}
    environ.pop("PYTHONPATH", None)
    feast = [programs / "feast", "--chdir", folder]
    make = (
        "import pandas as p; t = p.to_datetime(['2026-01-01'], utc=True)\n"
        "p.DataFrame({'model': ['-'], 'ks_sharpness': [0.0], 'flagged': [0.0], 'event_timestamp': t}).to_parquet('data/drift.parquet')\n"
        "p.DataFrame({'artwork': ['-'], 'aesthetic': [0.0], 'clip': [[0.0]], 'event_timestamp': t}).to_parquet('data/artworks.parquet')"
    )
    subprocess.run([programs / "python", "-c", make], cwd=folder, env=environ, check=True)
    subprocess.run([*feast, "apply"], env=environ, check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*feast, "serve", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env=environ, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        begun = time.monotonic()
        while not _healthy(url):
            if server.poll() is not None or time.monotonic() - begun > 120:
                raise SystemExit(f"feast serve does not answer:\n{(folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.2)
        print(f"feast serve is up after {time.monotonic() - begun:.1f} s")
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(url: str, features: list[str], entities: dict[str, list[str]]) -> dict[str, list[Any]]:
    """What Feast has: feature → values."""
    body = msgspec.json.encode({"features": features, "entities": entities})
    request = urllib.request.Request(f"{url}/get-online-features", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = msgspec.json.decode(answer.read())
    names, results = found["metadata"]["feature_names"], found["results"]
    return {name: result["values"] for name, result in zip(names, results, strict=True)}


async def check(redis: str, feast: str, folder: Path) -> None:
    """Publish, and wait for it in Feast."""
    (folder / "canvasbus.toml").write_text(SETTINGS.format(folder=folder, url=feast))
    os.environ["CANVASBUS_CONFIG"] = str(folder / "canvasbus.toml")
    clip = FloatArray(shape=(3,), data=pack("<3f", 0.5, 0.25, 1))
    async with EventBus(redis) as bus:
        bus.add(features.worker)
        await bus.publish(WindowEvaluated(model_name="m", status="flagged", scores={"ks:sharpness": 0.5}))
        await bus.publish_many(
            FeaturesComputed(
                entity=f"a{at}", feature_set="artworks", values={"aesthetic": at / 2}, vectors={"clip": clip}
            )
            for at in range(50)
        )

        def there(names: list[str], entities: dict[str, list[str]]) -> dict[str, list[Any]] | None:
            found = ask(feast, names, entities)
            return found if all(value is not None for values in found.values() for value in values) else None

        drift = await until(lambda: there(["drift:ks_sharpness", "drift:flagged"], {"model": ["m"]}), 30)
        assert (drift["ks_sharpness"], drift["flagged"]) == ([0.5], [1.0]), drift
        names, entities = ["artworks:aesthetic", "artworks:clip"], [f"a{at}" for at in range(50)]
        art = await until(lambda: there(names, {"artwork": entities}), 30)
        assert art["aesthetic"] == [at / 2 for at in range(50)] and art["clip"][7] == [0.5, 0.25, 1.0], art
        # Feast answers 500 to a row that lacks a feature of its schema.
        await bus.publish(FeaturesComputed(entity="b", feature_set="artworks", values={"unknown": 1.0}))
        with OfflineLog(folder / "features.db") as log:
            await until(lambda: len(log) == 52, 30)
        await bus.publish(
            FeaturesComputed(entity="c", feature_set="artworks", values={"aesthetic": 7.0}, vectors={"clip": clip})
        )
        last = await until(lambda: there(names, {"artwork": ["c"]}), 30)
        assert last["aesthetic"] == [7.0]
    print("Feast has a window and 51 rows with vectors; a row that it fails over stopped nothing")


def raw_answers(url: str) -> None:
    """What /push says to what it does not take."""
    for source, columns in (
        ("nobody_push", {"artwork": ["x"]}),
        ("artworks_push", {"artwork": ["x"], "unknown": [1.0]}),
    ):
        df = {**columns, "event_timestamp": ["2026-01-01T00:00:00+00:00"]}
        body = msgspec.json.encode({"push_source_name": source, "df": df, "to": "online"})
        request = urllib.request.Request(f"{url}/push", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                print(f"POST /push {source} {sorted(columns)}: {answer.status}")
        except urllib.error.HTTPError as error:
            print(f"POST /push {source} {sorted(columns)}: {error.code} {error.read()[:200]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, help="folder of an environment for Feast")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        programs = installed((options.env or Path(temporary) / "env").absolute())
        redis = ServerProcess(next(iter(binaries().values()))).start()
        try:
            with feast_server(programs, Path(temporary) / "repository") as url:
                raw_answers(url)
                trio.run(check, redis.url, url, Path(temporary))
        finally:
            redis.remove()


if __name__ == "__main__":
    main()
