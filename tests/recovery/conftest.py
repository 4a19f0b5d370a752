"""Fixtures of the recovery tests: servers of their own, because what happens to them happens to everybody on them."""

from collections.abc import Callable, Iterator

import pytest
from servers import ServerProcess, Watched, binaries
from studio import Eyes

KINDS = [kind for kind in ("redis", "valkey") if kind in binaries()]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, make_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server that keeps what it acknowledged."""
    return make_server(kind, persistent=True)


@pytest.fixture
def eyes(server: ServerProcess, namespace: str) -> Iterator[Eyes]:
    """What lies on that server, seen past the bus and past any proxy."""
    eyes = Eyes(server.url, namespace)
    yield eyes
    eyes.close()


@pytest.fixture
def watched(kind: str) -> Iterator[Watched]:
    """A master and a replica under three sentinels."""
    found = Watched(kind)
    try:
        yield found.start()
    finally:
        found.remove()
