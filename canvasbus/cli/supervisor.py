"""Several worker processes, or one that starts again when its code changes: started, watched over, started again.

The processes are programs of their own (exec, not fork: threads and connections do not survive a fork). One that dies
is started again after a pause that doubles up to 30 s; its events are taken over by the others meanwhile.

Each has a process group of its own, so that Ctrl-C on a terminal reaches them through here. Told to stop they drain,
however often they are told: they may be told by whoever stops the whole service, too, and by a reload before. A second
signal comes to here only, and ends them by one that needs nobody to act on it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from canvasbus.cli.reload import Sources, syntax_error
from canvasbus.errors import ConfigError
from canvasbus.log import get_logger
from canvasbus.signals import SAME_SECONDS

RESTART_FIRST = 1.0
RESTART_MOST = 30.0
STEADY_SECONDS = 60.0
"""A process that lived so long starts with the first pause again."""

BAD_USAGE = 2

log = get_logger("canvasbus.supervisor")


class _Child:
    def __init__(self, number: int, command: list[str], environ: dict[str, str]) -> None:
        self._number = number
        self._command = command
        self._environ = environ
        self._pause = RESTART_FIRST
        self._started = 0.0
        self._reloading = False
        self.due = 0.0
        """When it is to be started, should it not run."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self.process = subprocess.Popen(self._command, env=self._environ, process_group=0)

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def reload(self) -> None:
        """Drain, and start again with the code that is there then."""
        if self.process is None:
            self.due = 0.0
        elif not self._reloading:
            self._reloading = True
            self.signal(signal.SIGTERM)

    def ended(self, code: int, *, waits: bool) -> None:
        """It is gone, and nobody wanted it to stop. `waits`: what is wrong with its code may change."""
        self.process = None
        now = time.monotonic()
        if self._reloading:
            self._reloading, self.due = False, now
            return
        if code == BAD_USAGE and waits:
            self.due = float("inf")
            log.error("the worker does not start with this code; the next change is waited for", process=self._number)
            return
        if now - self._started > STEADY_SECONDS:
            self._pause = RESTART_FIRST
        self.due = now + self._pause
        self._pause = min(self._pause * 2, RESTART_MOST)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.error("a worker process ended", process=self._number, how=how, starts_again_in=self.due - now)


def supervise(commands: Sequence[list[str]], environ: dict[str, str], sources: Sources | None) -> int:
    """Run one process for each command until SIGTERM or SIGINT; returns the worst exit code. With `sources` they start
    again whenever these change."""
    children = [_Child(number, command, environ) for number, command in enumerate(commands)]
    stopping: list[int] = []
    """The signals; 0: a process has found its settings wrong."""
    again_from = 0.0

    def pass_on(number: int, _frame: object) -> None:
        nonlocal again_from
        if number:
            now = time.monotonic()
            if now < again_from:
                return
            again_from = again_from or now + SAME_SECONDS
        stopping.append(number)
        for child in children:
            tell(child)

    def tell(child: _Child) -> None:
        # SIGTERM drains as SIGINT does, and is no traceback to a Python that is still starting.
        signals = len(stopping) - stopping.count(0)
        child.signal(signal.SIGTERM if signals <= 1 else signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    worst = 0
    while True:
        for child in children:
            if child.process is not None and (ended := child.process.poll()) is not None:
                if stopping:
                    child.process = None
                    worst = max(worst, 128 + signal.SIGKILL if ended == -signal.SIGKILL else ended)
                elif ended == BAD_USAGE and sources is None:  # that does not get better
                    child.process = None
                    pass_on(0, None)
                    worst = BAD_USAGE
                else:
                    child.ended(ended, waits=sources is not None)
            if child.process is None and not stopping and child.due <= time.monotonic():
                child.start()
                if stopping:  # told while it was being started
                    tell(child)
        if stopping and not any(child.process for child in children):
            return worst
        if sources is not None and not stopping:
            _reload(children, sources)
        time.sleep(0.1)


def _reload(children: list[_Child], sources: Sources) -> None:
    changed = sources.changed(time.monotonic())
    if not changed:
        return
    if error := syntax_error(changed):
        log.error("the new code has a syntax error; the next change is waited for", error=error)
        return
    log.info("source files have changed; the workers drain and start again", files=[str(path) for path in changed[:5]])
    for child in children:
        child.reload()


def die_with(supervisor: int) -> None:
    """Drain when the supervisor is gone, even if it was killed: nobody else would ever stop this process. Linux only."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != supervisor:
        raise ConfigError("the supervisor is gone")
