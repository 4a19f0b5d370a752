"""Who plays in the demo: the workers, in this process or each in a `canvasbus-worker` of its own."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from canvasbus.errors import CanvasbusError

if TYPE_CHECKING:
    from canvasbus.bus import EventBus

WORKERS = ("drift", "alerts", "retrain", "trainer", "tagger")


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


class Cast:
    """The workers that take part."""

    def __init__(self, reads: frozenset[tuple[str, str]], processes: Mapping[str, "Process"]) -> None:
        self.reads = reads
        """(group, event type)"""
        self._processes = processes

    def check(self) -> None:
        """Raises CanvasbusError when a worker process has ended."""
        for process in self._processes.values():
            process.check()


class Process:
    """One `canvasbus-worker`."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self._log = stage.folder / f"{name}.log"
        command = [sys.executable, "-m", "canvasbus.cli.worker", name, "--namespace", stage.namespace, "--grace", "2"]
        with self._log.open("wb") as log:
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
    from canvasbus.operate import plugins

    workers = [plugins.load(name) for name in WORKERS]
    reads = frozenset((w.name, topic) for w in workers for handler in w.handlers for topic in handler.types)
    if not stage.processes:
        with (stage.folder / "workers.log").open("a") as log, _logging_to(log):
            for worker in workers:
                bus.add(worker)
            yield Cast(reads, {})
            await bus.aclose()  # while there is still a log to write to
        return
    processes: dict[str, Process] = {}
    try:
        for name in WORKERS:
            processes[name] = Process(name, stage)
        yield Cast(reads, processes)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait()


@contextmanager
def _logging_to(file: TextIO) -> Iterator[None]:
    """The workers of this process log to a file: their lines would tear the board."""
    import structlog

    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file), cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
