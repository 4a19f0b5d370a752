"""The public surface, pinned: a new public name is a visible line here."""

import subprocess
import sys

import pytest


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in sys.modules after running `statement` in a new interpreter."""
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("heavy", ["trio", "structlog", "redis", "asyncio", "hiredis", "numpy", "fakeredis"])
def test_the_producers_door_is_light(heavy: str) -> None:
    """`import canvasbus` loads nothing that a training job would not have loaded anyway."""
    assert heavy not in loaded_by("import canvasbus")


def test_names_of_the_producers_door() -> None:
    """What `canvasbus` exports."""
    import canvasbus

    assert set(canvasbus.__all__) == {
        "ALLOW_NON_FINITE",
        "AwareDatetime",
        "BufferFull",
        "CanvasbusError",
        "ConfigError",
        "ContractError",
        "DecodeError",
        "EncodeError",
        "Event",
        "Producer",
        "Refused",
        "StreamFull",
        "TransportError",
        "Unavailable",
        "correlation",
        "event",
    }


def test_names_of_the_other_doors() -> None:
    """What `canvasbus.bus` and `canvasbus.worker` export."""
    import canvasbus.bus
    import canvasbus.worker

    assert set(canvasbus.bus.__all__) == {"PER_INSTANCE", "EventBus"}
    assert set(canvasbus.worker.__all__) == {
        "PER_INSTANCE",
        "NEVER",
        "Backoff",
        "BatchFailure",
        "Cancel",
        "Context",
        "Handle",
        "HandlerTimeout",
        "Later",
        "Parts",
        "Middleware",
        "Reject",
        "RetryLater",
        "State",
        "Worker",
        "gate",
        "log_context",
        "log_runs",
        "max_age",
        "rate_limit",
        "run",
        "serve",
    }
