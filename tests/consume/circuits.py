"""Workers whose handlers call something outside, for tests of circuit breakers."""

from collections import Counter
from typing import Any

import trio
from studio import Eyes, PaintingFramed, PaintingMade

from canvasbus.worker import Backoff, Breaker, Worker


class Dependency:
    """Something outside that handlers call."""

    def __init__(self) -> None:
        self.down = False
        self.calls: list[tuple[float, int, bool]] = []
        """When, for which event, and whether it was down."""

    async def call(self, number: int, seconds: float = 0.05) -> None:
        down = self.down
        self.calls.append((trio.current_time(), number, down))
        await trio.sleep(seconds)
        if down:
            raise ConnectionRefusedError("nobody there")

    @property
    def in_vain(self) -> int:
        return sum(down for _, _, down in self.calls)


def calling(dependency: Dependency, name: str = "callers", *, batch: bool = False, **options: Any) -> Worker:
    worker = Worker(name)
    options = {"retry": Backoff(attempts=2, base=1, cap=1), "breaker": Breaker(), **options}
    if batch:

        @worker.on_batch(PaintingMade, max_size=8, **options)
        async def call_all(events: list[PaintingMade]) -> list[tuple[int, PaintingFramed]]:
            await dependency.call(events[0].number)
            return [(index, PaintingFramed(number=event.number)) for index, event in enumerate(events)]
    else:

        @worker.on(PaintingMade, concurrency=8, **options)
        async def call(event: PaintingMade) -> PaintingFramed:
            await dependency.call(event.number)
            return PaintingFramed(number=event.number)

    return worker


def suspect(eyes: Eyes, topic: str = "painting.made", *, alone: bool = False) -> None:
    """What lies there was in the hands of a worker that died; `alone`: it has to run alone next."""
    stream = eyes.stream(topic)
    eyes.call("XGROUP", "CREATE", stream, "callers", "0")
    eyes.call("XREADGROUP", "GROUP", "callers", "~suspect", "STREAMS", stream, ">")
    if alone:
        entries = [entry for entry, _, _ in eyes.pending("callers", topic)]
        eyes.call("XCLAIM", stream, "callers", "~suspect", 0, *entries, "RETRYCOUNT", 0, "JUSTID")


def framed(eyes: Eyes) -> Counter[int]:
    return Counter(event.number for event in eyes.events("painting.framed"))
