"""What would be a process: one worker, or the program that publishes, with a bus of its own, that can die."""

from functools import partial
from typing import Any

import trio

from canvasbus.bus import EventBus
from canvasbus.consume.handlers import Worker
from canvasbus.consume.runner import WorkerStatistics
from canvasbus.testing.faults import Fault, FaultyServer
from canvasbus.transport.server import Server


class Process:
    """One simulated process; `worker` None: it only publishes."""

    def __init__(
        self, worker: Worker | None, url: str, server: Server, faults: list[Fault], options: dict[str, Any]
    ) -> None:
        self.worker = worker
        self.name = None if worker is None else worker.name
        self._url = url
        self._inner = server
        self._faults = faults
        self._options = options
        self._begin()

    def _begin(self) -> None:
        self.bus: EventBus | None = None
        self.ready = False
        """Its worker has joined."""
        self.stop = trio.Event()
        """Set it, and the process leaves in order."""
        self.ended = trio.Event()
        self._scope = trio.CancelScope()

    async def run(
        self, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Live until `stop`, or until it crashes; the next life then begins in `nursery`."""
        self._nursery = nursery
        self._server = FaultyServer(self._inner, self.name, self._faults, partial(nursery.start_soon, self.crash))
        try:
            with self._scope:
                async with EventBus(self._url, server=self._server, **self._options) as self.bus:
                    if self.worker is not None:
                        self.bus.add(self.worker)
                    await self.bus.wait_ready()
                    self.ready = True
                    task_status.started()
                    await self.stop.wait()
        finally:
            self.ended.set()

    async def crash(self) -> None:
        """Die as it is, and start anew. That it is dead the others find out by themselves."""
        life = self._scope
        self._server.cut()
        life.cancel()
        await self.ended.wait()
        if life is self._scope:  # else it has died of two causes at once
            self._begin()
            self._nursery.start_soon(self.run, self._nursery)

    @property
    def statistics(self) -> WorkerStatistics | None:
        """Its worker's; None: it has none, or is not there."""
        return next(iter(self.bus.statistics()), None) if self.bus is not None else None

    def __repr__(self) -> str:
        return f"<Process {self.name or 'publishing'} {'ready' if self.ready else 'starting'}>"
