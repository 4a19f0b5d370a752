"""canvasbus-worker as a program: targets, processes, probes, logs, and plain words for wrong usage."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servers import ServerProcess, free_port, python_path

from canvasbus.cli.worker import main
from canvasbus.operate import steering
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.wire.codec import decode_envelope
from canvasbus.wire.keys import Keys

MODULE = """
import multiprocessing
import os
import time
import trio
from canvasbus import Event, event
from canvasbus.worker import Context, Worker

@event("unit.asked")
class Asked(Event):
    number: int

@event("unit.answered")
class Answered(Event):
    number: int
    pid: int

worker = Worker("unit")

@worker.on(Asked, concurrency=1)
async def on_asked(event: Asked) -> Answered:
    await trio.sleep(0.002)
    return Answered(number=event.number, pid=os.getpid())

parent = Worker("parent")

@parent.on(Asked, concurrency=1)
def on_asked_too(event: Asked, ctx: Context) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    child.terminate()
    child.join()
    ctx.log.info("ended", code=child.exitcode)

broken = 3
"""

PUBLISH = """
import sys, unit_workers
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.produce.fenced import FencedSender
from canvasbus.wire.keys import Keys
from canvasbus.wire.codec import Codec

batch = Codec().encode_many([unit_workers.Asked(number=n) for n in range(400)])
BlockingLink(open_server(sys.argv[1])).run(FencedSender(Keys(sys.argv[2])).send(batch))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a worker module in it, made the working directory."""
    (tmp_path / "unit_workers.py").write_text(MODULE)
    (tmp_path / "wont_import.py").write_text("import nothing_like_this\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start canvasbus-worker as a process."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "canvasbus.cli.worker", *arguments],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | {"PYTHONPATH": python_path(folder)},
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no_such_worker"], "no worker 'no_such_worker' is installed"),
        (["unit_workers:nobody"], "nobody"),
        (["unit_workers:broken"], "broken"),
        (["wont_import:worker"], "nothing_like_this"),
        (["unit_workers:worker", "unit_workers:worker"], "named twice"),
        (["unit_workers:worker", "--processes", "0"], "at least 1"),
        (["unit_workers:worker", "--grase", "3"], "unknown argument --grase 3; did you mean --grace?"),
        ([], "the following arguments are required: TARGET"),
        (["unit_workers:worker", "--url", "reds://localhost"], "did you mean redis://?"),
        (["unit_workers:worker", "--url", "memory://"], "inside one process"),
        (["unit_workers:worker", "--url", "off://"], "switches the bus off"),
    ],
)
def test_bad_usage_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Wrong targets, URLs and numbers exit with 2 and one line that names them."""
    given = arguments if "--url" in arguments else [*arguments, "--url", "redis://127.0.0.1:1"]

    try:
        code: object = main(given)
    except SystemExit as usage:  # argparse's
        code = usage.code
    assert code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_no_url_names_the_three_ways(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a URL the program says how to give one."""
    assert main(["unit_workers:worker"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("--url", "CANVASBUS_URL", "canvasbus.toml"))


def test_a_refusing_server_ends_the_program(
    folder: Path, make_server: Callable[..., ServerProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong password is exit code 1, one line, and no password in it."""
    server = make_server(config=("--requirepass", "right"))
    url = server.url.replace("redis://", "redis://:wr0ng@")

    assert main(["unit_workers:worker", "--url", url]) == 1
    said = capsys.readouterr().err
    assert "refuses this user or password" in said
    assert "wr0ng" not in said


def test_it_runs_answers_probes_and_drains(start: Callable[..., Any], server_url: str, namespace: str) -> None:
    """The program joins, answers its probes, logs JSON away from a terminal, and leaves on SIGTERM with 0."""
    port = str(free_port())
    process = start("unit_workers:worker", "--url", server_url, "--namespace", namespace, "--health-port", port)
    joined = logged(process, "worker joined")

    assert joined["topics"] == ["unit.asked"]
    assert get(int(port), "/livez") == (200, {"alive": True})
    assert get(int(port), "/readyz") == (200, {"ready": True, "problems": []})
    assert get(int(port), "/other")[0] == 404
    process.send_signal(signal.SIGTERM)
    logged(process, "worker leaves")
    assert process.wait(20) == 0


def test_a_paused_group_is_ready_and_says_so(start: Callable[..., Any], server_url: str, namespace: str) -> None:
    """What is paused to be put right must be able to roll out: /readyz names the group and does not fail."""
    link = BlockingLink(open_server(server_url))
    link.run(steering.pause([Keys(namespace)], "unit", by="me"))
    port = free_port()
    process = start("unit_workers:worker", "--url", server_url, "--namespace", namespace, "--health-port", str(port))

    assert logged(process, "the group is paused: nothing new is read until `canvasbus groups resume`")["by"] == "me"
    logged(process, "worker joined")
    assert get(port, "/readyz") == (200, {"ready": True, "problems": [], "paused": ["unit"]})
    link.run(steering.resume([Keys(namespace)], "unit"))
    link.close()
    logged(process, "the group is paused no more")
    assert get(port, "/readyz") == (200, {"ready": True, "problems": []})


def test_a_lost_server_is_not_ready_but_alive(start: Callable[..., Any], make_server: Callable[..., Any]) -> None:
    """While the server is away /readyz fails and /livez does not."""
    server = make_server()
    port = free_port()
    process = start("unit_workers:worker", "--url", server.url, "--health-port", str(port))
    logged(process, "worker joined")

    server.kill()
    status, body = get(port, "/readyz")

    assert (status, body["ready"]) == (503, False)
    assert get(port, "/livez")[0] == 200


@pytest.mark.long
def test_two_processes_share_the_work(start: Callable[..., Any], server_url: str, namespace: str, folder: Path) -> None:
    """With --processes 2 both handle events, each event once; SIGTERM ends the supervisor and both."""
    process = start("unit_workers:worker", "--url", server_url, "--namespace", namespace, "--processes", "2")
    pids = {logged(process, "worker joined")["consumer"].split("-")[1] for _ in range(2)}
    subprocess.run([sys.executable, "-c", PUBLISH, server_url, namespace], cwd=folder, check=True)
    answers = _answers(server_url, namespace, 400)

    assert sorted(number for number, _ in answers) == list(range(400))
    assert {str(pid) for _, pid in answers} == pids
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


@pytest.mark.long
def test_a_killed_process_is_started_again(start: Callable[..., Any], server_url: str, namespace: str) -> None:
    """The supervisor replaces a process that dies, and says so."""
    process = start("unit_workers:worker", "--url", server_url, "--namespace", namespace, "--processes", "2")
    victim = int(logged(process, "worker joined")["consumer"].split("-")[1])
    logged(process, "worker joined")

    os.kill(victim, signal.SIGKILL)
    said = logged(process, "a worker process ended")
    replaced = int(logged(process, "worker joined")["consumer"].split("-")[1])

    assert (said["how"], said["starts_again_in"]) == ("signal 9", 1.0)
    assert replaced != victim


@pytest.mark.long
def test_processes_do_not_outlive_their_supervisor(start: Callable[..., Any], server_url: str, namespace: str) -> None:
    """When the supervisor is killed its processes drain and end."""
    process = start("unit_workers:worker", "--url", server_url, "--namespace", namespace, "--processes", "2")
    for _ in range(2):
        logged(process, "worker joined")

    process.kill()

    for _ in range(2):
        logged(process, "worker leaves")
    assert process.stderr.read() == ""


WAITING = """
import pathlib, trio
from unit_workers import Answered, Asked
from canvasbus.worker import Worker

worker = Worker("unit")

@worker.on(Asked)
async def on_asked(event: Asked) -> Answered:
    pathlib.Path("begun").touch()
    while not pathlib.Path("may_end").exists():
        await trio.sleep(0.01)
    return Answered(number=event.number, pid=0)
"""


BLOCKING = """
import pathlib, time
from unit_workers import Asked
from canvasbus.worker import Worker

worker = Worker("unit")

@worker.on(Asked)
async def on_asked(event: Asked) -> None:
    pathlib.Path("begun").touch()
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_worker_whose_loop_is_blocked(
    start: Callable[..., Any], server_url: str, namespace: str, folder: Path, number: signal.Signals
) -> None:
    """Nothing in it turns that could hear the first one."""
    (folder / "blocking_workers.py").write_text(BLOCKING)
    process = start("blocking_workers:worker", "--url", server_url, "--namespace", namespace)
    logged(process, "worker joined")
    link = BlockingLink(open_server(server_url))
    link.call("XADD", Keys(namespace).stream("unit.asked"), "*", "e", '{"type":"unit.asked","data":{"number":1}}')
    link.close()
    _wait_until((folder / "begun").exists)
    _wait_until(lambda: process.send_signal(number) or process.poll())  # two that come at once are one
    assert process.returncode == 128 + number


@pytest.mark.long
def test_processes_drain_however_often_they_are_told(
    start: Callable[..., Any], server_url: str, namespace: str, folder: Path
) -> None:
    """Whoever stops a whole service (systemd, pkill) signals the supervisor and its processes, which it tells once more:
    the handlers that run still have their grace time. A second signal to the supervisor ends all at once."""
    (folder / "waiting_workers.py").write_text(WAITING)
    link = BlockingLink(open_server(server_url))
    for may_end in (True, False):
        process = start("waiting_workers:worker", "--url", server_url, "--namespace", namespace, "--processes", "2")
        pids = [int(logged(process, "worker joined")["consumer"].split("-")[1]) for _ in range(2)]
        link.call("XADD", Keys(namespace).stream("unit.asked"), "*", "e", '{"type":"unit.asked","data":{"number":1}}')
        _wait_until((folder / "begun").exists)

        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        for _ in pids:
            logged(process, "worker leaves")
        process.send_signal(signal.SIGTERM)
        for pid in pids:
            with suppress(ProcessLookupError):  # it had nothing to wait for
                os.kill(pid, signal.SIGTERM)
        if may_end:
            (folder / "may_end").touch()
            assert process.wait(20) == 0
            assert _answers(server_url, namespace, 1) == [(1, 0)]
        else:
            _wait_until(lambda: process.send_signal(signal.SIGTERM) or process.poll())  # two that come at once are one
            assert process.returncode in (
                128 + signal.SIGKILL,
                -signal.SIGTERM,
            )  # the latter of one that came at its end
        for name in ("begun", "may_end"):
            (folder / name).unlink(missing_ok=True)
    link.close()


def _wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _answers(url: str, namespace: str, count: int) -> list[tuple[int, int]]:
    link = BlockingLink(open_server(url))
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            rows = link.call("XRANGE", Keys(namespace).stream("unit.answered"), "-", "+")
            if len(rows) >= count:
                payloads = [msgspec.msgpack.decode(decode_envelope(fields[1]).data) for _, fields in rows]
                return [(payload["number"], payload["pid"]) for payload in payloads]
    finally:
        link.close()
    raise AssertionError(f"{len(rows)} of {count} answers after 30 s")


def test_logs_are_readable_on_a_terminal(folder: Path, server_url: str, namespace: str) -> None:
    """With a terminal as stderr the log is lines for people, not JSON."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "canvasbus.cli.worker", "unit_workers:worker"],
        cwd=folder,
        stderr=its,
        env=dict(os.environ)
        | {"PYTHONPATH": python_path(folder), "CANVASBUS_URL": server_url, "CANVASBUS_NAMESPACE": namespace},
    )
    os.close(its)
    said = b""
    try:
        while b"worker joined" not in said:
            said += os.read(mine, 4096)
    finally:
        process.terminate()
        process.wait(20)
        os.close(mine)
    line = re.sub(rb"\x1b\[[0-9;]*m", b"", said).decode()
    assert "[info" in line and "group=unit" in line and "{" not in line


