"""Fixtures of the transport's tests."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import Link
from canvasbus.transport.resp import commands

Ask = Callable[..., Any]


@pytest.fixture(params=["trio", "threads"])
async def ask(request: pytest.FixtureRequest) -> AsyncIterator[Ask]:
    """ask(url, *command): open a connection of either kind and return the reply."""

    async def over_trio(url: str, *args: bytes | str | float) -> Any:
        link = Link(open_server(url))
        try:
            return (await link.request(commands(args)))[0]
        finally:
            await link.aclose()

    async def over_threads(url: str, *args: bytes | str | float) -> Any:
        def call() -> Any:
            link = BlockingLink(open_server(url))
            try:
                return link.call(*args)
            finally:
                link.close()

        return await trio.to_thread.run_sync(call)

    yield over_trio if request.param == "trio" else over_threads
