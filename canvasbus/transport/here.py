"""Where the worker whose code is running has its bus: what a lifespan may ask for, since it takes no arguments."""

from contextvars import ContextVar
from dataclasses import dataclass

from canvasbus.transport.server import Server


@dataclass(frozen=True, slots=True)
class Place:
    """A server and the namespace of the bus on it."""

    server: Server
    namespace: str


PLACE: ContextVar[Place | None] = ContextVar("canvasbus_place", default=None)
"""Set by the runner of a worker, for its lifespan and handlers; threads that trio starts have it, too."""
