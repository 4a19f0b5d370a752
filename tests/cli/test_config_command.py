"""canvasbus config show and completion: the settings in force, with where each came from."""

from pathlib import Path

import pytest
from cli.commands import Run

from canvasbus.config import KEYS


def shown(run: Run, *argv: str) -> dict[str, tuple[object, str]]:
    ran = run("config", "show", "--json", *argv)
    assert (ran.code, ran.err) == (0, "")
    return {record["key"]: (record["value"], record["from"]) for record in ran.records}


def test_every_setting_is_shown_with_its_origin(
    run_bare: Run, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flag > environment > file > default, in every combination, and the workers' tables too."""
    path = empty_folder / "canvasbus.toml"
    path.write_text('namespace = "file"\npartitions = 2\ngrace = 3.5\n[workers.drift]\nwindow = 5\n')
    monkeypatch.setenv("CANVASBUS_NAMESPACE", "env")
    monkeypatch.setenv("CANVASBUS_PARTITIONS", "3")
    found = shown(run_bare, "--namespace", "flag")
    assert list(found) == [*KEYS, "workers.drift"]
    assert found["namespace"] == ("flag", "--namespace")
    assert found["partitions"] == (3, "CANVASBUS_PARTITIONS")
    assert found["grace"] == (3.5, str(path))
    assert found["url"] == (None, "default")
    assert found["workers.drift"] == ("window", str(path))


def test_people_see_a_table_without_passwords(run_bare: Run, empty_folder: Path) -> None:
    """Values readable, the password never, in the table and as JSON; a secret file works the same."""
    argv = ("config", "show", "--url", "redis://me:sesame@host:6379")
    for extra in ((), ("--json",)):
        ran = run_bare(*argv, *extra)
        assert ran.code == 0 and "sesame" not in ran.out and "redis://me:***@host:6379" in ran.out
    rows = {line.split()[0]: line.split()[1:] for line in run_bare(*argv).lines}
    assert rows["SETTING"] == ["VALUE", "FROM"]
    assert rows["max_event_bytes"] == ["1,048,576", "default"]
    assert rows["modules"] == ["not", "set", "default"]


@pytest.mark.parametrize(
    ("text", "name", "value", "says"),
    [
        ("partitons = 3", None, "", "unknown key 'partitons'; did you mean partitions?"),
        ("url = [", None, "", "is not TOML"),
        ("", "CANVASBUS_PARTITONS", "3", "unknown environment variable CANVASBUS_PARTITONS"),
        ("", "CANVASBUS_GRACE", "soon", "grace='soon' from CANVASBUS_GRACE"),
        ("", "CANVASBUS_CONFIG", "/nowhere.toml", "CANVASBUS_CONFIG names /nowhere.toml"),
    ],
)
def test_mistakes_in_the_configuration_stop_every_command(
    run_bare: Run,
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    name: str | None,
    value: str,
    says: str,
) -> None:
    """Exit code 2, one line, before anything is done."""
    if text:
        (empty_folder / "canvasbus.toml").write_text(text)
    if name:
        monkeypatch.setenv(name, value)
    for argv in (("config", "show"), ("topics",), ("publish", "--dry-run", "a", "{}")):
        run_bare(*argv).failed(2, says)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(run_bare: Run, shell: str) -> None:
    """A script for the shell that names commands and options."""
    ran = run_bare("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    for word in ("publish", "groups", "where", "dlq"):
        assert word in ran.out


def test_completion_for_another_shell(run_bare: Run) -> None:
    """Exit code 2 and the shells there are."""
    run_bare("completion", "fish").failed(2, "bash, zsh, tcsh")
