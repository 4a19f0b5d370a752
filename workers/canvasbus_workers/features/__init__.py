"""The feature store: rows that models and monitors compute, where model servers and training jobs find them.

    features.computed ─┐
                       ├─► FeatureRow ─► every sink: the online store on Redis, the offline log in SQLite, Feast
    window.evaluated  ─┘   (rows)

Model servers read with `FeatureReader`, training jobs with `OfflineLog`; both load no trio. `worker` is loaded when it is
asked for.
"""

from typing import TYPE_CHECKING, Any

from canvasbus_workers.features.offline import OfflineLog
from canvasbus_workers.features.reader import FeatureReader, Features

if TYPE_CHECKING:
    from canvasbus_workers.features.handlers import worker

__all__ = ["FeatureReader", "Features", "OfflineLog", "worker"]


def __getattr__(name: str) -> Any:
    if name == "worker":
        from canvasbus_workers.features import handlers

        return handlers.worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
