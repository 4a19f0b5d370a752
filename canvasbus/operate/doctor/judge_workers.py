"""What canvasbus.toml names of Python: `modules`, and the tables [workers.NAME]: does a worker of that name exist, does it
understand them, and has anybody started it?

A worker that has settings declares them in a module `settings` beside its own, as a msgspec Struct named `Settings`:
`canvasbus_workers.drift.settings:Settings`. The worker itself is not imported for this. Where settings name something
outside of the table, such as a file of rules, the module has a function `check(settings)` that looks at it, says in a few
words what it found, and raises ConfigError.
"""

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from shlex import quote
from types import ModuleType

from canvasbus.config import Loaded, section
from canvasbus.errors import ConfigError
from canvasbus.operate import plugins
from canvasbus.operate.doctor.finding import Finding
from canvasbus.operate.doctor.namespace import NamespaceFacts


def judge_modules(loaded: Loaded) -> Iterator[Finding]:
    """A finding for each of `modules` that cannot be imported, and one for those that can."""
    found, origin = [], loaded.origins["modules"]
    for name in loaded.settings.modules:
        try:
            plugins.import_module(name, "modules")
        except ConfigError as error:
            yield Finding(
                "error",
                "modules",
                f"{error} (from {origin}, looked for in the working directory, too)",
                "mend the name, or install it: no worker starts like this, and its event types are strangers",
            )
        else:
            found.append(name)
    if found:
        yield Finding("ok", "modules", f"{', '.join(found)} from {origin}")


def judge_workers(loaded: Loaded) -> Iterator[Finding]:
    """A finding for each table."""
    targets = {plugin.name: plugin.target.partition(":")[0] for plugin in plugins.installed()}
    for name in loaded.workers:
        check = f"workers.{name}"
        if name not in targets:
            near = plugins.misspelt([name], targets)
            known = ", ".join(sorted(targets)) or "none"
            yield Finding(
                "error",
                check,
                f"no worker {name!r} is installed here; "
                + (f"did you mean {near[0][1]}?" if near else f"there are: {known}"),
                "mend the name, or remove the table",
            )
            continue
        try:
            module = _settings(targets[name])
            type_ = getattr(module, "Settings", None)
            if type_ is None:
                yield Finding("error", check, f"the worker {name!r} has no settings of its own", "remove the table")
                continue
            check_ = getattr(module, "check", None)
            settings = section(name, type_, loaded)
            more = f"; {check_(settings)}" if check_ else ""
        except ConfigError as error:
            yield Finding("error", check, str(error), "mend it: the worker does not start like this")
        except ImportError as error:
            yield Finding(
                "warning", check, f"its settings cannot be looked at: {error}", f"pip install 'canvasbus[{name}]'"
            )
        else:
            yield Finding(
                "ok", check, f"{len(loaded.workers[name])} settings in {loaded.file}, all of them known{more}"
            )


def judge_started(tables: Iterable[str], facts: NamespaceFacts) -> Iterator[Finding]:
    """A finding for each table whose worker has never been in the namespace."""
    if "HGETALL" in facts.refused or not facts.complete:
        return
    known = {name.decode(errors="replace").partition("@")[0] for name in facts.groups}  # x@…: a group of each process
    for name in tables:
        if name not in known:
            yield Finding(
                "warning",
                "group",
                f"[workers.{name}] has settings, and no worker of that name has ever been in the namespace "
                f"{facts.namespace!r}: nobody does what they say",
                f"start it: `canvasbus-worker {quote(name)}`; or remove the table",
                group=name,
            )


def _settings(module: str) -> ModuleType | None:
    if importlib.util.find_spec(f"{module}.settings") is None:
        return None
    return importlib.import_module(f"{module}.settings")
