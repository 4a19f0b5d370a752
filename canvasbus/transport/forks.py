"""A forked child that goes on where its parent was.

A handler that calls os.fork() and returns in both processes leaves a second copy of the whole program: it shares the
parent's sockets, and what epoll knows of them, so that each would take the other's replies and keep it from waking up.
Nothing good can come of the copy, and so it ends, before it takes one more step of trio's. A child that runs something of
its own (multiprocessing, os.exec, os._exit) never comes there.
"""

import os

import trio

_running = 0
"""Buses of this process that are open."""


async def end_copies() -> None:
    """While this task runs a copy of this process ends by itself."""
    global _running
    _running += 1
    try:
        await trio.sleep_forever()
    finally:
        _running -= 1


class _End(trio.abc.Instrument):
    def before_io_wait(self, timeout: float) -> None:
        self._end()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._end()

    def _end(self) -> None:
        text = (
            f"canvasbus: process {os.getpid()} was forked while its bus was running, and has come back into it. This copy ends, "
            "the parent goes on. Let a forked child end by os._exit, or use multiprocessing or trio.run_process\n"
        )
        try:
            os.write(2, text.encode())
        finally:
            os._exit(os.EX_SOFTWARE)


def _after_fork() -> None:
    if _running:
        try:
            trio.lowlevel.add_instrument(_End())
        except RuntimeError:  # forked by a thread without a loop, which is all that there is of the child
            pass


os.register_at_fork(after_in_child=_after_fork)
