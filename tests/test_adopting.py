"""The page about adopting canvasbus, followed word for word: each of its files, changes and commands, in order."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, python_path
from studio import Eyes
from waiting import until

import canvasbus.events  # noqa: F401  the types are known

TEXT = (Path(__file__).parent.parent / "canvasbus" / "ADOPTING.md").read_text()
SERVER = "redis://localhost:6379"
BLOCK = re.compile(r"(?:<!-- (\w+): (\S+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
REPORTS = 31
"""Of one run: a loss for each epoch, and the validation's."""


def changed(text: str, diff: str) -> str:
    """The text with a diff without line numbers, whose parts fit in one place each."""
    for part in diff.split("@@\n"):
        lines = part.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert text.count(old) == 1, f"fits {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    return text


class Walk:
    """One who follows the page, in a folder and with a server of their own; terminals are left in the end."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.eyes = Eyes(url, "canvasbus")
        self.steps = TEXT.replace(SERVER, url).split("\n## ")
        self.terminals: dict[str, subprocess.Popen[str]] = {}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CANVASBUS_")}
        path = os.pathsep.join((str(Path(sys.executable).parent), environ["PATH"]))
        self.environ = environ | {"PATH": path, "PYTHONPATH": python_path(folder), "PIP_NO_INDEX": "1"}

    async def skip_to(self, title: str) -> None:
        """Write the files of the steps before this one, and run nothing."""
        while not self.steps[0].startswith(title):
            await self.step(self.steps[0], only=("file", "change"))

    async def step(self, title: str, only: Collection[str] = ("file", "change", "terminal", "")) -> str:
        """Do all that the next step says, which is called so; what its commands print. `only`: these kinds of blocks."""
        text = self.steps.pop(0)
        assert text.startswith(title), text.splitlines()[0]
        printed = ""
        for kind, name, language, body in BLOCK.findall(text):
            if kind not in only:
                continue
            if kind == "file":
                (self.folder / name).write_text(body)
            elif kind == "change":
                (self.folder / name).write_text(changed((self.folder / name).read_text(), body))
            elif kind == "terminal":
                await self._open(name, body)
            else:
                assert (kind, language) == ("", "sh")
                printed += self.run(body)
        return printed

    def run(self, command: str, code: int = 0, **environ: str) -> str:
        """What the command prints, errors included."""
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.folder,
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    async def _open(self, name: str, command: str) -> None:
        """Begin what goes on until Ctrl-C, and return when it works."""
        with self._said(name).open("w") as out:
            self.terminals[name] = subprocess.Popen(
                ["bash", "-c", f"exec {self._plain(command)}"],
                cwd=self.folder,
                env=self.environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        if "canvasbus-worker" in command:
            workers = command.partition("canvasbus-worker")[2].partition(">")[0].split()
            await until(lambda: self.said(name).count("worker joined") == len(workers), 60)

    @staticmethod
    def _plain(command: str) -> str:
        """VARIABLE=value program, for exec: Ctrl-C shall reach the program and no shell around it."""
        return f"env {command}" if "=" in command.split()[0] else command

    def _said(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        """What a terminal shows."""
        return self._said(name).read_text()

    def leave(self, name: str) -> int:
        """Ctrl-C in a terminal; its exit code."""
        program = self.terminals.pop(name)
        program.send_signal(signal.SIGINT)
        return program.wait(30)

    def rows(self, run: str) -> list[tuple[Any, ...]]:
        """What the database has of a run, without the times."""
        db = sqlite3.connect(self.folder / "metrics.db")
        try:
            return db.execute("SELECT epoch, metric, value FROM metrics WHERE run = ?", [run]).fetchall()
        finally:
            db.close()


@pytest.fixture
def walk(tmp_path: Path, make_server: Any) -> Iterator[Walk]:
    walk = Walk(tmp_path, make_server(persistent=True).url)
    yield walk
    walk.eyes.close()
    for program in walk.terminals.values():
        program.kill()
        program.wait()


@pytest.mark.long
async def test_the_page_is_followed_to_its_end(walk: Walk) -> None:
    """Each step does what it says, with the bus on and off, and nothing that worked is taken away by any of them."""

    def reports(run: str) -> list[tuple[Any, ...]]:
        found = [event for event in walk.eyes.events("metric.reported") if event.model_version == run]
        return [(int(event.labels["epoch"]), event.metric, event.value) for event in found]

    await walk.step("# Adopting")

    await walk.step("Step 0")
    await until(lambda: walk.said("dashboard").count("sunday") == REPORTS, 20)
    walk.leave("dashboard")
    weights = (walk.folder / "scorer.json").read_text()
    assert walk.rows("sunday")[-1][:2] == (30, "validation_loss") and walk.rows("sunday")[-1][2] < 0.02

    printed = await walk.step("Step 1")
    assert "per loop" in printed
    assert walk.rows("monday") == walk.rows("sunday") and (walk.folder / "scorer.json").read_text() == weights
    assert walk.eyes.call("DBSIZE") == 0

    printed = await walk.step("Step 2")
    await until(lambda: walk.said("tail").count("metric.reported") == REPORTS, 20)
    assert walk.leave("tail") == 130
    assert reports("tuesday") == walk.rows("tuesday") == walk.rows("sunday")

    printed = await walk.step("Step 3")
    assert f"{REPORTS} equal lines" in printed
    polled, told = map(float, re.findall(r"([\d.]+) s (?:polled|told)", printed))
    assert told < polled
    assert [json.loads(line)["type"] for line in printed.splitlines()[-3:]] == ["metric.reported"] * 3
    assert (walk.leave("subscribed"), walk.leave("polling") != 0) == (0, True)

    printed = await walk.step("Step 4")
    (promoted,) = walk.eyes.events("model.promoted")
    assert promoted.run_id == "scorer/v1" and (walk.folder / "scorer.json").read_text() == weights
    assert walk.rows("thursday")[-1][2] > 1000
    kinds = Counter(re.findall(r"  ([a-z]+\.[a-z_]+)  scorer", printed))
    assert kinds["model.promoted"] == 2 and kinds["metric.threshold_breached"] == kinds["retrain.started"] == 1
    await until(lambda: walk.eyes.count("incident.resolved") == 1, 20)
    ends = {line.rpartition("~")[2] for line in printed.splitlines() if "  scorer" in line}
    assert ends == {str(event.correlation_id)[-8:] for event in walk.eyes.events("incident.resolved")}
    assert [walk.eyes.dead(group) for group in ("metrics", "alerts", "retrain")] == [[], [], []]

    await walk.step("Step 5")
    assert walk.rows("friday") == walk.rows("sunday") and not reports("friday")
    assert walk.leave("workers") == 0
    said = walk.run("canvasbus-worker metrics", 2, CANVASBUS_URL="off://")
    assert "off://" in said and len(said.splitlines()) == 1
    assert [step.splitlines()[0] for step in walk.steps] == ["When it is used wrongly"]


async def test_without_the_variable_the_job_runs(walk: Walk) -> None:
    """As with an empty one, and with off://, it does what it did before it knew the bus."""
    await walk.skip_to("Step 1")
    walk.run("RUN=before python train.py")
    await walk.skip_to("Step 2")
    walk.run("RUN=none python train.py; RUN=empty CANVASBUS_URL= python train.py")
    assert walk.rows("none") == walk.rows("empty") == walk.rows("before") != []


