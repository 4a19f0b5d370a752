"""How a worker program is told to end, and how its children are.

Nobody drains in a child that a handler forks (multiprocessing): it would keep these signals to itself, and whoever ends it by
SIGTERM and waits for that, as with Process.terminate, would wait for ever. So a child lets go of them; one that comes before
that waits until then.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from canvasbus.consume.invoke import without_ctrl_c
from canvasbus.log import get_logger

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_taken = 0
"""How many blocks of this process take them for themselves."""
_forking = threading.local()

log = get_logger("canvasbus.worker")


@asynccontextmanager
async def until_signal(*, supervisor: int | None = None) -> AsyncIterator[trio.Event]:
    """Run the block until SIGTERM or SIGINT, which sets the event that it is given: the block may have come to its own
    end in the same moment. A second signal while the program drains ends the process at once; not while its parent
    of the number `supervisor` lives: whoever stops a whole service (systemd does) signals each process, and so does that."""
    told, heard = trio.Event(), False
    token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()

    def drain(number: int) -> None:
        log.info("signal received; draining", signal=signal.Signals(number).name)
        told.set()
        scope.cancel()

    def hear(number: int, _frame: object) -> None:  # here and not in a task: a handler may block the loop
        nonlocal heard
        first, heard = not heard, True
        if first and _taken:
            token.run_sync_soon(drain, number)
        elif first or os.getppid() != supervisor:
            os._exit(128 + number)

    before = [(number, signal.signal(number, hear)) for number in _SIGNALS]
    try:
        with without_ctrl_c(), _ours(), scope:
            yield told
    finally:
        if heard:  # also one that came as the block ended, of which no turn of the loop has told
            told.set()
        else:
            for number, handler in before:
                signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _ours() -> Iterator[None]:
    global _taken
    _taken += 1
    try:
        yield
    finally:
        _taken -= 1


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if _taken else None


def _after_fork_in_parent() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if _forking.mask is not None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
