"""Worker programs as processes, started in a folder with the tests' own worker module."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Watched, python_path
from studio import Eyes

UNIT = (
    Path(__file__).with_name("asked.py").read_text()
    + """
import os
import trio
from canvasbus.worker import Backoff, Worker

worker = Worker("unit")

@worker.on(Asked, retry=Backoff(attempts=1))
async def on_asked(event: Asked) -> Answered:
    await trio.sleep(0.02)
    if event.deadly:
        os._exit(1)
    return Answered(number=event.number, pid=os.getpid())
"""
)


class Program:
    """A canvasbus-worker process and its log."""

    def __init__(self, folder: Path, target: str, *arguments: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "canvasbus.cli.worker", target, "--log-format", "json", *arguments],
                cwd=folder,
                stderr=stderr,
                env=dict(os.environ) | {"PYTHONPATH": python_path(folder)},
            )

    def said(self, what: str) -> list[dict[str, object]]:
        """The log's records of this kind so far."""
        records = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [record for record in records if record["event"] == what]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start canvasbus-worker unit:worker with arguments; `unit` is another source of it, `target` another worker. What
    still runs at the end is killed."""
    started: list[Program] = []

    def run(*arguments: str, unit: str = UNIT, target: str = "unit:worker") -> Program:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        (folder / "unit.py").write_text(unit)
        started.append(Program(folder, target, *arguments))
        return started[-1]

    yield run
    for program in started:
        if program.process.poll() is None:
            program.process.terminate()  # a supervisor takes its processes along
            try:
                program.process.wait(60)  # its handlers have 25 s
            except subprocess.TimeoutExpired:
                program.process.kill()  # and its processes drain when it is gone
                program.process.wait()
                raise AssertionError(f"a program did not end when it was told to:\n{program.log.read_text()}") from None


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the programs that are started from now on this canvasbus.toml."""
    file = tmp_path / "canvasbus.toml"
    monkeypatch.setenv("CANVASBUS_CONFIG", str(file))

    def write(text: str) -> None:
        file.write_text(text)

    return write


@pytest.fixture
def eyes(server_url: str, namespace: str) -> Iterator[Eyes]:
    """What lies on that server."""
    eyes = Eyes(server_url, namespace)
    yield eyes
    eyes.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    """A master and a replica under three sentinels, who do not take a busy machine for a dead master."""
    found = Watched("redis", down_after_ms=4000)
    try:
        yield found.start()
    finally:
        found.remove()
