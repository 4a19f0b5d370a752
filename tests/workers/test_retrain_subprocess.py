"""Training in a real process: how it ends, what it sees, and what becomes of it when its worker is killed."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
from studio import Eyes, running
from waiting import until
from workers.orders import ORDER

from canvasbus import clock
from canvasbus.events import RetrainRequested
from canvasbus_workers import retrain
from canvasbus_workers.retrain.launchers import records, runner
from canvasbus_workers.retrain.launchers.protocol import Ended, Order, Rejected
from canvasbus_workers.retrain.launchers.subprocess import Subprocess
from canvasbus_workers.retrain.settings import Policy

RESULT = """
import json, os
with open(os.environ["RETRAIN_RESULT"], "w") as file:
    json.dump({"model_version": "v7-big", "train_items": 9, "metrics": {"accuracy": 0.9}}, file)
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[..., Subprocess]:
    """launcher(python source, settings of the policy and of its subprocess)"""

    def make(source: str, environ: dict[str, str] | None = None, **options: Any) -> Subprocess:
        (tmp_path / "train.py").write_text(source)
        table = {"command": [sys.executable, str(tmp_path / "train.py")], "grace_seconds": 0.3, "cwd": str(tmp_path)}
        own = {
            name: options.pop(name)
            for name in list(options)
            if name in ("environment", "log_bytes", "command", "when_stopped")
        }
        policy = {"launcher": "subprocess", "folder": str(tmp_path / "runs"), "subprocess": table | own, **options}
        return Subprocess(msgspec.convert(policy, Policy), os.environ if environ is None else environ)

    return make


async def launched(one: Subprocess, order: Order = ORDER) -> Ended:
    with trio.fail_after(60):
        said = await one.launch(order)
    assert isinstance(said, Ended)
    return said


def alive(pid: int) -> bool:
    """It runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def pid_in(path: Path) -> int:
    return int(await until(lambda: path.exists() and path.read_text(), 30))


@pytest.mark.parametrize(
    ("source", "options", "error"),
    [
        (RESULT, {}, ""),
        ("raise SystemExit(3)", {}, "exit code 3; see "),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {}, "it was killed by SIGKILL; see "),
        ("import time; time.sleep(60)", {"timeout_seconds": 0.5}, "it took longer than 0.5 s; see "),
        (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
            {"timeout_seconds": 0.5},
            "it took longer than 0.5 s; see ",
        ),
        ("", {}, "it ended well and wrote no result file; see "),
        ("", {"answer": "state"}, ""),
        ("", {"answer": "bus"}, ""),
        ("import os; open(os.environ['RETRAIN_RESULT'], 'w').write('{]')", {}, "its result file: JSON is malformed"),
        ("import os; open(os.environ['RETRAIN_RESULT'], 'w').write('{\"modle\": 1}')", {}, "its result file: .*modle"),
        ("import os; open(os.environ['RETRAIN_RESULT'], 'w').write(' ' * 300_000)", {}, "more than 262144 bytes"),
        ("", {"command": ["/nowhere/train"]}, r"it could not be started: .*No such file.*train"),
    ],
)
async def test_how_it_ends(launcher: Callable[..., Subprocess], source: str, options: Any, error: str) -> None:
    """By its exit code, its result file, its timeout: in one line that says where its output lies."""
    import re

    said = await launched(launcher(source, **options))
    assert re.match(error + r"|.*" + error, said.error) if error else said.error == "", said
    assert said.duration < 30


async def test_the_result(launcher: Callable[..., Subprocess]) -> None:
    """What the file says; an error in it is one."""
    said = await launched(launcher(RESULT))
    assert (said.result.model_version, said.result.train_items) == ("v7-big", 9)
    assert said.result.metrics == {"accuracy": 0.9} and 0 < said.duration < 30


async def test_what_it_sees(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """Its order with correlation and trace, and of the environment what is listed: no secret of the worker's."""
    source = "import json, os; json.dump(dict(os.environ), open('seen.json', 'w'))"
    given = {"PATH": os.environ["PATH"], "CANVASBUS_URL": "redis://:secret@h", "AWS_KEY": "secret", "CUDA_VISIBLE": "1"}
    await launched(launcher(source, given, environment=["CUDA_*"]))
    seen = json.loads((tmp_path / "seen.json").read_text())
    for own in ("LC_CTYPE", "PWD", "SHLVL", "_", "OLDPWD"):  # Python's or a shell's
        seen.pop(own, None)
    folder = tmp_path / "runs" / ORDER.key
    assert seen == {
        "PATH": os.environ["PATH"],
        "CUDA_VISIBLE": "1",
        "RETRAIN_MODEL": "m",
        "RETRAIN_VERSION": "v7",
        "RETRAIN_RUN_ID": "m/v7",
        "RETRAIN_FENCE": "7",
        "RETRAIN_KEY": ORDER.key,
        "RETRAIN_EPISODE": "e1",
        "RETRAIN_REASON": "accuracy 0.5",
        "RETRAIN_WINDOWS": "3",
        "RETRAIN_CORRELATION_ID": ORDER.correlation_id,
        "RETRAIN_FOLDER": str(folder),
        "RETRAIN_RESULT": str(folder / "result.json"),
        "TRACEPARENT": ORDER.traceparent,
    }
    assert b"secret" not in b"".join(path.read_bytes() for path in folder.iterdir())


