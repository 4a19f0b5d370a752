"""How a worker program is told to end."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from waiting import TurnedClock

from canvasbus import clock
from canvasbus.signals import SAME_SECONDS, until_signal


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


async def test_a_second_signal_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one that comes with the first: `timeout` signals its child, and then its own group."""
    ended = list[int]()
    monkeypatch.setattr(os, "_exit", ended.append)
    with clock.using(TurnedClock()) as now:
        async with until_signal() as told:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        assert told.is_set() and not ended
        now.turn(SAME_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


async def test_a_block_without_a_signal_leaves_the_handlers_as_they_were() -> None:
    """Also one that ends by an error: Ctrl-C is a KeyboardInterrupt again, and what is to be done at exit is done."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ValueError):
        async with until_signal():
            raise ValueError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_signal_as_the_handlers_are_given_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program does not end by it either."""
    give = signal.signal

    def give_and_be_told(number: int, handler: Any) -> Any:
        before = give(number, handler)
        if handler is given_before:
            os.kill(os.getpid(), signal.SIGINT)
        return before

    given_before = signal.getsignal(signal.SIGTERM)
    ended = list[int]()
    monkeypatch.setattr(os, "_exit", ended.append)
    async with until_signal() as told:
        monkeypatch.setattr(signal, "signal", give_and_be_told)
    assert told.is_set() and not ended
