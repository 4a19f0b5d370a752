"""The README's recipe for a shell and its client in JavaScript, word for word, with Python on the other side."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from interop.node import NODE_MODULES, node
from servers import ServerProcess, python_path
from studio import Eyes
from waiting import until

from canvasbus.operate.entry import Entry, view
from canvasbus.wire.cloudevents import read_json
from canvasbus.wire.codec import Codec

pytestmark = pytest.mark.interop
ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```(?:python|js)\n(.*?)```", README, re.DOTALL))
RECIPES = re.findall(r"^redis-cli XADD .*$", README, re.MULTILINE)


@pytest.fixture
def server(make_server: Any) -> ServerProcess:
    """One of its own: the README uses the default namespace."""
    return make_server()  # type: ignore[no-any-return]


@pytest.fixture
def eyes(server: ServerProcess) -> Iterator[Eyes]:
    """What lies there."""
    eyes = Eyes(server.url, "canvasbus")
    yield eyes
    eyes.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The README's files, with the packages of npm where Node looks for them."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    return tmp_path


def shell(line: str, server: ServerProcess, folder: Path) -> str:
    """Run a line as it stands, with a `redis-cli` that finds this server instead of the default one."""
    real = shutil.which("redis-cli")
    assert real is not None, "redis-cli is not installed: apt install redis-tools"
    ours = folder / "bin" / "redis-cli"
    ours.parent.mkdir(exist_ok=True)
    ours.write_text(f'#!/bin/sh\nexec {real} -p {server.port} "$@"\n')
    ours.chmod(0o755)
    environ = {**os.environ, "PATH": f"{ours.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0 and "ERR" not in done.stdout, done
    return done.stdout.strip()


def worker(server: ServerProcess, folder: Path) -> subprocess.Popen[bytes]:
    """The README's worker as a program."""
    environ = {**os.environ, "CANVASBUS_URL": server.url, "PYTHONPATH": python_path(folder)}
    command = [sys.executable, "-c", "from canvasbus.cli.worker import main; main(['my_workers:worker'])"]
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def taste(server: ServerProcess, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """It runs, and is ended in the end."""
    program = worker(server, folder)
    yield program
    program.terminate()
    assert program.wait(timeout=20) == 0


async def test_the_recipes_for_a_shell_publish(
    server: ServerProcess, folder: Path, eyes: Eyes, taste: subprocess.Popen[bytes]
) -> None:
    """Each line of the README that begins with `redis-cli XADD` is an event to a Python worker, which answers it."""
    assert len(RECIPES) >= 3
    entry_ids = [shell(line, server, folder) for line in RECIPES]
    await until(lambda: eyes.count("taste.dropped") == len(RECIPES), 20)
    found = eyes.call("XRANGE", eyes.stream("taste.dropped"), "-", "+")
    views = [view(Entry("taste.dropped", 0, row.decode(), tuple(fields)), Codec()) for row, fields in found]
    assert all(one.cloudevent["data"] == {"model_name": "m", "aesthetic": 0.4} for one in views)
    assert eyes.dead("taste") == []
    rows = eyes.call("XRANGE", eyes.stream("picture.scored"), "-", "+")
    assert [row.decode() for row, _ in rows] == entry_ids
    causes = {
        str(Codec().open_envelope(fields[1], stream_type="picture.scored", entry_id=row.decode()).id)
        for row, fields in rows
    }
    assert {one.cloudevent["causationid"] for one in views} == causes


def test_javascript_publishes_and_python_answers(
    server: ServerProcess, folder: Path, eyes: Eyes, taste: subprocess.Popen[bytes]
) -> None:
    """The Python worker handles what JavaScript published in JSON; JavaScript reads an event in JSON, then what Python
    published in msgpack, in which everything is where a CloudEvents object has it."""
    by_hand = {"type": "taste.dropped", "data": {"model_name": "ä", "aesthetic": 0.1}}
    eyes.put(json.dumps(by_hand).encode(), "taste.dropped")
    said = node(folder / "client.mjs", cwd=folder, CANVASBUS_URL=server.url)
    first, answer = map(json.loads, said.splitlines())
    assert first == by_hand
    ((_, fields),) = eyes.call("XRANGE", eyes.stream("picture.scored"), "-", "+")
    question = read_json(fields[1])
    assert answer["data"] == {"model_name": "m", "aesthetic": 0.4}
    assert (answer["causationid"], answer["correlationid"]) == (question.id, question.correlationid)
    value = eyes.call("XRANGE", eyes.stream("taste.dropped"), "-", "+")[-1][1][1]
    assert value[:1] == b"\x99"
    shown = view(Entry("taste.dropped", 0, "2-0", (b"e", value)), Codec()).cloudevent
    for name in ("id", "source", "type", "subject", "dataschema", "correlationid", "causationid"):
        assert answer[name] == shown[name], name
    assert abs(datetime.fromisoformat(answer["time"]) - datetime.fromisoformat(shown["time"])).total_seconds() < 0.001
    assert UUID(answer["id"]).version == 5


def test_the_client_is_thirty_lines() -> None:
    """As was promised; blank ones do not count."""
    assert len([line for line in FILES["client.mjs"].splitlines() if line.strip()]) <= 30