async def test_there_is_no_shell(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """Arguments arrive as they are written."""
    source = "import json, sys; json.dump(sys.argv[1:], open('seen.json', 'w'))"
    words = ["$HOME", "; touch x", "a b", "*"]
    one = launcher(source, command=[sys.executable, str(tmp_path / "train.py"), *words])
    await launched(one)
    assert json.loads((tmp_path / "seen.json").read_text()) == words


async def test_its_output_is_kept_up_to_a_limit(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """stdout and stderr, the last half of the limit at least; how much is gone is counted."""
    source = (
        "import sys\nfor n in range(20_000): print(f'line {n:06d}', file=(sys.stdout, sys.stderr)[n % 2], flush=True)"
    )
    await launched(launcher(source, log_bytes=40_000, answer="state"))
    folder = tmp_path / "runs" / ORDER.key
    kept = (folder / "log.1").read_bytes() + (folder / "log").read_bytes()
    assert 20_000 <= len(kept) <= 40_000 and kept.endswith(b"line 019999\n")
    assert json.loads((folder / "ended.json").read_text())["dropped"] == 20_000 * 12 - len(kept)


async def test_an_order_is_run_once(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """Given twice at once and a third time afterwards: one training, one answer."""
    source = "import os, time; open('ran', 'a').write('x'); time.sleep(0.5)\n" + RESULT
    one, other, said = launcher(source), launcher(source), []

    async def ask(launcher_: Subprocess) -> None:
        said.append(await launched(launcher_))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, one)
        nursery.start_soon(ask, other)
    await ask(launcher("raise SystemExit('another program by now')"))
    assert (tmp_path / "ran").read_text() == "x"
    assert {(each.error, each.result.model_version) for each in said} == {("", "v7-big")}


async def test_an_order_that_comes_late(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """When the time is over in which it could start, a run that goes on or has ended is found as ever. One that has not
    begun never begins, neither now nor by a worker that read the clock before."""
    source = "import os, time\nopen('ran', 'a').write('x')\nwhile not os.path.exists('go on'): time.sleep(0.01)\n"
    one, said = launcher(source + RESULT), []

    async def ask(*, late: bool) -> None:
        with trio.fail_after(60):
            said.append(await one.launch(ORDER, late=late))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ask(late=False))
        await until(lambda: (tmp_path / "ran").exists(), 30)
        nursery.start_soon(lambda: ask(late=True))
        (tmp_path / "go on").touch()
    await ask(late=True)
    assert [(ended.error, ended.result.model_version) for ended in said] == [("", "v7-big")] * 3
    other = msgspec.structs.replace(ORDER, key="other")
    for late in (True, False):
        assert (await one.launch(other, late=late)) == Ended(error="it could not be started in time")
    assert (tmp_path / "ran").read_text() == "x"


async def test_a_supervisor_that_is_killed(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """Takes its training along, and is a clear failure, now and when the order comes again: nothing starts anew."""
    source = "import os, time; open('ran', 'a').write(f'{os.getpid()} '); time.sleep(60)"
    said: list[Ended] = []

    async def ask() -> None:
        said.append(await launched(launcher(source)))

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            pid = await pid_in(tmp_path / "ran")
            supervisor = json.loads((tmp_path / "runs" / ORDER.key / "started.json").read_text())["pid"]
            os.kill(supervisor, signal.SIGKILL)
    assert isinstance(caught.value.exceptions[0], Rejected)
    await until(lambda: not alive(pid))
    await ask()
    assert "it was interrupted: its supervisor was killed" in said[0].error
    assert (tmp_path / "ran").read_text() == f"{pid} "


@pytest.mark.parametrize("kind", ["end", "keep"])
async def test_a_worker_that_is_told_to_leave(launcher: Callable[..., Subprocess], tmp_path: Path, kind: str) -> None:
    """Ends the training with all that it has started, or lets it go on for the next worker to adopt."""
    source = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('child', 'w').write(str(child.pid))\n"
        "while not os.path.exists('go on'): time.sleep(0.01)\n" + RESULT
    )
    one = launcher(source, when_stopped=kind)
    with trio.move_on_after(60) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.launch, ORDER)
            child = await pid_in(tmp_path / "child")
            scope.cancel()
    (tmp_path / "go on").touch()
    assert alive(child) == (kind == "keep")
    said = await launched(one)
    await until(lambda: not alive(child))
    if kind == "end":
        assert "it was ended as its worker was told to leave" in said.error
    else:
        assert (said.error, said.result.model_version) == ("", "v7-big")


def children() -> list[str]:
    """Supervisors and zombies of this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid() and (fields[0] == "Z" or "runner.py" in command):
            found.append(f"{folder.name} {fields[0]} {command}")
    return found


async def test_nothing_is_left_behind(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """A training that ended well and left a process of its own behind, and one that ran into its timeout: no child, living
    or dead, and nothing of what they had started."""
    source = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('child', 'w').write(str(child.pid))\n"
    )
    for at, more in enumerate(("", "child.wait()")):
        order = msgspec.structs.replace(ORDER, key=f"order-{at}")
        await launched(launcher(source + more, timeout_seconds=1.0), order)
        child = int((tmp_path / "child").read_text())
        await until(lambda child=child: not alive(child))
    await until(lambda: not children())


# --- with the worker ---------------------------------------------------------------------------------------------------

JOB = """
import json, os, time
with open("ran", "a") as file:
    file.write(os.environ["RETRAIN_CORRELATION_ID"] + " ")
while not os.path.exists("go on"):
    time.sleep(0.01)
json.dump({"metrics": {"accuracy": 0.9}}, open(os.environ["RETRAIN_RESULT"], "w"))
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """canvasbus.toml for a worker that trains with JOB."""
    (tmp_path / "train.py").write_text(JOB)
    command = json.dumps([sys.executable, "train.py"])
    path = tmp_path / "canvasbus.toml"
    path.write_text(
        f'[workers.retrain]\nlauncher = "subprocess"\nfolder = "{tmp_path}/runs"\n'
        f'[workers.retrain.subprocess]\ncommand = {command}\ncwd = "{tmp_path}"\n'
    )
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    return path


async def test_from_request_to_promotion(
    any_url: str, namespace: str, eyes: Eyes, config: Path, tmp_path: Path
) -> None:
    """The correlation goes into the process and comes back with its answer; the model is promoted."""
    (tmp_path / "go on").touch()
    asked = RetrainRequested(model_name="m")
    async with running(any_url, retrain.worker, namespace=namespace) as bus:
        await bus.publish(asked)
        await until(lambda: eyes.events("model.promoted"), 30)
    (succeeded,), (promoted,) = eyes.events("retrain.succeeded"), eyes.events("model.promoted")
    assert (tmp_path / "ran").read_text() == f"{asked.correlation_id} "
    assert succeeded.correlation_id == promoted.correlation_id == asked.correlation_id
    assert (succeeded.metrics, promoted.model_version, promoted.fence) == ({"accuracy": 0.9}, "v1", 1)
    assert eyes.dead("retrain") == []


async def test_the_worker_is_told_to_leave(
    any_url: str, namespace: str, eyes: Eyes, config: Path, tmp_path: Path
) -> None:
    """In the middle of a run: the next worker says that it failed, and why."""
    async with running(any_url, retrain.worker, namespace=namespace, grace=0.2) as bus:
        await bus.publish(RetrainRequested(model_name="m"))
        await until(lambda: (tmp_path / "ran").exists(), 30)
    assert eyes.events("retrain.failed") == []
    async with running(any_url, retrain.worker, namespace=namespace):
        await until(lambda: eyes.events("retrain.failed"), 30)
    (failed,) = eyes.events("retrain.failed")
    assert "its worker was told to leave" in failed.error
    assert len((tmp_path / "ran").read_text().split()) == 1


async def test_a_folder_that_cannot_be_written_is_told(config: Path, tmp_path: Path) -> None:
    """At the start, not with the first order."""
    from canvasbus.config import section
    from canvasbus.errors import ConfigError
    from canvasbus_workers.retrain.edge import Launchers
    from canvasbus_workers.retrain.settings import Settings

    (tmp_path / "runs").touch()
    with pytest.raises(ConfigError, match=r"\[workers.retrain\]: folder .*/runs: File exists"):
        async with Launchers(section("retrain", Settings)):
            pass


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("os.mkfifo(path)", "it is no plain file"),
        ("os.mkdir(path)", "directory"),
        ("os.symlink(path, path)", "Too many levels"),
        ("open(path, 'wb').write(b'{\"\\xff\": 1}')", "'utf-8' codec"),
        ("open(path, 'w').write('{\"train_items\": -5}')", ">= 0"),
        ("open(path, 'w').write('{\"train_items\": 100000000000000000000}')", "<= 9223372036854775807"),
    ],
)
async def test_a_result_that_is_none(launcher: Callable[..., Subprocess], source: str, said: str) -> None:
    """Whatever a training leaves in the place of its result, the run has failed at once: the worker neither waits for a
    pipe nor stumbles, and what no event could say is refused."""
    ended = await launched(launcher(f"import os\npath = os.environ['RETRAIN_RESULT']\n{source}\n"))
    assert said in ended.error and "see /" in ended.error


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")
@pytest.mark.parametrize("options", [{}, {"timeout_seconds": 1.5}])
async def test_what_has_left_the_training_ends_with_it(
    launcher: Callable[..., Subprocess], tmp_path: Path, options: Any
) -> None:
    """A daemon that it has started, in a session of its own, neither outlives its success nor its timeout."""
    wait = "time.sleep(60)" if options else ""
    source = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({str(tmp_path / "draft")!r}, "w").write(str(os.getpid()))
        os.rename({str(tmp_path / "draft")!r}, {str(tmp_path / "daemon")!r})
        time.sleep(120)
    os._exit(0)
