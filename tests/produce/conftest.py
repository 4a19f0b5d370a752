"""Fixtures of the producing tests."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from produce.driver import Driver
from produce.programs import Program
from studio import Eyes
from waiting import until

from canvasbus.transport.memory import MemoryServer, named


@pytest.fixture
def soon() -> Callable[..., Any]:
    """`until` for tests without trio."""

    def soon(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
        return trio.run(until, condition, timeout)

    return soon


@pytest.fixture
def eyes(any_url: str, namespace: str) -> Iterator[Eyes]:
    """What lies on the server behind `any_url`."""
    eyes = Eyes(any_url, namespace)
    yield eyes
    eyes.close()


@pytest.fixture
def memory(namespace: str) -> MemoryServer:
    """The server behind memory://NAMESPACE, which can be switched off and on."""
    return named(namespace)


@pytest.fixture
def away(memory: MemoryServer) -> MemoryServer:
    """A memory server that is switched off."""
    memory.set_connected(False)
    return memory


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the producer's logger has said so far, from warnings upwards."""
    caplog.set_level(logging.INFO, "canvasbus.producer")

    def warnings() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name == "canvasbus.producer" and record.levelno >= logging.WARNING
        ]

    return warnings


@pytest.fixture
def drivers() -> Iterator[Callable[[str, str], Driver]]:
    """drivers(url, namespace): one more Driver."""
    with ExitStack() as stack:

        def make(url: str, namespace: str) -> Driver:
            driver = Driver(url, namespace)
            stack.callback(driver.close)
            return driver

        yield make


@pytest.fixture
def program(tmp_path: Path, server_url: str, namespace: str) -> Program:
    """A script that is run as a program of its own."""
    return Program(tmp_path, server_url, namespace)
