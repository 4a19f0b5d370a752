"""The alerts worker's page: its settings are the worker's, and what it names exists."""

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import msgspec

import canvasbus.events  # noqa: F401  the types are known
from canvasbus.cli.main import parser
from canvasbus.config import load, section
from canvasbus.contract.registry import registry
from canvasbus_workers.alerts import events  # noqa: F401
from canvasbus_workers.alerts.desk import MOST_OPEN, Reason
from canvasbus_workers.alerts.settings import Label, Settings

PAGE = Path(__file__).parents[3] / "workers" / "canvasbus_workers" / "alerts" / "README.md"
TEXT = PAGE.read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))


def settings_of(name: str, tmp_path: Path, monkeypatch: Any) -> Settings:
    path = tmp_path / name
    path.write_text(FILES[name])
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    return section("alerts", Settings)


def test_the_settings_are_all_there_with_their_defaults(tmp_path: Path, monkeypatch: Any) -> None:
    """The table on the page is what the worker has when it is told nothing, and names every setting."""
    assert settings_of("canvasbus.toml", tmp_path, monkeypatch) == Settings()
    assert set(load().workers["alerts"]) == {field.name for field in msgspec.structs.fields(Settings)}
    (grouped,) = re.findall(r"are one incident: (.*)\n", FILES["canvasbus.toml"])
    assert tuple(grouped.split(", ")) == get_args(Label)


def test_the_routes_say_what_is_said_about_them(tmp_path: Path, monkeypatch: Any) -> None:
    """The example is read, and the rule in it replaces that of the defaults."""
    given = settings_of("routes.toml", tmp_path, monkeypatch)
    assert given.names == ("chat", "pager") and len(given.routes) == 2
    (rule,) = given.inhibit
    assert (rule.source.signal, rule.equal) == ("retraining", ("model_name",))


def test_what_it_names_exists() -> None:
    """Event types, every reason and no other, the bound of open incidents, and commands with their options."""
    named = set(
        re.findall(r"`((?:drift|data_quality|metric|retrain|incident|silence|alert|handler|bus)\.[a-z_]+)`", TEXT)
    )
    assert len(named) > 10 and named <= set(registry.names())
    assert set(re.findall(r"^\| `(\w+)` \| [a-z]", TEXT, re.MULTILINE)) == set(get_args(Reason))
    assert f"more than {MOST_OPEN} incidents" in TEXT
    commands = re.findall(r"^canvasbus (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        parser().parse_args(shlex.split(command))