os.wait()
while not os.path.exists({str(tmp_path / "daemon")!r}): time.sleep(0.02)
{wait}
"""
    said = await launched(launcher(source, answer="state", **options))
    assert said.error.startswith("it took longer" if options else "")
    assert not alive(await pid_in(tmp_path / "daemon"))


async def test_a_log_that_cannot_be_opened(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """As on a full disk: the output is lost, and the training is not."""
    (tmp_path / "runs" / ORDER.key / "log").mkdir(parents=True)
    said = await launched(launcher("print('x' * 10_000)\n" + RESULT, log_bytes=4096))
    assert (said.error, said.result.train_items) == ("", 9)


async def test_a_disk_that_is_full_when_it_ends(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """How it ended is not lost: the worker is told that it cannot be written, and gets it when there is room."""
    record = tmp_path / "runs" / ORDER.key / ".ended.json"
    full = f"import os\nos.remove({str(record)!r})\nos.symlink('/dev/full', {str(record)!r})\n"
    said: list[Ended] = []

    async def ask() -> None:
        said.append(await launched(launcher(full + RESULT)))

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            line = (await until(lambda: list(logs), 30))[0]
            assert said == []
            record.unlink()
    assert (said[0].error, said[0].result.model_version) == ("", "v7-big")
    assert (line["log_level"], line["run_id"]) == ("warning", "m/v7")
    assert line["why"] == "how it ended cannot be written (No space left on device): trying again until it can"


def test_room_for_how_it_ends_is_taken_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the file system keeps its word a disk that fills up meanwhile is no trouble: what is written lies in the
    blocks that the file has. Where it does not, writing is tried again until it works."""
    monkeypatch.chdir(tmp_path)
    runner.put(".ended.json", {})
    assert Path(".ended.json").stat().st_size == runner.ROOM
    inode, said, pauses, write = Path(".ended.json").stat().st_ino, [], [], os.write

    def full(handle: int, data: bytes) -> int:
        if len(pauses) < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    monkeypatch.setattr(runner, "say", said.append)
    monkeypatch.setattr(runner.time, "sleep", pauses.append)
    monkeypatch.setattr(runner.os, "write", full)
    assert runner.settle({"why": "", "code": 0}) == 0
    assert pauses == [0.25, 0.5, 1.0] and len(said) == 3
    assert json.loads(Path("ended.json").read_text()) == {"why": "", "code": 0}
    assert Path("ended.json").stat().st_ino == inode and Path("ended.json").stat().st_size == runner.ROOM


