"""Workers by name: whatever goes wrong is one line that says what to type instead."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from canvasbus.errors import ConfigError
from canvasbus.operate import plugins
from canvasbus.worker import Worker


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with modules of the user, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("studio_"):
            del sys.modules[name]


def test_installed_workers_are_listed_without_importing_them() -> None:
    """Name, target and distribution of each; the workers of this project are among them."""
    found = {plugin.name: plugin for plugin in plugins.installed()}
    assert {"drift", "metrics", "alerts", "retrain", "trainer", "tagger", "features"} <= set(found)
    assert found["drift"].target == "canvasbus_workers.drift:worker"
    assert found["drift"].distribution.startswith("canvasbus ")


def test_a_worker_of_the_working_directory(folder: Path) -> None:
    """module:attribute, also a dotted attribute, as `python -m` would find it."""
    (folder / "studio_good.py").write_text(
        "from canvasbus.worker import Worker\nworker = Worker('good')\nclass Box:\n    inner = Worker('inner')\n"
    )
    found = plugins.load("studio_good:worker")
    assert isinstance(found, Worker) and found.name == "good"
    assert plugins.load("studio_good:Box.inner").name == "inner"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("dirft", "no worker 'dirft' is installed; did you mean drift"),
        ("studio_good", r"no worker .*a module is written studio_good:worker"),
        ("studio_missing:worker", "there is no module studio_missing"),
        ("studio_god:worker", "there is no module studio_god; did you mean studio_good"),
        ("studio_good.sub:worker", r"there is no module studio_good\.sub"),
        ("studio_needs:worker", r"studio_needs needs the module studio_nowhere, .*studio_needs\.py, line 2"),
        ("studio_raises:worker", r"importing studio_raises failed: ValueError: two lines .*studio_raises\.py, line 1"),
        ("studio_exits:worker", "importing studio_exits failed: SystemExit: 3"),
        ("studio_syntax:worker", "importing studio_syntax failed: SyntaxError"),
        ("studio_contract:worker", r"ContractError: .*is not an event type.*studio_contract\.py, line \d"),
        ("studio_good.py", r"a module is written studio_good:worker"),
        ("./studio_good.py", r"a module is written studio_good:worker"),
        ("../studio_good.py", r"no worker '../studio_good.py' is installed(?!.*is written)"),
        ("studio_good:wroker", "studio_good has no 'wroker'; its workers: worker"),
        ("studio_none:worker", "has no 'worker'; it declares no Worker"),
        ("studio_none:thing", "is of type int, not a canvasbus Worker"),
        ("studio_lazy:worker", r"studio_lazy needs the module studio_nowhere, .*studio_lazy\.py, line 2"),
        ("studio_good:", "has no ''"),
        (":worker", "is not a module name"),
        ("studio-good:worker", "is not a module name"),
        ("../studio_good:worker", "is not a module name"),
        ("", "no worker '' is installed"),
    ],
)
def test_mistakes_are_one_line(folder: Path, target: str, says: str) -> None:
    """Missing, misspelt, not importable, failing inside, of the wrong kind: ConfigError, one line, with the place."""
    files = {
        "studio_good": "from canvasbus.worker import Worker\nworker = Worker('good')\n",
        "studio_needs": "import os\nimport studio_nowhere\n",
        "studio_raises": "raise ValueError('two\\nlines')\n",
        "studio_exits": "raise SystemExit(3)\n",
        "studio_syntax": "worker = = 3\n",
        "studio_contract": "from canvasbus import Event, event\n@event('No Name')\nclass X(Event):\n    pass\n",
        "studio_none": "thing = 3\n",
        "studio_lazy": "def __getattr__(name):\n    import studio_nowhere\n",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        plugins.load(target)
    assert "\n" not in str(caught.value)


def test_a_worker_whose_extra_is_missing() -> None:
    """Also one that loads its handlers, and what they need, only when it is asked for: what to install."""
    program = (
        "import sys\nsys.modules['numpy'] = None\n"
        "from canvasbus.cli.worker import main\nsys.exit(main(['drift', '--url', 'redis://127.0.0.1:1']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    said = "canvasbus-worker: worker 'drift' needs numpy, which is not installed: pip install 'canvasbus[drift]'\n"
    assert (ended.returncode, ended.stderr) == (2, said)
