"""The folders of a model's runs: what is written down of each, and which may go. Seconds since 1970."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import msgspec
import structlog

from canvasbus import clock
from canvasbus_workers.retrain.launchers import records
from canvasbus_workers.retrain.launchers.protocol import Order
from canvasbus_workers.retrain.settings import Policy

AFTERWARDS = 60.0
"""Seconds after its end in which whoever followed a run may still read what it has left."""
GONE = ".gone."
"""What a folder is called first that is removed: one that is removed halfway is known again."""


def about(order: Order, policy: Policy) -> dict[str, Any]:
    """What a run's record says for `prune`."""
    return {"model_name": order.model_name, "ordered": order.ordered, "timeout": policy.timeout_seconds}


def prune(order: Order, policy: Policy) -> int:
    """Remove the folders of a model's runs, but the newest `keep_runs`. Returns how many.

    Never one that goes on; nor one whose order may be given again: without its record it would be run a second time.
    """
    root, runs, now, count = Path(policy.folder).absolute(), [], clock.time(), 0
    for folder in root.iterdir():
        if folder.name.startswith(GONE):
            count += _remove(folder)
            continue
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):  # of somebody else
            record = records.load(folder / "order.json") or records.load(folder / "sent.json") or {}
            if record.get("model_name") == order.model_name:
                runs.append((float(record["ordered"]), folder, float(record["timeout"])))
    for ordered, folder, timeout in sorted(runs)[: -policy.keep_runs]:
        if now > ordered + timeout and _is_over(folder, now):
            gone = folder.with_name(f"{GONE}{folder.name}")
            with contextlib.suppress(OSError):  # another worker was faster
                folder.rename(gone)
                count += _remove(gone)
    return count


def _is_over(folder: Path, now: float) -> bool:
    """It has ended, or runs elsewhere."""
    if not (folder / "order.json").exists():
        return True
    with contextlib.suppress(FileNotFoundError):
        return (folder / "ended.json").stat().st_mtime < now - AFTERWARDS
    return False


def _remove(folder: Path) -> bool:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        log = structlog.get_logger("canvasbus.retrain")
        log.warning("the folder of an old run cannot be removed", folder=str(folder), why=error.strerror)
        return False
    return True
