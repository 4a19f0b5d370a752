"""The README's code runs, and its commands and settings exist."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import python_path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))

# A stand-in with torch's shape: torch itself is half a gigabyte. It forks as DataLoader does on Linux.
TORCH = """
import os

class Dataset:
    pass

class DataLoader:
    def __init__(self, dataset, batch_size, num_workers):
        self.dataset, self.workers = dataset, num_workers

    def __iter__(self):
        for worker in range(self.workers):
            if os.fork() == 0:
                for index in range(worker, len(self.dataset), self.workers):
                    self.dataset[index]
                os._exit(0)
        for _ in range(self.workers):
            assert os.wait()[1] == 0
        return iter(())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All of the README's files in one folder."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "torch" / "utils").mkdir(parents=True)
    for package in ("torch", "torch/utils"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "torch" / "utils" / "data.py").write_text(TORCH)
    return tmp_path


def run(folder: Path, *command: str, url: str) -> str:
    """Run a program in the folder as a newcomer would."""
    environ = dict(os.environ) | {"CANVASBUS_URL": url, "PYTHONPATH": python_path(folder)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored(folder: Path, url: str) -> int:
    """How many picture.scored events the bus has."""
    lines = run(
        folder,
        *(sys.executable, "-m", "canvasbus", "tail", "--type", "picture.scored", "--from", "0", "--json"),
        *("--module", "my_events"),
        url=url,
    )
    return len(lines.splitlines())


@pytest.fixture
def url(make_server) -> str:  # type: ignore[no-untyped-def]
    """A server of its own: the README uses the default namespace."""
    return make_server().url


def test_the_script_publishes(folder: Path, url: str) -> None:
    """All of the script's events are on the server when it ends."""
    run(folder, sys.executable, "publish_script.py", url=url)

    assert stored(folder, url) == 100


def test_the_script_says_what_became_of_its_events(folder: Path) -> None:
    """Without a server it ends in order, and shows how many events wait, and why."""
    shown = run(folder, sys.executable, "publish_script.py", url="redis://127.0.0.1:1")

    assert "waiting_events=100" in shown and "nobody listens" in shown


def test_a_script_that_runs_again_publishes_once(folder: Path, url: str) -> None:
    """What it publishes under keys is there once, however often it runs."""
    for _ in range(2):
        run(folder, sys.executable, "publish_again.py", url=url)

    assert stored(folder, url) == 3


def test_forked_children_publish(folder: Path, url: str) -> None:
    """Every event that a DataLoader's children published is there once."""
    run(folder, sys.executable, "publish_dataloader.py", url=url)

    assert stored(folder, url) == 8


def test_fastapi_publishes(folder: Path, url: str) -> None:
    """A request to the FastAPI example puts one event on the bus."""
    script = folder / "drive.py"
    script.write_text(DRIVE_ASGI)
    run(folder, sys.executable, "drive.py", url=url)

    assert stored(folder, url) == 1


DRIVE_ASGI = """
import asyncio
from publish_fastapi import app, bus

async def main():
    sent = []
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        sent.append(message)
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/score/StyleGAN", "raw_path": b"/score/StyleGAN", "query_string": b"aesthetic=0.4",
             "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "root_path": ""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent

asyncio.run(main())
assert bus.flush(timeout=10)
bus.close()
"""


def test_one_process_runs(folder: Path, url: str) -> None:
    """The memory example handles an event and sees what follows from it."""
    run(folder, sys.executable, "one_process.py", url=url)


def test_a_worker_with_a_lifespan_runs(folder: Path) -> None:
    """What the archive's worker opened takes what its handler writes, and is closed in the end."""
    (folder / "drive.py").write_text(DRIVE_ARCHIVE)
    run(folder, sys.executable, "drive.py", url="memory://")

    assert (folder / "archive.txt").read_text() == "m 0.25\n"


DRIVE_ARCHIVE = """
import trio
from canvasbus.bus import EventBus
from my_events import TasteDropped
from my_resources import worker

async def main():
    async with EventBus("memory://") as bus:
        bus.add(worker)
        await bus.publish(TasteDropped(model_name="m", aesthetic=0.25))
        while not bus.statistics() or bus.statistics()[0].handled < 1:
            await trio.sleep(0.01)

trio.run(main)
"""


def test_counts_are_exact_and_told_once(folder: Path) -> None:
    """The example of state and timers counts every picture and says so once, a second after the last."""
    (folder / "drive.py").write_text(DRIVE_COUNTS)
    run(folder, sys.executable, "drive.py", url="memory://")


DRIVE_COUNTS = """
import trio
from canvasbus.bus import EventBus
from my_counts import PicturesCounted, worker
from my_events import PictureScored

told = []

async def main():
    async with EventBus("memory://") as bus:
        bus.add(worker)
        bus.subscribe(PicturesCounted, told.append, group="told")
        await bus.publish_many([PictureScored(model_name="m", aesthetic=0.5) for _ in range(100)])
        while not told:
            await trio.sleep(0.01)
        await trio.sleep(1.5)

trio.run(main)
assert [event.pictures for event in told] == [100], told
"""


def test_an_old_style_is_read(folder: Path) -> None:
    """The example of a new version reads what the old one published, and what was published before `artist` came."""
    (folder / "drive.py").write_text(DRIVE_STYLES)
    run(folder, sys.executable, "drive.py", url="memory://")


DRIVE_STYLES = """
from canvasbus.wire.codec import Codec
from my_styles import StyleChosen

def read(version, data):
    entry = b'{"type": "style.chosen", "version": %d, "data": %s}' % (version, data)
    return Codec().decode(entry, stream_type="style.chosen", entry_id="1-0")[1]

old, new = read(1, b'{"name": "ukiyo-e/2"}'), read(2, b'{"style": "ukiyo-e", "revision": 2}')
assert (old.style, old.revision) == (new.style, new.revision) == ("ukiyo-e", 2)
"""


def test_events_travel_over_http(folder: Path) -> None:
    """What the example's handler sends, in both modes, is what its receiver takes; what is none is answered with None."""
    (folder / "drive.py").write_text(DRIVE_HTTP)
    run(folder, sys.executable, "drive.py", url="memory://")


DRIVE_HTTP = """
import trio
from canvasbus.bus import EventBus
from cloud_events import received, sent, worker
from my_events import TasteDropped

made = TasteDropped(model_name="m", aesthetic=0.25)

async def main():
    async with EventBus("memory://") as bus:
        bus.add(worker)
        await bus.publish(made)
        while len(sent) < 2:
            await trio.sleep(0.01)

trio.run(main)
assert [received(*request) for request in sent] == [made, made]
assert received({"content-type": "application/json"}, b"{}") is None
"""


def test_the_topics_and_the_worker_are_described(folder: Path) -> None:
    """The README's command line, as it stands."""
    (line,) = re.findall("^canvasbus (schema asyncapi .* -o .*)$", README, re.MULTILINE)
    run(folder, sys.executable, "-m", "canvasbus", *line.split(), url="redis://lab")
    document = json.loads((folder / "asyncapi.json").read_text())
    assert set(document["operations"]) == {
        "send-picture.scored",
        "send-taste.dropped",
        "receive-picture.scored-by-taste",
        "send-taste.dropped-by-taste",
    }


def test_the_middleware_lets_events_through(folder: Path) -> None:
    """The one-process example runs the same with the README's middleware around its worker."""
    (folder / "drive.py").write_text("import my_middleware, one_process\nassert one_process.worker.middleware")
    run(folder, sys.executable, "drive.py", url="memory://")


def test_a_trace_goes_from_the_script_to_the_worker(folder: Path, url: str) -> None:
    """The run of the README's worker is linked to the span of its script, in the SDK's console."""
    (folder / "publish_with_sdk.py").write_text(WITH_SDK + "import publish_traced")
    (folder / "work_with_sdk.py").write_text(WITH_SDK + DRIVE_TRACED)
    published = spans_in(run(folder, sys.executable, "publish_with_sdk.py", url=url))
    handled = spans_in(run(folder, sys.executable, "work_with_sdk.py", url=url))

    assert [span["name"] for span in (*published, *handled)] == ["publish picture.scored", "process picture.scored"]
    assert [link["context"]["span_id"] for link in handled[0]["links"]] == [published[0]["context"]["span_id"]]


def spans_in(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


WITH_SDK = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
exporter = ConsoleSpanExporter(formatter=lambda span: json.dumps(json.loads(span.to_json())) + "\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""

DRIVE_TRACED = """
import os
import trio
from canvasbus.bus import EventBus
from my_traced_workers import worker

async def main():
    async with EventBus(os.environ["CANVASBUS_URL"]) as bus:
        bus.add(worker)
        while not bus.statistics() or bus.statistics()[0].handled < 1:
            await trio.sleep(0.01)

trio.run(main)
"""


def test_the_test_of_the_handlers_passes(folder: Path, url: str) -> None:
    """The example of a test is one."""
    said = run(folder, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_my_workers.py", url=url)
    assert "1 passed" in said


def test_every_command_is_mentioned() -> None:
    """Each subcommand of `canvasbus` stands in the README."""
    import argparse

    from canvasbus.cli.main import parser

    (commands,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert [name for name in commands.choices if f"canvasbus {name}" not in README] == []


def test_the_planted_bugs_are_counted() -> None:
    """The README says how many bugs the simulation is tested with."""
    from simulation.mutants import MUTANTS

    assert f"{len(MUTANTS)} bugs are planted" in README
    assert [mutant.classic for mutant in MUTANTS].count(True) == 6, "the README speaks of six classic ones"