async def test_a_url_that_cannot_be_meant_ends_the_job_at_once(walk: Walk) -> None:
    """Before it has reported anything."""
    await walk.skip_to("Step 2")
    said = walk.run("python train.py", 1, CANVASBUS_URL="redis:/host")
    assert said.splitlines()[-1].startswith("canvasbus.errors.ConfigError: the bus URL has no scheme://")
    assert not (walk.folder / "metrics.db").exists()


async def test_a_forgotten_close_loses_nothing(walk: Walk) -> None:
    """The program's end flushes."""
    await walk.skip_to("Step 2")
    job = walk.folder / "train.py"
    job.write_text("".join(line for line in job.read_text().splitlines(keepends=True) if "bus.close" not in line))
    walk.run("python train.py", CANVASBUS_URL=walk.url)
    assert walk.eyes.count("metric.reported") == REPORTS


@pytest.mark.long
async def test_a_server_that_is_away_harms_nobody(walk: Walk) -> None:
    """The job does its work, and says at its end what was lost."""
    await walk.skip_to("Step 2")
    said = walk.run("RUN=away python train.py", CANVASBUS_URL=f"redis://127.0.0.1:{free_port()}")
    assert f"{REPORTS} events did not reach the server within 5 s" in said
    assert len(walk.rows("away")) == REPORTS


async def test_what_is_no_event_is_told_when_the_bus_is_on(walk: Walk) -> None:
    """And not before."""
    wrong = f"""{sys.executable} -c "
from canvasbus import Producer
from canvasbus.events import MetricReported
Producer().publish(MetricReported(model_name='scorer', metric='loss', value='high'))
" """
    assert walk.run(wrong, CANVASBUS_URL="off://") == ""
    said = walk.run(wrong, 1, CANVASBUS_URL=walk.url).splitlines()[-1]
    assert said.startswith("canvasbus.errors.EncodeError") and "value" in said


async def test_where_the_bus_is_off_nothing_is_loaded(walk: Walk) -> None:
    """No client of Redis, no trio, no thread: what the page says of a job that is switched off."""
    await walk.skip_to("Step 2")
    look = "import sys, threading, train; print({'redis', 'trio'} & set(sys.modules), threading.active_count())"
    assert walk.run(f'python -c "{look}"') == "set() 1\n"
