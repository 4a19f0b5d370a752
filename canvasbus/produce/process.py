"""What senders do when their process forks or ends.

    fork (os.fork, multiprocessing, DataLoader workers)   the child starts with an empty buffer, new locks, no thread, no
                                                          connection and no files of the spool; what was queued is sent by the parent alone
    fork in on_delivery, and back from there in both      the child ends with a line: it is a copy of the sender's thread alone
    end of the program, uncaught exception, Ctrl-C        atexit: flush for `flush_timeout` seconds
    end of a multiprocessing child                        the same, through multiprocessing's own finalizers: such a child
                                                          leaves by os._exit and, before Python 3.14, runs no atexit
    SIGTERM without a handler, SIGKILL, os._exit          nothing runs: what waits in the buffer is lost, or lies in the
                                                          spool for the next. A program that is ended by SIGTERM installs
                                                          a handler that raises SystemExit.

A thread that is not a daemon would be joined before atexit runs and hang the program for ever, so the sender is one.

Senders are kept by plain weak references in a dict: single steps in C. A WeakSet has steps of its own, in the middle of
which another thread may be when the process forks.
"""

import atexit
import os
import sys
import weakref
from typing import TYPE_CHECKING, NoReturn, Protocol

from canvasbus import clock

if TYPE_CHECKING:
    from multiprocessing.util import Finalize


class Living(Protocol):
    """Something with a thread."""

    def after_fork(self) -> None: ...
    def at_exit(self, deadline: float) -> None: ...
    @property
    def flush_timeout(self) -> float: ...


_living: dict[int, weakref.ref[Living]] = {}
_hooked = False
_finalizer: "Finalize | None" = None


def watch(sender: Living) -> None:
    """Tell `sender` of forks and of the end of the process for as long as it lives."""
    key = id(sender)

    def forget(_: object) -> None:
        _living.pop(key, None)

    _living[key] = weakref.ref(sender, forget)
    hook_exit()


def hook_exit() -> None:
    """Have `_at_exit` called when this process ends. Called again with each thread that starts: what a child inherits,
    or registers before multiprocessing has set it up, is wiped by multiprocessing's own start. Being called twice does
    no harm."""
    global _hooked, _finalizer
    if not _hooked:
        _hooked = True
        atexit.register(_at_exit)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        if _finalizer is None or not _finalizer.still_active():
            _finalizer = Finalize(None, _at_exit, exitpriority=100)


def end_copy() -> NoReturn:
    """End a child that on_delivery has forked, and that has come back from there: it has no other thread than its copy of the
    sender's, which would send once more what its parent has in hand, and then wait for ever."""
    text = (
        f"canvasbus: process {os.getpid()} was forked by on_delivery, and has come back from there. This copy ends, the parent goes "
        "on. Let a forked child end by os._exit, or use multiprocessing or subprocess\n"
    )
    try:
        os.write(2, text.encode())
    finally:
        os._exit(os.EX_SOFTWARE)


def _at_exit() -> None:
    started = clock.monotonic()
    for reference in list(_living.values()):
        sender = reference()
        if sender is not None:
            sender.at_exit(max(0.0, sender.flush_timeout - (clock.monotonic() - started)))


def _after_fork() -> None:
    global _hooked
    _hooked = False
    for reference in list(_living.values()):
        sender = reference()
        if sender is not None:
            sender.after_fork()


os.register_at_fork(after_in_child=_after_fork)
