"""A small studio for the tests of the test kit."""

import pytest
import trio.testing

CLOCKS = {"by hand": lambda: trio.testing.MockClock(), "autojump": lambda: trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture(params=CLOCKS)
def any_clock(request: pytest.FixtureRequest) -> trio.testing.MockClock:
    """A MockClock that the test must move, and one that moves by itself."""
    return CLOCKS[request.param]()
