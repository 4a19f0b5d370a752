"""Who plays in the demo: the workers, in this process or each in a `canvasbus-worker` of its own. And who dies in it.

The one that is to die is caught with work in its hands, which chance would hardly do: a batch takes it milliseconds. A
process is stopped (SIGSTOP), is given the batch while it cannot move, and is killed (SIGKILL). In this process, where
nothing can be killed, it lives on a bus of its own that is cut off for good when it wants to commit what it has made of
the batch, as `canvasbus.testing` does it: whatever it does after that reaches nobody. Both times nobody is told that it
is dead; the others find out.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from canvasbus.errors import CanvasbusError

if TYPE_CHECKING:
    from canvasbus.bus import EventBus
    from canvasbus.testing.faults import Fault

WORKERS = ("drift", "alerts", "retrain", "trainer", "tagger")
MORTAL = "drift"
"""The worker that is killed, once."""


@dataclass(frozen=True)
class Stage:
    """Where the story is played."""

    url: str
    name: str
    """The server, without its password."""
    processes: bool
    """Each worker is a process of its own."""
    namespace: str
    folder: Path
    """Images, models, and the workers' logs."""


class Cast(Protocol):
    """The workers that take part."""

    reads: frozenset[tuple[str, str]]
    """(group, event type)"""

    def check(self) -> None:
        """Raises CanvasbusError when one has ended that should not."""

    def doom(self) -> None:
        """What MORTAL is given from now on it takes into its hands, and never gets done."""

    async def kill(self) -> None:
        """It dies with that, and another one is started."""


@dataclass
class Together:
    """All in this process."""

    reads: frozenset[tuple[str, str]]
    faults: "list[Fault]" = field(default_factory=list)

    def check(self) -> None:
        pass

    def doom(self) -> None:
        from canvasbus.testing.faults import Fault

        self.faults.append(Fault("commit", "crash", MORTAL, 1))

    async def kill(self) -> None:
        import trio

        while self.faults:
            await trio.sleep(0.01)


@dataclass
class Apart:
    """Each in a process of its own."""

    reads: frozenset[tuple[str, str]]
    stage: Stage
    processes: "dict[str, Process]" = field(default_factory=dict)

    def check(self) -> None:
        for process in self.processes.values():
            process.check()

    def doom(self) -> None:
        self.processes[MORTAL].stop()

    async def kill(self) -> None:
        self.processes[MORTAL].kill()
        self.processes[MORTAL] = Process(MORTAL, self.stage)


class Process:
    """One `canvasbus-worker`."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self._log = stage.folder / f"{name}.log"
        command = [sys.executable, "-m", "canvasbus.cli.worker", name, "--namespace", stage.namespace, "--grace", "2"]
        with self._log.open("ab") as log:
            # The URL may hold a password and goes by the environment. A session of its own, so that Ctrl-C reaches this
            # process alone, which ends the others; --supervised-by ends them also when this one is killed.
            self._popen = subprocess.Popen(
                [*command, "--supervised-by", str(os.getpid())],
                env=dict(os.environ) | {"CANVASBUS_URL": stage.url},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises CanvasbusError, with the last line of its log, when it has ended."""
        code = self._popen.poll()
        if code is not None:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise CanvasbusError(f"demo: the worker {self.name} ended with {code}: {said[-1] if said else 'no word'}")

    def stop(self) -> None:
        """It goes on living, and does nothing."""
        self._popen.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """kill -9."""
        self._popen.kill()
        self._popen.wait()

    def terminate(self) -> None:
        """Ask it to leave."""
        if self._popen.poll() is None:
            self._popen.terminate()

    def wait(self) -> None:
        """Until it has left; after five seconds it is killed."""
        try:
            self._popen.wait(5.0)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


@asynccontextmanager
async def gather(bus: "EventBus", stage: Stage) -> AsyncIterator[Cast]:
    """Start the workers; when the block is left they leave too."""
    import trio

    from canvasbus.operate import plugins
    from canvasbus.testing.process import Process as Simulated
    from canvasbus.transport.connect import open_server

    workers = {name: plugins.load(name) for name in WORKERS}
    reads = frozenset((w.name, topic) for w in workers.values() for handler in w.handlers for topic in handler.types)
    if not stage.processes:
        cast = Together(reads)
        mortal = Simulated(
            workers.pop(MORTAL),
            stage.url,
            open_server(stage.url),
            cast.faults,
            {"namespace": stage.namespace, "grace": 2.0},
        )
        async with trio.open_nursery() as nursery:
            for worker in workers.values():
                bus.add(worker)
            await nursery.start(mortal.run, nursery)
            yield cast
            mortal.stop.set()
            await mortal.ended.wait()
            await bus.aclose()  # while there is still a log to write to
        return
    apart = Apart(reads, stage)
    try:
        for name in WORKERS:
            apart.processes[name] = Process(name, stage)
        yield apart
    finally:
        for process in apart.processes.values():
            process.terminate()
        for process in apart.processes.values():
            process.wait()


@contextmanager
def logging_to(file: TextIO) -> Iterator[None]:
    """The workers of this process log to a file: their lines would tear the board."""
    import structlog

    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file), cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
