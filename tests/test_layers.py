"""The folder listing is the architecture: imports point down."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up. A module may import modules of lower layers, and of its own layer only inside its own folder.
LAYERS = (
    ("errors", "checks", "clock", "ids", "choices"),
    ("log", "config"),
    ("signals",),
    ("contract",),
    ("events",),
    ("wire",),
    ("transport",),
    ("produce",),
    ("consume",),
    ("__init__", "bus", "cloudevents", "store", "worker"),
    ("operate",),
    ("cli", "testing"),
    ("__main__", "pytest_plugin"),
)
DOORS = {
    "canvasbus",
    "canvasbus.bus",
    "canvasbus.worker",
    "canvasbus.cloudevents",
    "canvasbus.store",  # what a worker keeps on the server besides the bus
    "canvasbus.events",
    "canvasbus.errors",
    "canvasbus.testing",
    "canvasbus.clock",  # the only source of time, for workers too
    "canvasbus.config",  # how tables of settings are read
    "canvasbus.contract.globs",  # what a star means, the same everywhere
}
SHARED_BY_WORKERS = {"artifacts", "monitoring", "naming", "outside", "patterns", "tagging"}
MACHINERY = {"wire", "transport", "produce", "consume", "operate", "bus", "worker"}

# An exception, with its reason.
ALLOWED = {
    ("canvasbus.worker", "canvasbus.bus"): "run() is EventBus with workers on it",
    (
        "canvasbus.cli.cast",
        "canvasbus.testing.process",
    ): "where nothing can be killed, the demo kills as the test kit does",
    ("canvasbus.cli.cast", "canvasbus.testing.faults"): "the same",
}


def level(module: str) -> int:
    """The layer of a canvasbus module."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "__init__"
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"{module} is in no layer: say in tests/test_layers.py where it belongs")


def imports(source: str) -> Iterator[str]:
    """Every module that the source imports, also inside functions, but not for type checkers only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "canvasbus":
                for alias in node.names:
                    is_module = (ROOT / "canvasbus" / f"{alias.name}.py").exists() or (
                        ROOT / "canvasbus" / alias.name
                    ).is_dir()
                    yield f"canvasbus.{alias.name}" if is_module else "canvasbus"
            else:
                yield node.module


def violations(module: str, source: str) -> list[str]:
    """What is wrong with the imports of one module."""
    found = []
    for target in imports(source):
        if module.startswith("canvasbus_workers."):
            worker = module.split(".")[1]
            if target.split(".")[0] == "canvasbus" and (target not in DOORS or worker == "monitoring"):
                found.append(f"{module} imports {target}, which is no door")
            elif target.startswith("canvasbus_workers.") and target.split(".")[1] not in {worker, *SHARED_BY_WORKERS}:
                found.append(f"{module} imports the worker {target}")
        elif target.split(".")[0] == "canvasbus_workers":
            found.append(f"{module} imports {target}: workers are found by entry point")
        elif target.split(".")[0] == "canvasbus" and (module, target) not in ALLOWED:
            mine, theirs = level(module), level(target)
            same_room = module.split(".")[1:2] == target.split(".")[1:2]
            if theirs > mine or (theirs == mine and not same_room and mine > 1):
                found.append(f"{module} imports {target}, which is not below it")
            elif target.split(".")[1:2] == ["events"] and module.split(".")[1] in MACHINERY:
                found.append(f"{module} imports {target}: the bus does not know the domain")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for base, name in ((ROOT, "canvasbus"), (ROOT / "workers", "canvasbus_workers")):
        for path in sorted((base / name).rglob("*.py")):
            parts = list(path.relative_to(base).with_suffix("").parts)
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts), path))
    return found


def test_imports_point_down() -> None:
    """No module imports from a layer above it, no machinery knows the domain, no worker knows another, and the library of
    monitoring knows no bus."""
    wrong = [line for module, path in modules() for line in violations(module, path.read_text())]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("canvasbus.wire.codec", "from canvasbus.transport.link import Link"),
        ("canvasbus.consume.settle", "from canvasbus.events import DriftDetected"),
        ("canvasbus.consume.settle", "def f():\n    import canvasbus.cli.main"),
        ("canvasbus.operate.groups", "import canvasbus_workers.drift"),
        ("canvasbus_workers.drift.handlers", "from canvasbus.consume.handlers import Worker"),
        ("canvasbus_workers.drift.handlers", "from canvasbus_workers.alerts import worker"),
        ("canvasbus_workers.monitoring.monitor", "from canvasbus import Event"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    """Upward, sideways and domain imports are each caught."""
    assert violations(module, source)


def test_the_largest_folder_has_a_map_of_all_that_is_in_it() -> None:
    """Whoever opens `consume` finds each file of it in the docstring, and none that is gone."""
    folder = ROOT / "canvasbus" / "consume"
    there = {path.stem for path in folder.iterdir() if not path.name.startswith("__")}
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert there - set(re.findall(r"\w+", docstring)) == set()
    heads = {line.split()[0] for line in docstring.splitlines() if line.startswith("  ")}
    assert {head.strip(",") for head in heads} <= there


def test_workers_folder_is_no_package() -> None:
    """workers/__init__.py would give the workers two import names."""
    assert not (ROOT / "workers" / "__init__.py").exists()
