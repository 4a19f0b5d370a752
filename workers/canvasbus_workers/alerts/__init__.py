"""Incidents, not storms: signals of a model become one incident, and the right people are told, once.

    signals     events → what rings, and what is over          incidents   one open incident a group
    desk        whom to tell what, and whom not                 cases       one incident, and what each was told of it
    matching    patterns of silences, routes, inhibitions       notification   what a destination is given
    bucket      how often a destination may be told         edge, destinations   the outside

`worker` is loaded when it is asked for, so that what the doctor imports brings no trio with it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canvasbus_workers.alerts.handlers import worker

__all__ = ["worker"]


def __getattr__(name: str) -> Any:
    if name == "worker":
        from canvasbus_workers.alerts import handlers

        return handlers.worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
