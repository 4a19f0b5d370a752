"""canvasbus-worker --reload: which source files have changed.

Polled by modification time and size. Two looks a second at a thousand files cost 1 % of a core, work on every file
system, in containers too, and need no library; watchfiles would bring a Rust extension and anyio for it.
"""

import importlib.util
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from canvasbus.errors import ConfigError

EVERY_SECONDS = 0.5
MOST_FILES = 5000
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}

Seen = dict[Path, tuple[int, int]]


class Sources:
    """The Python files below some folders, and `canvasbus.toml` in the first. Raises ConfigError when there are too
    many, as in a home directory."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._known = self._last = self._look(MOST_FILES)
        self._next = 0.0

    def changed(self, now: float) -> list[Path]:
        """The files that were changed, made or removed since the last answer; none while somebody still writes, or
        before it is time to look again."""
        if now < self._next:
            return []
        self._next = now + EVERY_SECONDS
        before, self._last = self._last, self._look()
        if self._last != before or self._last == self._known:
            return []
        known, self._known = self._known, self._last
        return sorted(path for path in {*known, *self._last} if known.get(path) != self._last.get(path))

    def _look(self, most: float = math.inf) -> Seen:
        found: Seen = {}
        _note(self._folders[0] / "canvasbus.toml", found)
        for folder in self._folders:
            for place, folders, files in os.walk(folder):
                folders[:] = [name for name in folders if name[0] != "." and name not in _SKIPPED]
                if "pyvenv.cfg" in files:
                    folders.clear()
                    continue
                for name in files:
                    if name.endswith(".py"):
                        _note(Path(place, name), found)
                if len(found) > most:
                    raise ConfigError(
                        f"--reload: there are more than {most:,} Python files below {folder}; start it in your "
                        "project's folder"
                    )
        return found

    def __repr__(self) -> str:
        return f"<Sources of {len(self._known)} files below {', '.join(map(str, self._folders))}>"


def _note(path: Path, found: Seen) -> None:
    try:
        facts = path.stat()
    except OSError:  # removed while we looked
        return
    found[path] = (facts.st_mtime_ns, facts.st_size)


def folders_of(modules: Iterable[str]) -> list[Path]:
    """The working directory, and the folders of the packages that these modules belong to; nothing is imported."""
    here = Path.cwd()
    found = [here]
    for module in modules:
        try:
            spec = importlib.util.find_spec(module.partition(".")[0])
        except (ImportError, ValueError):
            continue  # whoever imports it says so
        for place in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(place).resolve()
            if not any(path.is_relative_to(folder) for folder in found):
                found.append(path)
    return found


def syntax_error(paths: Iterable[Path]) -> str | None:
    """The first syntax error in these files, in a line for people; None: there is none."""
    for path in paths:
        if path.suffix != ".py":
            continue
        try:
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except SyntaxError as error:
            return f"{error.msg} ({path}, line {error.lineno})"
        except (OSError, ValueError):  # gone again; or bytes that are no source, which the import tells
            continue
    return None
