"""Fixtures of the attacks: a memory server in virtual time, and eyes on it."""

from collections.abc import Iterator

import pytest
import trio.testing
from studio import Eyes
from waiting import TrioClock

from canvasbus import clock
from canvasbus.transport.memory import MemoryServer


@pytest.fixture
def virtual(autojump_clock: trio.testing.MockClock) -> Iterator[trio.testing.MockClock]:
    """Time that passes only when every task waits, for trio, for canvasbus and for memory servers alike."""
    with clock.using(TrioClock(autojump_clock)):
        yield autojump_clock


@pytest.fixture
def memory(virtual: trio.testing.MockClock) -> MemoryServer:
    """A memory server in virtual time."""
    return MemoryServer()


@pytest.fixture
def eyes(memory: MemoryServer, namespace: str) -> Eyes:
    """What lies on the memory server."""
    return Eyes(memory, namespace)
