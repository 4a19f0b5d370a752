"""canvasbus-worker while it starts: a server that is not there yet, ports that do not exist, signals meanwhile."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from servers import ServerProcess, free_port, python_path
from studio import Eyes
from waiting import until

from canvasbus.cli.worker import main

MODULE = """
from canvasbus import Event, event
from canvasbus.worker import Worker

@event("early.asked")
class Asked(Event):
    number: int

worker = Worker("early")

@worker.on(Asked)
async def on_asked(event: Asked) -> None: ...
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start canvasbus-worker as a process."""
    (tmp_path / "early_workers.py").write_text(MODULE)
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "canvasbus.cli.worker", "early_workers:worker", *arguments],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | {"PYTHONPATH": python_path(tmp_path)},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.terminate()
        process.communicate(timeout=20)


def logged(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Read the program's log until it says `event`."""
    assert process.stderr is not None
    for line in process.stderr:
        entry = json.loads(line)
        if entry["event"] == event:
            return dict(entry)
    raise AssertionError(f"the program ended without saying {event!r}")


def get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """GET a probe; status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_missing_server_is_said_and_probed(start: Callable[..., Any]) -> None:
    """Before its server is there the program says what it waits for, lives, is not ready, and leaves with 0."""
    port = free_port()
    process = start("--url", f"redis://127.0.0.1:{free_port()}", "--health-port", str(port))

    said = logged(process, "starting waits for the server")

    assert "nobody listens there" in said["error"]
    assert get(port, "/livez") == (200, {"alive": True})
    status, body = get(port, "/readyz")
    assert (status, body["ready"]) == (503, False)
    assert "no worker has started" in body["problems"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_it_joins_when_the_server_comes(
    start: Callable[..., Any], make_server: Callable[..., ServerProcess], namespace: str
) -> None:
    """A server that comes later is joined, and the probes know."""
    server = make_server()
    server.kill()
    port = free_port()
    process = start("--url", server.url, "--namespace", namespace, "--health-port", str(port))
    logged(process, "starting waits for the server")
    get(port, "/readyz")

    server.start()
    logged(process, "worker joined")

    assert get(port, "/readyz") == (200, {"ready": True, "problems": []})


def full(server: ServerProcess) -> Eyes:
    """Let a server be at its maxmemory."""
    eyes = Eyes(server.url, "any")
    eyes.call("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1")
    return eyes


def test_a_full_server_is_said_and_probed(
    start: Callable[..., Any], make_server: Callable[..., ServerProcess], namespace: str
) -> None:
    """A server that takes nothing is waited for like one that is away: said, probed, and left with 0."""
    server, port = make_server(), free_port()
    full(server).close()
    process = start("--url", server.url, "--namespace", namespace, "--health-port", str(port))

    said = logged(process, "starting waits for the server")

    assert "at its maxmemory limit" in said["error"]
    status, body = get(port, "/readyz")
    assert (status, body["problems"]) == (503, ["no worker has started", f"server: {said['error']}"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_a_heartbeat_that_is_refused_is_said_and_probed(
    start: Callable[..., Any], make_server: Callable[..., ServerProcess], namespace: str
) -> None:
    """To the others this worker looks dead; its own log and /readyz say why. With room it is ready again."""
    server, port = make_server(), free_port()
    process = start("--url", server.url, "--namespace", namespace, "--health-port", str(port))
    logged(process, "worker joined")
    eyes = full(server)

    said = logged(process, "the server refuses this worker's heartbeat")

    assert "at its maxmemory limit" in said["error"] and said["group"] == "early"
    problem = f"worker early: its heartbeat is refused ({said['error']})"
    assert get(port, "/readyz") == (503, {"ready": False, "problems": [problem]})
    eyes.call("CONFIG", "SET", "maxmemory", "0")
    trio.run(until, lambda: get(port, "/readyz")[0] == 200)
    eyes.close()


def test_a_server_that_does_not_answer_is_a_cause_in_words(
    start: Callable[..., Any], make_server: Callable[..., ServerProcess], namespace: str
) -> None:
    """Stopped, not gone: /readyz says for how long it asked."""
    server, port = make_server(), free_port()
    process = start("--url", server.url, "--namespace", namespace, "--health-port", str(port))
    logged(process, "worker joined")
    server.freeze()
    status, body = get(port, "/readyz")
    server.thaw()
    assert (status, body["problems"]) == (503, ["server: no answer within 2 s"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--health-port", "99999"), "--health-port 99999: a port lies between 1 and 65535"),
        (("--health-port", "0"), "--health-port 0: a port lies between 1 and 65535"),
        (("--health-port", "65535", "--processes", "2"), "2 processes need the ports up to 65536"),
        (("--processes", "100000"), "--processes 100000: use a number, at least 1 and at most 1,000"),
    ],
)
def test_a_number_out_of_bounds_is_bad_usage(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    """Ports outside 1..65535, for every process of a supervisor, and more processes than a machine runs: 2, one line."""
    assert main(["early_workers:worker", "--url", "redis://127.0.0.1:1", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


TOLD_AS_IT_REACHES_THE_SERVER = """
import os, signal, sys
import trio, trio.testing
from canvasbus.cli import worker

async def reach(self: object, *about: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with trio.CancelScope(shield=True):
        await trio.testing.wait_all_tasks_blocked(0.01)

worker._Reaching.reach = reach
sys.exit(worker.main(sys.argv[1:]))
"""


def test_a_signal_in_the_moment_in_which_the_server_is_reached_is_heard(tmp_path: Path) -> None:
    """The program leaves; the signal was taken for nobody's once, and it ran on until it was killed."""
    (tmp_path / "early_workers.py").write_text(MODULE)
    arguments = ["early_workers:worker", "--url", f"redis://127.0.0.1:{free_port()}"]
    ended = subprocess.run([sys.executable, "-c", TOLD_AS_IT_REACHES_THE_SERVER, *arguments], cwd=tmp_path, timeout=20)
    assert ended.returncode == 0


def interrupted(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "canvasbus.cli.worker", *arguments, "--url", f"redis://127.0.0.1:{free_port()}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        env=dict(os.environ) | {"PYTHONPATH": python_path(tmp_path)},
    )


def test_ctrl_c_while_modules_are_imported_is_silent(tmp_path: Path) -> None:
    """Nothing has begun that could be drained: exit code 130, no traceback."""
    (tmp_path / "interrupts.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n" + MODULE)
    ended = interrupted(tmp_path, "interrupts:worker")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


INTERRUPTS_ITS_SUPERVISOR = """
import os, signal, sys
if "--supervised-by" in sys.orig_argv:
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
"""


def test_ctrl_c_while_its_processes_start_is_silent(tmp_path: Path) -> None:
    """A child whose Python is still starting is ended without a traceback, too."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS_ITS_SUPERVISOR)
    ended = interrupted(tmp_path, "early_workers:worker", "--processes", "2")
    assert (ended.returncode, ended.stderr) == (0, "")
