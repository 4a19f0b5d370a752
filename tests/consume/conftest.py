"""Fixtures of the consuming tests."""

from collections.abc import Iterator

import pytest
import trio
import trio.testing
from studio import Eyes
from waiting import TrioClock

from canvasbus import clock
from canvasbus.transport.memory import MemoryServer


@pytest.fixture
def eyes(any_url: str, namespace: str) -> Iterator[Eyes]:
    """What lies on the server behind `any_url`."""
    eyes = Eyes(any_url, namespace)
    yield eyes
    eyes.close()


@pytest.fixture
def virtual(autojump_clock: trio.testing.MockClock) -> Iterator[trio.testing.MockClock]:
    """Time that passes only when every task waits, for trio, for canvasbus and for memory servers alike."""
    with clock.using(TrioClock(autojump_clock)):
        yield autojump_clock


@pytest.fixture
def memory(virtual: trio.testing.MockClock) -> MemoryServer:
    """A memory server in virtual time."""
    return MemoryServer()
