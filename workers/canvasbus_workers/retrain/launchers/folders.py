"""The folders of a model's runs: what is written down of each, when it began, and which may go. Seconds since 1970."""

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
    """What a run's record says for `sought` and `prune`."""
    return {
        "model_name": order.model_name,
        "run_id": order.run_id,
        "correlation_id": order.correlation_id,
        "ordered": order.ordered,
        "timeout": policy.timeout_seconds,
    }


def began(folder: Path) -> float | None:
    """When the run of this folder was started here or sent elsewhere, seconds since 1970; None: it was not."""
    if started := records.load(folder / "started.json"):
        return float(started["at"])
    sent = records.load(folder / "sent.json") or {}
    return float(sent.get("at", sent["ordered"])) if sent.get("sent") or "external_id" in sent else None


def sought(policy: Policy, run_id: str, correlation_id: str) -> float | None:
    """As `began`, of a run whose order's key is not known."""
    root = Path(policy.folder).absolute()
    for folder in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):  # of somebody else
            record = records.load(folder / "order.json") or records.load(folder / "sent.json") or {}
            if (record.get("run_id"), record.get("correlation_id")) == (run_id, correlation_id):
                return began(folder)
    return None


def prune(order: Order, policy: Policy) -> int:
    """Remove the folders of a model's runs, but the newest `keep_runs`. Returns how many.

    Never one that goes on; nor one whose order may be given again: without its record it would be run a second time.
    """
    root, runs, now, count = Path(policy.folder).absolute(), [], clock.time(), 0
    for folder in root.iterdir():
        if folder.name.startswith(GONE):
            count += _remove(folder)
            continue
        with contextlib.suppress(OSError, KeyError, msgspec.DecodeError, UnicodeDecodeError):  # of somebody else
            record = records.load(folder / "order.json") or records.load(folder / "sent.json") or {}
            if record.get("model_name") == order.model_name:
                runs.append((float(record["ordered"]), folder, float(record["timeout"])))
    for ordered, folder, timeout in sorted(runs)[: -policy.keep_runs]:
        if now > ordered + timeout and _is_over(folder, timeout, now):
            gone = folder.with_name(f"{GONE}{folder.name}")
            with contextlib.suppress(OSError):  # another worker was faster
                folder.rename(gone)
                count += _remove(gone)
    return count


def _is_over(folder: Path, timeout: float, now: float) -> bool:
    """It has ended; elsewhere its time is over, counted from when it was sent."""
    if not (folder / "order.json").exists():
        sent = began(folder)
        return sent is None or now > sent + timeout + AFTERWARDS
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
