"""Small files that survive what happens to processes: written whole or not at all, and on the disk before anything goes on."""

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec


def claim(path: Path, value: Any) -> bool:
    """Write a file that is not there yet. False: it is, and stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    spare = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        _write(spare, value)
        os.link(spare, path)  # the one step that says no where somebody was faster
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            spare.unlink()
    _sync(path.parent)
    return True


def store(path: Path, value: Any) -> None:
    """Write a file, or replace it."""
    spare = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    _write(spare, value)
    spare.replace(path)
    _sync(path.parent)


def load(path: Path) -> dict[str, Any] | None:
    """What is in it; None: it is not there."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return None


def _write(path: Path, value: Any) -> None:
    with path.open("xb") as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