BROKEN_STUDIO = """
from unit_workers import Asked
from canvasbus.worker import Worker

worker = Worker("taster")

@worker.on(Asked)
async def on_asked(event: Asked) -> None: ...

@worker.lifespan
async def model():
    raise FileNotFoundError("weights.pt")
    yield
"""


def test_wrong_settings_of_a_worker_are_bad_usage(
    folder: Path, server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, by which a supervisor does not start it again, and one line with the file and the key."""
    (folder / "canvasbus.toml").write_text("[workers.retrain]\ncooldown = 3\n")

    assert main(["retrain", "--url", server_url, "--namespace", namespace]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"canvasbus-worker: {folder}/canvasbus.toml: [workers.retrain]: unknown key 'cooldown'; "
        "did you mean cooldown_seconds?\n"
    )


def test_a_lifespan_that_cannot_open_ends_the_program(
    folder: Path, server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and one line with the worker, the error and its place."""
    (folder / "studio_workers.py").write_text(BROKEN_STUDIO)

    assert main(["studio_workers:worker", "--url", server_url, "--namespace", namespace]) == 1
    said = capsys.readouterr().err
    assert said.startswith("canvasbus-worker: worker 'taster': its lifespan failed on starting: FileNotFoundError")
    assert "studio_workers.py, line 12" in said
    assert said.count("\n") == 1


def test_a_child_that_a_handler_forks_and_ends(
    start: Callable[..., subprocess.Popen[str]], server_url: str, namespace: str
) -> None:
    """`Process.terminate` ends it, as in any other program, and the worker goes on until it is told to leave."""
    process = start("unit_workers:parent", "--url", server_url, "--namespace", namespace)
    subprocess.run([sys.executable, "-c", PUBLISH.replace("400", "2"), server_url, namespace], check=True)
    assert [logged(process, "ended")["code"] for _ in range(2)] == [-signal.SIGTERM] * 2
    process.terminate()
    assert logged(process, "worker leaves")["running"] == 0
    assert process.wait(20) == 0
