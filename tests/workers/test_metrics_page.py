"""The metrics worker's page: its code runs, its rules and settings are the worker's, and what it names exists."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from servers import python_path
from studio import Eyes

from canvasbus.config import load, section
from canvasbus.contract.registry import registry
from canvasbus_workers.metrics.rules import Rule, place_of, read_rules
from canvasbus_workers.metrics.settings import Settings

PAGE = Path(__file__).parent.parent.parent / "workers" / "canvasbus_workers" / "metrics" / "README.md"
TEXT = PAGE.read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))


def read(path: Path, text: str, monkeypatch: Any) -> tuple[Settings, set[str]]:
    path.write_text(text)
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    loaded = load()
    return section("metrics", Settings, loaded), set(loaded.workers["metrics"])


def test_the_rules_are_rules(tmp_path: Path, monkeypatch: Any) -> None:
    """Those on the page are accepted, and the table beside them names every key with its default."""
    settings, _ = read(tmp_path / "c.toml", FILES["canvasbus.toml"], monkeypatch)
    rules = read_rules(settings.rules, place_of)
    assert list(rules) == ["fid", "accuracy_falls", "accuracy_is_reported"]
    table = TEXT[TEXT.index("| key |") : TEXT.index("A rule looks")]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {field.name for field in msgspec.structs.fields(Rule)}


def test_the_settings_are_all_there_with_their_defaults(tmp_path: Path, monkeypatch: Any) -> None:
    """The table on the page is what the worker has when it is told nothing, and names every setting."""
    settings, keys = read(tmp_path / "c.toml", FILES["settings.toml"], monkeypatch)
    assert settings == Settings()
    assert keys | {"rules"} == {field.name for field in msgspec.structs.fields(Settings)}


def test_the_job_reports(tmp_path: Path, server_url: str) -> None:
    """The example publishes one report."""
    (tmp_path / "report.py").write_text(FILES["report.py"])
    eyes = Eyes(server_url, "canvasbus")
    before = eyes.count("metric.reported")
    environ = dict(os.environ) | {"PYTHONPATH": python_path(tmp_path), "CANVASBUS_URL": server_url}
    done = subprocess.run([sys.executable, "report.py"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert eyes.count("metric.reported") == before + 1
    eyes.close()


def test_what_it_names_exists() -> None:
    """Event types."""
    named = set(re.findall(r"`((?:drift|metric)\.[a-z_]+)`", TEXT))
    assert named and named <= set(registry.names())
