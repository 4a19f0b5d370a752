"""canvasbus-worker --reload: drained and started again when its code changes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import python_path
from studio import Eyes
from waiting import until

from canvasbus import Event, Producer, event
from canvasbus.cli.reload import Sources, folders_of, syntax_error
from canvasbus.errors import ConfigError


@event("reload.asked")
class Asked(Event):
    number: int


@event("reload.answered")
class Answered(Event):
    number: int
    by: str


CODE = """
import time
from canvasbus import Event, event
from canvasbus.worker import Worker

@event("reload.asked")
class Asked(Event):
    number: int

@event("reload.answered")
class Answered(Event):
    number: int
    by: str

worker = Worker("unit")

@worker.on(Asked)
def on_asked(event: Asked) -> Answered:
    time.sleep(PAUSE)
    return Answered(number=event.number, by="NAME")
"""


def code(name: str, pause: float = 0.0) -> str:
    return CODE.replace("NAME", name).replace("PAUSE", str(pause))


class Program:
    """A canvasbus-worker in a folder, in a process group of its own as if a shell had started it, and its log."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "canvasbus.cli.worker", "unit:worker", "--log-format", "json", *arguments],
                cwd=folder,
                stderr=stderr,
                env=dict(os.environ) | {"PYTHONPATH": python_path(folder)},
                process_group=0,
            )

    def said(self, what: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [record for record in records if record["event"] == what]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unit.py").write_text(code("first"))
    return tmp_path


@pytest.fixture
def start(folder: Path, server_url: str, namespace: str) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def run(*arguments: str) -> Program:
        started.append(Program(folder, "--url", server_url, "--namespace", namespace, *arguments))
        return started[-1]

    yield run
    for program in started:
        if program.process.poll() is None:
            program.process.terminate()
            program.process.wait(20)


@pytest.fixture
def bus(server_url: str, namespace: str) -> Iterator[Producer]:
    with Producer(server_url, namespace=namespace) as bus:
        yield bus


async def joined(program: Program, times: int) -> None:
    await until(lambda: len(program.said("worker joined")) == times, 30)


def answers(eyes: Eyes) -> list[tuple[int, str]]:
    return sorted((answer.number, answer.by) for answer in eyes.events("reload.answered"))


@pytest.mark.long
async def test_new_code_is_run(start: Callable[..., Program], folder: Path, bus: Producer, eyes: Eyes) -> None:
    """What runs is finished by the old code; what comes after is handled by the new."""
    (folder / "unit.py").write_text(code("first", pause=1.0))
    program = start("--reload")
    await joined(program, 1)
    bus.publish(Asked(number=1))
    await until(lambda: eyes.pending("unit", "reload.asked"))
    (folder / "unit.py").write_text(code("second"))
    await joined(program, 2)
    bus.publish(Asked(number=2))
    await until(lambda: answers(eyes) == [(1, "first"), (2, "second")])
    (told,) = program.said("source files have changed; the workers drain and start again")
    assert told["files"] == [str(folder / "unit.py")]
    assert len(program.said("worker leaves")) == 1 and program.said("a worker process ended") == []
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(20) == 0


async def test_a_syntax_error_leaves_the_old_code_running(
    start: Callable[..., Program], folder: Path, bus: Producer, eyes: Eyes
) -> None:
    """One line with the place; the next change counts."""
    program = start("--reload")
    await joined(program, 1)
    (folder / "unit.py").write_text(code("second") + "\ndef broken(:\n")
    what = "the new code has a syntax error; the next change is waited for"
    (told,) = await until(lambda: program.said(what))
    assert told["error"] == f"invalid syntax ({folder}/unit.py, line 22)"
    bus.publish(Asked(number=1))
    await until(lambda: answers(eyes) == [(1, "first")])
    (folder / "unit.py").write_text(code("third"))
    await joined(program, 2)
    bus.publish(Asked(number=2))
    await until(lambda: answers(eyes) == [(1, "first"), (2, "third")])
    assert len(program.said(what)) == 1


@pytest.mark.parametrize("broken", ["1 / 0\n", "def broken(:\n"])
async def test_code_that_does_not_start_is_waited_for(start: Callable[..., Program], folder: Path, broken: str) -> None:
    """Also when it is broken from the beginning: the program stays, says why, and starts with the next change."""
    (folder / "unit.py").write_text(broken)
    program = start("--reload", "--processes", "2")
    waits = "the worker does not start with this code; the next change is waited for"
    await until(lambda: len(program.said(waits)) == 2, 30)
    assert program.log.read_text().count("importing unit failed") == 2
    assert "Traceback" not in program.log.read_text()
    (folder / "unit.py").write_text(code("second"))
    await joined(program, 2)
    assert program.process.poll() is None


async def test_ctrl_c_on_a_terminal_drains(
    start: Callable[..., Program], folder: Path, bus: Producer, eyes: Eyes
) -> None:
    """The signal goes to the whole process group, and the workers, in groups of their own, get it once: what runs is
    finished."""
    (folder / "unit.py").write_text(code("first", pause=1.0))
    program = start("--processes", "2")
    await joined(program, 2)
    bus.publish(Asked(number=1))
    await until(lambda: eyes.pending("unit", "reload.asked"))
    pids = [int(str(record["consumer"]).split("-")[-2]) for record in program.said("worker joined")]
    assert sorted(map(os.getpgid, pids)) == sorted(pids)
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.process.wait(20) == 0
    assert answers(eyes) == [(1, "first")]


# --- which files ------------------------------------------------------------------------------------------------------


def touch(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_changes_are_told_when_nobody_writes_any_more(tmp_path: Path) -> None:
    """All together, once, at the second look at the same files; never between two looks."""
    one, two = touch(tmp_path / "one.py", "1"), touch(tmp_path / "deep/er/two.py", "2")
    sources = Sources([tmp_path])
    assert sources.changed(10.0) == []
    touch(one, "11")
    assert sources.changed(10.1) == []
    assert sources.changed(11.0) == []
    two.unlink()
    new = touch(tmp_path / "new.py", "")
    assert sources.changed(12.0) == []
    assert sources.changed(13.0) == sorted([one, two, new])
    assert sources.changed(14.0) == sources.changed(15.0) == []


def test_a_change_that_is_taken_back_is_none(tmp_path: Path) -> None:
    """The file is as it was: nothing starts again."""
    one = touch(tmp_path / "one.py", "1")
    before = one.stat()
    sources = Sources([tmp_path])
    touch(one, "11")
    assert sources.changed(1.0) == []
    touch(one, "1")
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [sources.changed(float(now)) for now in range(2, 5)] == [[], [], []]


def test_what_is_watched(tmp_path: Path) -> None:
    """Python files and canvasbus.toml; no hidden folders, caches, environments or installed packages."""
    watched = [touch(tmp_path / name, "") for name in ("a.py", "b/c.py", "canvasbus.toml")]
    for name in (
        ".git/a.py",
        "b/__pycache__/a.py",
        "env/lib/a.py",
        "x/site-packages/a.py",
        "a.txt",
        "b/canvasbus.toml",
    ):
        touch(tmp_path / name, "")
    touch(tmp_path / "env/pyvenv.cfg", "")
    assert sorted(Sources([tmp_path])._known) == sorted(watched)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a home directory; ones that come later do not end the program."""
    monkeypatch.setattr("canvasbus.cli.reload.MOST_FILES", 3)
    for number in range(3):
        touch(tmp_path / f"{number}.py", "")
    sources = Sources([tmp_path])
    touch(tmp_path / "4.py", "")
    sources.changed(1.0)
    assert sources.changed(2.0) == [tmp_path / "4.py"]
    with pytest.raises(ConfigError, match="more than 3 Python files below"):
        Sources([tmp_path])


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, and packages elsewhere; those inside of it, modules and unknown ones add nothing."""
    touch(tmp_path / "here/inside/__init__.py", "")
    touch(tmp_path / "elsewhere/far/__init__.py", "raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    found = folders_of(["inside.workers", "far.away.workers", "far", "json", "no_such_thing", ""])
    assert found[:2] == [tmp_path / "here", tmp_path / "elsewhere/far"]
    assert len(found) == 3  # json's own


def test_syntax_errors(tmp_path: Path) -> None:
    """The first one, with file and line; what is no Python, or gone, has none."""
    good, bad = touch(tmp_path / "good.py", "x = 1"), touch(tmp_path / "bad.py", "x = 1\ny = (\n")
    assert syntax_error([good, tmp_path / "gone.py", touch(tmp_path / "canvasbus.toml", "x = (")]) is None
    assert syntax_error([good, bad]) == f"'(' was never closed ({bad}, line 2)"
    bad.write_bytes(b"x = '\xff'\n")
    assert syntax_error([bad]) is not None
