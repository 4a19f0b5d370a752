"""Trains in a process on this machine, under a supervisor of its own (`runner`).

Launching is the same as following: a supervisor is started, and either it runs the order, or it finds that another one
does or has done. So an order that is delivered again, to this worker or to another one that sees the folder, never
starts a second training, and the worker that takes over waits for the end of what the dead one began, however late it comes: only
the supervisor, under its lock, can tell a run that began from one that did not.
"""

import fcntl
import os
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import msgspec
import structlog
import trio

from canvasbus_workers.patterns import fits
from canvasbus_workers.retrain.launchers import folders, records, runner
from canvasbus_workers.retrain.launchers.protocol import LATE, Ended, Launched, Order, Rejected, Result, Running
from canvasbus_workers.retrain.settings import Policy

ALWAYS = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Variables that every training gets."""
LOOK = 0.2
"""Seconds between two looks at a run that another worker's supervisor has."""
LARGEST_RESULT = 256 * 1024
"""Bytes of a result file."""
SHOWN = 200
"""Characters of what is wrong with it that are told."""
MARGIN = 5.0
"""Seconds beyond the grace in which a supervisor should have ended."""
_kept: list[trio.Process] = []
"""Supervisors that go on although nobody here waits for them, until they can be reaped."""


class Subprocess:
    """The launcher of one policy."""

    def __init__(self, policy: Policy, environ: Mapping[str, str] = os.environ) -> None:
        self._policy = policy
        self._settings = policy.subprocess
        self._environ = environ

    async def launch(self, order: Order, *, late: bool = False) -> Launched | Ended:
        """Run it, or follow the run that there is, to its end."""
        folder = Path(self._policy.folder).absolute() / order.key
        job = folders.about(order, self._policy) | {
            "command": self._settings.command,
            "cwd": str(Path(self._settings.cwd or ".").absolute()),
            "grace": self._settings.grace_seconds,
            "log_bytes": self._settings.log_bytes,
        }
        try:
            new = records.claim(folder / "order.json", job)
        except OSError as error:
            raise Rejected(f"folder {folder.parent}: {error.strerror}") from None
        if new:
            await trio.to_thread.run_sync(folders.prune, order, self._policy)
        await self._follow(folder, order, late)
        return outcome(folder, self._policy)

    async def status(self, external_id: str) -> Running | Ended:
        """Never asked: `launch` returns when it has ended."""
        return Running()

    async def _follow(self, folder: Path, order: Order, late: bool) -> None:
        process = None
        _kept[:] = [one for one in _kept if one.poll() is None]
        try:
            while not (folder / "ended.json").exists():
                process = await self._supervise(folder, order, late)
                said = await _listen(process, order.run_id, folder)
                code = await process.wait()
                if code == runner.LOCKED:
                    while _is_locked(folder) and not (folder / "ended.json").exists():
                        await trio.sleep(LOOK)
                elif code:
                    raise Rejected(f"{said or f'its supervisor ended with {code}'}; see {folder}")
        except trio.Cancelled:
            if self._settings.when_stopped == "keep":
                _kept[:] = [one for one in (*_kept, process) if one is not None and one.poll() is None]
            else:
                with trio.CancelScope(
                    shield=True, deadline=trio.current_time() + self._settings.grace_seconds + MARGIN
                ):
                    await _end(folder, process)
            raise

    async def _supervise(self, folder: Path, order: Order, late: bool) -> trio.Process:
        return await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", runner.__file__, str(folder), *(["late"] if late else [])],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            env=environment(self._environ, self._settings.environment, order, folder),
            start_new_session=True,
        )


async def _listen(process: trio.Process, run_id: str, folder: Path) -> str:
    """Log what a supervisor says until it ends. Returns the last line."""
    assert process.stdout is not None
    said, rest = "", b""
    log = structlog.get_logger("canvasbus.retrain")
    async with process.stdout as output:
        async for data in output:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = line.decode(errors="replace")
                log.warning("a training's supervisor is in trouble", run_id=run_id, why=said, folder=str(folder))
    return said


async def _end(folder: Path, process: trio.Process | None) -> None:
    """Have the supervisor end the run, whosever child it is."""
    while not (folder / "ended.json").exists():
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()
        elif _is_locked(folder):
            pid = (records.load(folder / "started.json") or {}).get("pid")
            if pid:
                os.kill(pid, signal.SIGTERM)  # it holds the lock, so it is that one
            await trio.sleep(LOOK)
        else:
            return


def _is_locked(folder: Path) -> bool:
    """A supervisor lives."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def environment(given: Mapping[str, str], wanted: tuple[str, ...], order: Order, folder: Path) -> dict[str, str]:
    """All that a training sees of the environment, and its order."""
    found = {name: value for name, value in given.items() if any(fits(pattern, name) for pattern in (*ALWAYS, *wanted))}
    found |= {
        "RETRAIN_MODEL": order.model_name,
        "RETRAIN_VERSION": order.model_version,
        "RETRAIN_RUN_ID": order.run_id,
        "RETRAIN_FENCE": str(order.fence),
        "RETRAIN_KEY": order.key,
        "RETRAIN_EPISODE": order.episode_id,
        "RETRAIN_REASON": order.reason,
        "RETRAIN_WINDOWS": str(order.windows),
        "RETRAIN_CORRELATION_ID": order.correlation_id,
        "RETRAIN_FOLDER": str(folder),
        "RETRAIN_RESULT": str(folder / "result.json"),
    }
    if order.traceparent:
        found["TRACEPARENT"] = order.traceparent
    return {name: value.replace("\0", "") for name, value in found.items()}


def outcome(folder: Path, policy: Policy) -> Ended:
    """What a run that has ended came to."""
    ended = records.load(folder / "ended.json") or {}
    seconds = float(ended.get("seconds", 0.0))
    error, log = _failure(ended, policy), folder / "log"
    if ended.get("why") == "late":
        return Ended(error=LATE)
    if error:
        return Ended(error=f"{error}; see {log}", duration=seconds)
    if policy.says == "bus":
        return Ended(duration=seconds)
    try:
        result = msgspec.json.decode(_result(folder / "result.json"), type=Result)
    except FileNotFoundError:
        if policy.says == "state":
            return Ended(duration=seconds)
        return Ended(error=f"it ended well and wrote no result file; see {log}", duration=seconds)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as problem:
        said = str(problem.strerror if isinstance(problem, OSError) else problem)[:SHOWN]
        return Ended(error=f"its result file: {said}; see {log}", duration=seconds)
    return Ended(result=result, duration=seconds)


def _result(path: Path) -> bytes:
    """What the training wrote. It may be anything: a pipe is not waited for, and nothing is read without a limit."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise msgspec.ValidationError("it is no plain file")
        data = file.read(LARGEST_RESULT + 1)
    if len(data) > LARGEST_RESULT:
        raise msgspec.ValidationError(f"more than {LARGEST_RESULT} bytes")
    return data


def _failure(ended: Mapping[str, Any], policy: Policy) -> str:
    match ended.get("why"), ended.get("code"):
        case "interrupted", _:
            return "it was interrupted: its supervisor was killed, or the machine restarted"
        case "unstartable", _:
            return f"it could not be started: {ended.get('error')}"
        case "timeout", _:
            return f"it took longer than {policy.timeout_seconds:g} s"
        case "cancelled", _:
            return "it was ended as its worker was told to leave"
        case _, 0:
            return ""
        case _, int(code) if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        case _, code:
            return f"exit code {code}"
