"""canvasbus: the event bus of a studio that serves generative models.

This is the producer's door. It loads neither trio nor structlog, redis only when a Producer is made, and all the rest
when a name is first asked for: `import canvasbus` alone costs under a millisecond, since pytest does it for everybody
who has canvasbus installed (`pytest_plugin`).

    canvasbus               Producer, Event, event, errors          training jobs, model servers, notebooks
    canvasbus.bus           EventBus                                trio programs; publish and consume in one process
    canvasbus.worker        Worker, Context, Backoff, run           handlers
    canvasbus.events        the domain's vocabulary
    canvasbus.cloudevents   to and from CloudEvents, for webhooks and other brokers
    canvasbus.store         the server itself, for what a worker keeps beside the bus
    canvasbus.testing       TestBus, for the tests of those who write handlers

Folder = layer; a folder imports only from those below it (tests/test_layers.py):

    pytest_plugin.py · cli · testing · operate · bus.py worker.py cloudevents.py store.py · consume · produce · transport · wire · events · contract · config log clock · errors
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canvasbus.contract.event import AwareDatetime, Event, correlation
    from canvasbus.contract.finite import ALLOW_NON_FINITE
    from canvasbus.contract.registry import event
    from canvasbus.errors import (
        BufferFull,
        CanvasbusError,
        ConfigError,
        ContractError,
        DecodeError,
        EncodeError,
        Refused,
        StreamFull,
        TransportError,
        Unavailable,
    )
    from canvasbus.produce.producer import Producer
    from canvasbus.wire.traceparent import traceparent

__all__ = [
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
]

__version__ = "0.0.1"

_HOMES = {
    "canvasbus.contract.event": ("AwareDatetime", "Event", "correlation"),
    "canvasbus.contract.finite": ("ALLOW_NON_FINITE",),
    "canvasbus.contract.registry": ("event",),
    "canvasbus.produce.producer": ("Producer",),
    "canvasbus.wire.traceparent": ("traceparent",),
}
_DOORS = {"bus", "cloudevents", "errors", "events", "store", "testing", "worker"}
_home_of = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = getattr(import_module(_home_of.get(name, "canvasbus.errors")), name)
        globals()[name] = value
        return value
    if name in _DOORS:
        return import_module(f"canvasbus.{name}")
    raise AttributeError(f"module 'canvasbus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_DOORS})
