"""Logging never costs an event."""

import errno
import io
import sys
from collections.abc import Callable
from typing import TextIO

import pytest
from studio import Eyes, PaintingMade, quiet, running

from canvasbus import log
from canvasbus.worker import Context, Worker


class FullDisk(io.StringIO):
    """What /dev/full is, without a buffer that the collector would write out."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def none_at_all() -> None:
    """As Python has it when the program was started with `2>&-`."""


@pytest.mark.parametrize("stream", [closed, FullDisk, none_at_all])
@pytest.mark.parametrize("json", [True, False])
async def test_a_line_that_cannot_be_written_fails_no_handler(
    any_url: str,
    namespace: str,
    eyes: Eyes,
    monkeypatch: pytest.MonkeyPatch,
    stream: Callable[[], TextIO | None],
    json: bool,
) -> None:
    """The handler runs once, and what the worker itself says costs nothing either."""
    monkeypatch.setattr(sys, "stderr", stream())
    log.configure(json=json)
    worker = Worker("framers")
    attempts: list[int] = []

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        ctx.log.info("framed", number=event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await quiet(eyes)
    assert attempts == [1]
    assert not eyes.dead("framers")
