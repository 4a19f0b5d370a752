"""How a worker program is told to end."""

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from canvasbus.signals import until_signal


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


async def test_a_signal_ends_the_block() -> None:
    """And who waits in it goes on behind it."""
    async with until_signal() as told:
        os.kill(os.getpid(), signal.SIGTERM)
        with trio.fail_after(10):
            await trio.sleep_forever()
    assert told.is_set()


async def test_a_signal_as_the_block_ends_is_told() -> None:
    """Before the loop has turned once more: whoever comes next would wait for it in vain."""
    async with until_signal() as told:
        os.kill(os.getpid(), signal.SIGTERM)
    assert told.is_set()


async def test_a_block_without_a_signal_leaves_the_handlers_as_they_were() -> None:
    """Also one that ends by an error: Ctrl-C is a KeyboardInterrupt again, and what is to be done at exit is done."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ValueError):
        async with until_signal():
            raise ValueError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
