"""Fixtures of the attacks: eyes on a memory server in virtual time."""

import pytest
from studio import Eyes

from canvasbus.transport.memory import MemoryServer


@pytest.fixture
def eyes(memory: MemoryServer, namespace: str) -> Eyes:
    """What lies on the memory server."""
    return Eyes(memory, namespace)
