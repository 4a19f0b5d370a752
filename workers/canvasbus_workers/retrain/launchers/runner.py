"""The supervisor of one run: started by the retrain worker as `python -I -S runner.py FOLDER [late]`, and living
on without it.

Why a process between the worker and the training. A worker that is killed cannot reap its child, enforce its timeout or
learn its exit code, and the one that takes over cannot either: it is no parent. This one can, so adopting a run is
waiting for its `ended.json`.

    order.json    what to run; written by the worker
    lock          held while a runner lives; the kernel lets go of it, however that ends
    started.json  written before the training starts: a run that has it is never started again
    log, log.1    output, the last half of the limit at least
    ended.json    how it ended; written once

A disk may be full by the time a training ends, often of what it has made itself. So the room for `ended.json` is taken
before the training starts, as blanks in `.ended.json`; where that is not enough (a file system that copies on write, a
quota, an I/O error) the runner tries until it can write, and tells the worker that waits, by a line on its standard output.

With `late` a runner begins nothing: the time in which the training could start is over. It holds the lock as it says so, so
that no other one begins it meanwhile.

A runner that finds `started.json` and no `ended.json` took over from one that died: the outcome is "interrupted". The
training dies with its runner (PR_SET_PDEATHSIG, where there is Linux). It knows nothing but the standard library, and has no secrets but
its environment, which is the training's.
"""

import contextlib
import ctypes
import fcntl
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

LOCKED = 75
"""Exit code: another runner has this run (EX_TEMPFAIL in sysexits.h)."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
UNWRITABLE = 73
"""Exit code: the folder cannot be written (EX_CANTCREAT)."""
ROOM = 4096
"""Bytes that are reserved for a record: blanks behind JSON are JSON."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries to write how it ended."""
ROUNDS = 100
"""Of ending what a training has left behind: each may have started something more."""


def main(folder: str, late: str = "") -> int:
    """Run what FOLDER orders, once."""
    os.chdir(folder)
    lock = os.open("lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return LOCKED
    if os.path.exists("ended.json"):  # noqa: PTH110  nothing but the cheapest imports
        return 0
    if os.path.exists("started.json"):  # noqa: PTH110
        return settle({"why": "interrupted"})
    with open("order.json", encoding="utf-8") as file:  # noqa: PTH123
        order = json.load(file)
    try:
        if late:
            write("ended.json", {"why": "late"})
            return 0
        put(".ended.json", {})
        write("started.json", {"pid": os.getpid(), "at": time.time()})
    except OSError as error:
        say(f"it was not started: nothing can be written ({error.strerror})")
        return UNWRITABLE
    return settle(run(order))


def settle(outcome: dict[str, Any]) -> int:
    """Write down how it ended, however long that takes; the exit code. It ends without only where the folder is no more."""
    pause = 0.25
    while True:
        try:
            write("ended.json", outcome)
        except OSError as error:
            say(f"how it ended cannot be written ({error.strerror}): trying again until it can")
        else:
            return 0
        if not os.stat(".").st_nlink:  # noqa: PTH116
            return UNWRITABLE
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def say(what: str) -> None:
    """Tell the worker that waits; it may be gone, or not listen."""
    with contextlib.suppress(OSError):
        os.set_blocking(1, False)
        os.write(1, f"{what}\n".encode())


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Start the training, follow it to its end, and say how that came."""
    began = time.monotonic()
    heard, wake = socket.socketpair()
    for end in (heard, wake):
        end.setblocking(False)
    asked: list[bool] = []
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    log = Log(order["log_bytes"])
    adopt_orphans()
    try:
        process = subprocess.Popen(
            order["command"],
            cwd=order["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except (OSError, ValueError) as error:
        return {"why": "unstartable", "error": str(error)[:300]}
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    why = ""
    kill_at: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(heard, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        while process.poll() is None:
            now = time.monotonic()
            if not why and (asked or now >= began + order["timeout"]):
                why, kill_at = "cancelled" if asked else "timeout", now + order["grace"]
                kill(process.pid, signal.SIGTERM)
            if kill_at is not None and now >= kill_at:
                kill(process.pid, signal.SIGKILL)
                kill_at = now + 1.0
            until = began + order["timeout"] if kill_at is None else kill_at
            for key, _ in selector.select(max(0.0, until - now)):
                if key.fd == output:
                    if log.take(output) == b"":
                        selector.unregister(output)  # it has closed its output, and goes on
                else:
                    with contextlib.suppress(BlockingIOError):
                        heard.recv(4096)
                    reap(but=process.pid)
    seconds = time.monotonic() - began
    kill(process.pid, signal.SIGKILL)  # what it has left behind in its group, …
    end_orphans()  # … and what has left that
    while log.take(output):
        pass
    log.close()
    signal.set_wakeup_fd(-1)  # its socket ends here, and a signal must not write into a file that gets its number
    return {"why": why, "code": process.returncode, "seconds": seconds, "dropped": log.dropped}


def die_with_parent() -> None:
    """In the child: SIGKILL when the runner dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """What a training has started becomes a child of this process when its own parent ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_orphans() -> None:
    """SIGKILL to all children, until there are none. The training itself has been reaped."""
    for _ in range(ROUNDS):
        found = children()
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)
        if not found:
            return


def reap(but: int) -> None:
    """Adopted children that have ended leave nothing behind; the training itself is waited for elsewhere."""
    for pid in children():
        if pid != but:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def children() -> list[int]:
    """Of this process; none where there is no /proc to tell."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def kill(group: int, number: int) -> None:
    """Signal the training and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def write(name: str, value: Any) -> None:
    """Whole or not at all, and on the disk."""
    put(f".{name}", value)
    os.replace(f".{name}", name)  # noqa: PTH105
    folder = os.open(".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def put(path: str, value: Any) -> None:
    """Write into the room that a file has, without giving it up first."""
    data = json.dumps(value).encode().ljust(ROOM)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


class Log:
    """Two files of half the limit: when one is full it becomes the old one. The end of a log says what went wrong."""

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        """Bytes that are kept no more."""
        self._half = max(1, limit // 2)
        self._size = self._old = 0
        self._file = self._opened()

    def take(self, output: int) -> bytes | None:
        """Read what is there, and keep it; b"": nothing more will come, None: nothing is there now."""
        try:
            data = os.read(output, 65536)
        except BlockingIOError:
            return None
        rest = data
        while rest:
            part, rest = rest[: self._half - self._size], rest[self._half - self._size :]
            with contextlib.suppress(OSError):  # a full disk must not end the training
                if self._file is not None:
                    self._file.write(part)
            self._size += len(part)
            if self._size >= self._half:
                self._turn()
        return data

    def _turn(self) -> None:
        self.close()
        with contextlib.suppress(OSError):
            os.replace("log", "log.1")  # noqa: PTH105
        self.dropped += self._old
        self._old, self._size = self._size, 0
        self._file = self._opened()

    def close(self) -> None:
        """Everything is written."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> io.FileIO | None:
        """None: there is no room for a file, and what the training says is read and lost."""
        try:
            return io.FileIO("log", "wb")
        except OSError:
            return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
