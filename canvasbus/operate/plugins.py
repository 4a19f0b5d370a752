"""Workers by name: the entry-point group `canvasbus.workers`, and `module:attribute` for those that nobody installed.

    [project.entry-points."canvasbus.workers"]
    drift = "canvasbus_workers.drift:worker"

Listing imports nothing, since a worker may need half a gigabyte of libraries. Whatever goes wrong when one is loaded
(no such name, the import fails, it is not a Worker) is one ConfigError line: the person who reads it typed a name into
a compose file, and the traceback of an import machinery tells them nothing. The cause stays attached.
"""

import difflib
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import canvasbus
from canvasbus.errors import ConfigError, ContractError

if TYPE_CHECKING:
    from canvasbus.consume.handlers import Worker

GROUP = "canvasbus.workers"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One registered worker, not imported."""

    name: str
    target: str
    """module:attribute"""
    distribution: str
    """The installed package that registers it, with its version."""


def installed() -> list[Plugin]:
    """All registered workers, sorted by name. Raises ConfigError when a name is registered twice."""
    return [Plugin(name, point.value, _owner(point)) for name, point in sorted(_registered().items())]


def load(target: str) -> "Worker":
    """The worker behind an entry-point name or a `module:attribute`.

    Raises ConfigError, in one line, when there is none, when it cannot be imported or is no Worker.
    """
    module, colon, attribute = target.partition(":")
    if colon:
        wanted_by = f"worker target {target!r}"
        return _worker(wanted_by, import_module(module, wanted_by), attribute)
    points = _registered()
    point = points.get(target)
    if point is None:
        raise ConfigError(f"no worker {target!r} is installed{_known(target, points)}{_or_module(target)}")
    try:
        return _worker(f"worker {target!r}", import_module(point.module, f"worker {target!r}"), point.attr or "worker")
    except ConfigError as error:
        missing = error.__cause__
        if (
            isinstance(missing, ModuleNotFoundError)
            and missing.name
            and not _contains(missing.name, point.module)
            and target in _extras(point)
        ):
            raise ConfigError(
                f"worker {target!r} needs {(missing.name or '').partition('.')[0]}, which is not installed: "
                f"pip install '{_package(point)}[{target}]'"
            ) from missing
        raise


def misspelt(tables: Iterable[str], names: Iterable[str]) -> list[tuple[str, str]]:
    """Of the tables [workers.X] those that nobody here reads, and which of the workers `names` each of them may mean."""
    names = list(names)
    known = {*names, *_registered()}
    pairs = ((table, difflib.get_close_matches(table, names, n=1)) for table in tables if table not in known)
    return [(table, near[0]) for table, near in pairs if near]


def beside(name: str, part: str) -> ModuleType:
    """The module `part` of an installed worker, for the commands that are about it. Raises ConfigError."""
    point = _registered().get(name)
    if point is None:
        raise ConfigError(f"no worker {name!r} is installed here")
    return import_module(f"{point.module}.{part}", f"worker {name!r}")


def import_module(name: str, wanted_by: str) -> ModuleType:
    """Import a module of the user, from the working directory too, as `python -m` would find it.

    Raises ConfigError that begins with `wanted_by` and names the line that failed.
    """
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{wanted_by}: {name!r} is not a module name; write {_form(name, wanted_by)}")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # user code: whatever it raises, the answer is one line
        raise _told(error, name, wanted_by) from error


def _told(error: BaseException, name: str, wanted_by: str) -> ConfigError:
    """What importing the module `name` raised, in one line."""
    if isinstance(error, ModuleNotFoundError):
        if error.name and _contains(error.name, name):
            return ConfigError(f"{wanted_by}: there is no module {error.name}{_near_module(error.name)}")
        return ConfigError(f"{wanted_by}: {name} needs the module {error.name}, which is not installed{_place(error)}")
    said = " ".join(str(error).split())
    return ConfigError(
        f"{wanted_by}: importing {name} failed: {type(error).__name__}{': ' if said else ''}{said}{_place(error)}"
    )


def _contains(package: str, module: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _registered() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other is not point:
            raise ConfigError(
                f"the worker name {point.name!r} is registered twice: {other.value} by {_owner(other)} and "
                f"{point.value} by {_owner(point)}; uninstall one, or run it as module:attribute"
            )
    return found


def _worker(wanted_by: str, module: ModuleType, path: str) -> "Worker":
    from canvasbus.consume.handlers import Worker  # here: commands that only look at a bus need not load trio for it

    found: Any = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            workers = [name for name, value in vars(module).items() if isinstance(value, Worker)]
            raise ConfigError(
                f"{wanted_by}: {module.__name__} has no {path!r}"
                + (f"; its workers: {', '.join(workers)}" if workers else "; it declares no Worker")
            ) from None
        except (Exception, SystemExit) as error:  # a package may load its worker when it is asked for
            raise _told(error, module.__name__, wanted_by) from error
    if not isinstance(found, Worker):
        raise ConfigError(f"{wanted_by} is of type {type(found).__name__}, not a canvasbus Worker")
    return found


def _known(name: str, points: Iterable[str]) -> str:
    names = sorted(points)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; installed: {', '.join(names)}" if names else "; no worker is installed here"


def _or_module(name: str) -> str:
    module = name.removeprefix("./").removesuffix(".py").replace("/", ".")
    sound = all(part.isidentifier() for part in module.split("."))
    return f" (a module is written {module}:worker)" if sound else ""


def _form(name: str, wanted_by: str) -> str:
    """How a module is written there."""
    if wanted_by.startswith("worker target"):
        return "module:attribute, like my_workers:worker"
    module = name.partition(":")[0]
    return module if module.isidentifier() else "it as `import` does, like my_events or studio.my_events"


def _near_module(name: str) -> str:
    parent, _, last = name.rpartition(".")
    if parent and last == "py":
        return f"; did you mean {parent}?"
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else [str(Path.cwd())]
    siblings = [found.name for found in pkgutil.iter_modules(path)] if path else []
    near = difflib.get_close_matches(last, siblings, n=1)
    return f"; did you mean {parent + '.' if parent else ''}{near[0]}?" if near else ""


def _place(error: BaseException) -> str:
    """Where an import failed: the last line outside the import machinery."""
    if isinstance(error, SyntaxError):
        return ""  # its text says so already
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    inner = [f for f in frames if f.filename != __file__]
    if isinstance(error, ContractError):  # whose declaration it was, not where it was found out
        ours = str(Path(canvasbus.__file__).parent)
        inner = [f for f in inner if not f.filename.startswith(ours)] or inner
    return f" ({inner[-1].filename}, line {inner[-1].lineno})" if inner else ""


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "canvasbus"


def _extras(point: EntryPoint) -> list[str]:
    return point.dist.metadata.get_all("Provides-Extra") or [] if point.dist else []
