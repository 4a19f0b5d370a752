"""canvasbus: the event bus of a studio that serves generative models.

This is the producer's door. It loads neither trio nor structlog, and redis only when a Producer is made.

    canvasbus           Producer, Event, event, errors          training jobs, model servers, notebooks
    canvasbus.bus       EventBus                                trio programs; publish and consume in one process
    canvasbus.worker    Worker, Context, Backoff, run           handlers
    canvasbus.events    the domain's vocabulary

Folder = layer; a folder imports only from those below it (tests/test_layers.py):

    cli · operate · bus.py worker.py · consume · produce · transport · wire · events · contract · config log clock · errors
"""

from canvasbus.contract.event import AwareDatetime, Event, correlation
from canvasbus.contract.registry import ALLOW_NON_FINITE, event
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
]

__version__ = "0.0.1"