async def test_a_disk_that_is_full_before_it_starts(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """It does not start, and that is the reason that is told."""
    folder = tmp_path / "runs" / ORDER.key
    folder.mkdir(parents=True)
    (folder / ".started.json").symlink_to("/dev/full")
    with pytest.raises(
        Rejected, match=r"it was not started: nothing can be written \(No space left on device\); see /"
    ):
        await launched(launcher("open('ran', 'w')"))
    assert not (tmp_path / "ran").exists()


def age(folder: Path) -> None:
    """It ended a while ago."""
    os.utime(folder / "ended.json", (1.0, 1.0))


async def test_old_runs_are_removed(launcher: Callable[..., Subprocess], tmp_path: Path) -> None:
    """The newest ones of each model stay, and besides whatever goes on, has just ended or may be asked for again; a
    folder that was removed halfway goes with the next."""
    one, runs, now = launcher("", answer="state", keep_runs=2, timeout_seconds=600), tmp_path / "runs", clock.time()

    async def run(key: str, ordered: float, model: str = "m") -> None:
        await launched(one, msgspec.structs.replace(ORDER, key=key, ordered=ordered, model_name=model))
        if key != "just ended":
            age(runs / key)

    (runs / "somebody's").mkdir(parents=True)
    (runs / ".gone.half").mkdir()
    (runs / "broken").mkdir()
    (runs / "broken" / "order.json").write_text("{]")
    await run("other", 1.0, "other")
    await run("young", now - 500.0)
    for number, key in enumerate(("old", "just ended", "older than two")):
        await run(key, 2.0 + number)
    assert not (runs / "old").exists()
    records.claim(runs / "goes on" / "order.json", {"model_name": "m", "ordered": 1.0, "timeout": 600.0})
    sent = {"model_name": "m", "ordered": 1.0, "timeout": 600.0}
    records.claim(runs / "refused" / "sent.json", sent | {"at": now})
    records.claim(runs / "sent" / "sent.json", sent | {"sent": True, "at": now - 700.0})
    records.claim(runs / "sent late" / "sent.json", sent | {"external_id": "r-1", "at": now - 500.0})
    await run("new", now)
    kept = {"somebody's", "broken", "other", "young", "just ended", "goes on", "sent late", "new"}
    assert {folder.name for folder in runs.iterdir()} == kept
    age(runs / "just ended")
    await run("newer", now + 1)
    assert {folder.name for folder in runs.iterdir()} == kept - {"just ended"} | {"newer"}


async def test_a_failure_is_in_the_log(any_url: str, namespace: str, eyes: Eyes, config: Path, tmp_path: Path) -> None:
    """As a warning, with what went wrong and the file that has its output."""
    (tmp_path / "train.py").write_text("print('no such table'); raise SystemExit(3)")
    async with running(any_url, retrain.worker, namespace=namespace) as bus:
        with structlog.testing.capture_logs() as logs:
            await bus.publish(RetrainRequested(model_name="m"))
            await until(lambda: eyes.events("retrain.failed"), 30)
    (line,) = [line for line in logs if line["event"] == "a training has failed"]
    assert (line["log_level"], line["model_name"], line["run_id"]) == ("warning", "m", "m/v1")
    said, path = line["why"].split("; see ")
    assert said == "exit code 3" and Path(path).read_text() == "no such table\n"
    assert eyes.events("retrain.failed")[0].error == line["why"]
