"""The public surface, pinned: a new public name is a visible line here."""

import subprocess
import sys

import pytest


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in sys.modules after running `statement` in a new interpreter."""
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "heavy", ["trio", "structlog", "redis", "asyncio", "hiredis", "numpy", "fakeredis", "opentelemetry"]
)
def test_the_producers_door_is_light(heavy: str) -> None:
    """The names of `canvasbus` load nothing that a training job would not have loaded anyway."""
    assert heavy not in loaded_by("from canvasbus import *")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/master"])
def test_a_producer_does_without_trio(url: str) -> None:
    """A training job that publishes, connection and all, pays for nothing that workers need."""
    publish = f"from canvasbus import Producer; Producer({url!r}, flush_timeout=0)._sender._server.connect_blocking()"
    loaded = loaded_by(f"import contextlib\nwith contextlib.suppress(Exception): {publish}\nimport sys")
    assert "redis" in loaded and not {"trio", "structlog"} & loaded


def test_the_door_to_cloudevents_is_light_too() -> None:
    """A web server that only receives events loads nothing that consumes them."""
    loaded = loaded_by("import canvasbus; canvasbus.cloudevents.from_http")
    assert not {"trio", "structlog", "redis", "numpy", "fakeredis"} & loaded


def test_the_door_itself_loads_nothing() -> None:
    """pytest imports `canvasbus` for everybody who has it installed: what is behind the door comes when it is asked for."""
    assert "msgspec" not in loaded_by("import canvasbus")
    assert "msgspec" in loaded_by("from canvasbus import Event")


def test_other_doors_are_reached_through_the_first() -> None:
    """`import canvasbus` and then canvasbus.errors or canvasbus.bus; a name that nobody has is an AttributeError."""
    assert "trio" in loaded_by("import canvasbus; canvasbus.bus.EventBus")
    with pytest.raises(AttributeError, match="'canvasbus' has no attribute 'Prodcuer'"):
        import canvasbus

        canvasbus.Prodcuer  # type: ignore[attr-defined]


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
        "traceparent",
    }


def test_names_of_the_other_doors() -> None:
    """What `canvasbus.bus`, `canvasbus.store`, `canvasbus.testing` and `canvasbus.worker` export."""
    import canvasbus.bus
    import canvasbus.store
    import canvasbus.testing
    import canvasbus.worker

    assert set(canvasbus.bus.__all__) == {"PER_INSTANCE", "EventBus", "Retention"}
    assert set(canvasbus.store.__all__) == {"Argument", "Reply", "ReplyError", "Store", "TrioStore", "check", "place"}
    assert set(canvasbus.testing.__all__) == {
        "Attempt",
        "DeadLetter",
        "NotSettled",
        "Published",
        "ServerProcess",
        "TestBus",
        "in_virtual_time",
        "installed_servers",
    }
    assert set(canvasbus.worker.__all__) == {
        "PER_INSTANCE",
        "NEVER",
        "Backoff",
        "BatchFailure",
        "Breaker",
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
        "section",
        "serve",
        "trace",
    }
