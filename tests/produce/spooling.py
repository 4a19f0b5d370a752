"""Buffers with a spool for tests: made, ended as a process ends them, and emptied."""

from pathlib import Path
from typing import Any

from canvasbus import ids
from canvasbus.produce.spooled import SpooledBuffer
from canvasbus.wire.outgoing import Outgoing


def item(size: int = 20) -> Outgoing:
    return Outgoing(ids.uuid7_bytes(), "painting.made", None, b"x" * size)


def spooled(
    root: Path, *, limit: int = 4000, spool_bytes: int = 1 << 20, when_full: Any = "spool", lanes: int = 1
) -> SpooledBuffer:
    return SpooledBuffer(
        limit, when_full, 0.0, lanes, lambda: True, lambda *_: None,
        root=root, spool_bytes=spool_bytes, namespace="studio", server="redis://somewhere",
    )  # fmt: skip


def die(buffer: SpooledBuffer) -> None:
    """What the end of its process does to a buffer: every descriptor is closed, nothing else happens."""
    buffer.reset()


def drained(buffer: SpooledBuffer, lane: int = 0) -> list[Outgoing]:
    """Everything it holds, each batch settled as stored."""
    got: list[Outgoing] = []
    while (batch := buffer.take()) is not None:
        assert batch[0] == lane
        got += batch[1]
        buffer.settle(*batch, stored=len(batch[1]))
    return got
