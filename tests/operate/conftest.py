"""Fixtures of the operating tests."""

from collections.abc import Iterator

import pytest
from operate.doctoring import MakeServer, Making
from studio import Eyes

from canvasbus.transport.blocking import BlockingLink


@pytest.fixture
def link(eyes: Eyes) -> Iterator[BlockingLink]:
    """A link of one's own to the same server."""
    link = BlockingLink(eyes.server)
    yield link
    link.close()


@pytest.fixture(params=["redis", "valkey"])
def making(request: pytest.FixtureRequest, make_server: MakeServer) -> Iterator[Making]:
    """Servers in a certain state, and commands to bring them there: url, eyes = making("--timeout", "5")."""
    making = Making(make_server, request.param)
    yield making
    making.close()
