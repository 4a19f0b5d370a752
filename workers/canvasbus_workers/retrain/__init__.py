"""Decides when a model is trained anew, has somebody do it, and lets only the newest run promote.

`worker` is loaded when it is asked for, so that what the doctor imports brings no trio with it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canvasbus_workers.retrain.handlers import worker

__all__ = ["worker"]


def __getattr__(name: str) -> Any:
    if name == "worker":
        from canvasbus_workers.retrain import handlers

        return handlers.worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
