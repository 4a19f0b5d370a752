"""How a worker program is told to end, and how its children are.

A program that takes these signals keeps them until it ends: it drains behind the block that was told, and is interrupted by
none meanwhile.

Nobody drains in a child that a handler forks (multiprocessing): it would keep these signals to itself, and whoever ends it by
SIGTERM and waits for that, as with Process.terminate, would wait for ever. So a child lets go of them; one that comes before
that waits until then.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from canvasbus import clock
from canvasbus.log import get_logger

SAME_SECONDS = 0.5
"""A signal so soon after the first is the same one: `timeout` and shells signal a process, and then its whole group."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_forking = threading.local()

log = get_logger("canvasbus.worker")


class _Ear:
    """Hears the signals, for one block. (In no task: a handler may block the loop.)"""

    def __init__(self, supervisor: int | None) -> None:
        self.heard = False
        self._again_from = 0.0
        self.told = trio.Event()
        self.scope = trio.CancelScope()
        self._supervisor = supervisor
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, number: int, _frame: object) -> None:
        first, self.heard = not self.heard, True
        if first:
            self._again_from = clock.monotonic() + SAME_SECONDS
            self._token.run_sync_soon(self._drain, number)
        elif clock.monotonic() >= self._again_from and os.getppid() != self._supervisor:
            os._exit(128 + number)

    def _drain(self, number: int) -> None:
        log.info("signal received; draining", signal=signal.Signals(number).name)
        self.told.set()
        self.scope.cancel()


@asynccontextmanager
async def until_signal(*, supervisor: int | None = None) -> AsyncIterator[trio.Event]:
    """Run the block until SIGTERM or SIGINT, which sets the event that it is given: the block may have come to its own
    end in the same moment. A second signal, SAME_SECONDS after the first or later, ends the process at once; not while its
    parent of the number `supervisor` lives: whoever stops a whole service (systemd does) signals each process, and so does
    that."""
    ear = _Ear(supervisor)
    before = [(number, signal.signal(number, ear)) for number in _SIGNALS]
    try:
        with ear.scope:
            yield ear.told
    finally:
        if not ear.heard:
            for number, handler in before:
                signal.signal(number, handler or signal.SIG_DFL)
        if ear.heard:  # also one that came as the block ended, of which no turn of the loop has told
            ear.told.set()


def taken() -> bool:
    """Whether the program takes Ctrl-C as a signal, so that nobody is interrupted by it."""
    return isinstance(signal.getsignal(signal.SIGINT), _Ear)


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if taken() else None


def _after_fork_in_parent() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if _forking.mask is not None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
