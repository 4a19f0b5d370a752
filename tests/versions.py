"""An event type as processes of different age know it, side by side in one process: a registry for each."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from studio import PaintingFramed, running

from canvasbus import Event
from canvasbus.bus import EventBus
from canvasbus.contract.registry import Registry
from canvasbus.transport.server import Server
from canvasbus.wire.codec import Codec
from canvasbus.worker import PER_INSTANCE, Worker

LAID = "mosaic.laid"


class Era:
    """What a process knows in which version 1, 2, ... of mosaic.laid is the newest; 0: it does not know the type."""

    def __init__(self, version: int, since: int = 1) -> None:
        self.version = version
        self.known = Registry()
        self.event: Any = None
        if version:
            self.learn(version, since)

    def learn(self, version: int, since: int = 1) -> None:
        """A module that declares this version is imported."""

        class Laid(Event):
            number: int = 0
            stones: tuple[int, ...] = (0,) * version
            """As many as the version that was seen."""

        steps = {older: lambda old: old | {"stones": [*old["stones"], 0]} for older in range(since, version)}
        self.event = Laid
        Laid.__event_type__ = self.known.register(Laid, LAID, version, None, since=since, upcast=steps)  # type: ignore[attr-defined]

    @asynccontextmanager
    async def running(self, url: str | Server, *workers: Worker, **options: Any) -> AsyncIterator[EventBus]:
        """A bus whose workers know what this era knows."""
        async with AsyncExitStack() as stack:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("canvasbus.bus.Codec", partial(Codec, registry=self.known))
                bus = await stack.enter_async_context(running(url, *workers, **options))
            yield bus

    def encoded(self, number: int = 0) -> bytes:
        """An event of this version as it lies on a stream."""
        return Codec("era", registry=self.known).encode(self.event(number=number)).data


def framing(group: str, *what: str, instance: bool = False) -> Worker:
    """A worker that frames what it gets, and says in which version it saw it."""
    worker = Worker(group, group=PER_INSTANCE if instance else None)

    @worker.on(*(what or (LAID,)))
    async def frame(event: Any) -> PaintingFramed:
        return PaintingFramed(number=event.number, title=f"{group} {len(event.stones)}")

    return worker
