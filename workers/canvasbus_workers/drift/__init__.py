"""Watches what models see and say: windows of observations against references, late labels against what was promised.

    observations.recorded ─► counted against each reference, put into the open window ─► full, or its time is up:
        window.evaluated · drift.detected · drift.resolved · data_quality.violated
    labels.recorded ─► joined by item id ─► metric.reported · metric.threshold_breached · metric.recovered

Its pure part is a library of its own, `canvasbus_workers.monitoring`, and what makes states and events of its verdicts:
`book`, `telling` (windows), `judging` (labels), `answers`. `handlers` works on windows and `labels` on labels; both reach
what the group remembers through `states`.
Model servers need neither: `from canvasbus_workers.drift.record import observations` makes events of arrays.

`worker` is loaded when it is asked for, so that what model servers and the doctor import brings no trio with it.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canvasbus_workers.drift.handlers import worker

__all__ = ["worker"]


def __getattr__(name: str) -> Any:
    if name == "worker":
        for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            # Read when numpy is loaded: products of 64 rows gain nothing by BLAS threads, and those of several workers on
            # one machine wait for each other (measured: 30 s of tests took 220).
            os.environ.setdefault(threads, "1")
        from canvasbus_workers.drift import handlers

        return handlers.worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
