"""A worker's own table in canvasbus.toml: read by the worker, looked at by the doctor."""

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cli.commands import Run
from studio import running

from canvasbus.cli import worker
from canvasbus.config import load
from canvasbus.errors import ConfigError
from canvasbus.worker import section
from canvasbus_workers import metrics
from canvasbus_workers.features.edge import opened
from canvasbus_workers.features.settings import Settings as FeaturesSettings
from canvasbus_workers.retrain.edge import Launchers
from canvasbus_workers.retrain.settings import Settings as RetrainSettings


class Settings(msgspec.Struct, frozen=True):
    size: int = 5
    name: str = "x"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Write a canvasbus.toml that is found."""

    def write(text: str) -> Path:
        path = tmp_path / "canvasbus.toml"
        path.write_text(text)
        monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
        return path

    return write


def test_a_section_is_typed(written) -> None:  # type: ignore[no-untyped-def]
    """What stands there, else defaults; without a file or a table all of them."""
    assert section("one", Settings) == Settings()
    written('[workers.one]\nsize = 7\n[workers.two]\nname = "y"\n')
    assert section("one", Settings) == Settings(size=7)
    assert section("two", Settings, load()) == Settings(name="y")
    assert section("three", Settings) == Settings()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sise = 7", "[workers.one]: unknown key 'sise'; did you mean size?"),
        ('size = "7"', "[workers.one]: size: expected int, got str"),
    ],
)
def test_a_wrong_section_names_file_and_key(written, line: str, said: str) -> None:  # type: ignore[no-untyped-def]
    """In one line."""
    path = written(f"[workers.one]\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        section("one", Settings)
    assert str(caught.value) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("[workers.drift]\nwindow_items = 500\n", "ok", "1 settings in"),
        ("[workers.drift]\nwindow_itms = 500\n", "error", "did you mean window_items?"),
        ("[workers.drift]\nlevel = 3.0\n", "error", "level: expected float <= 0.2"),
        ("[workers.drfit]\n", "error", "no worker 'drfit' is installed here; did you mean drift?"),
        ("[workers.mine]\n", "error", "no worker 'mine' is installed here; there are: alerts, drift"),
        ('[workers.retrain]\nlauncher = "http"\n', "error", "http.url: say where to send orders"),
        (
            "[workers.retrain.models.m]\ndaily = 3\n",
            "error",
            "[workers.retrain.models.\"m\"]: unknown key 'daily'; did you mean daily_runs?",
        ),
        (
            '[workers.retrain]\nurl = "http://t/"\n',
            "error",
            "unknown key 'url'; it belongs into [workers.retrain.http] or [workers.retrain.prefect]",
        ),
        ("[workers.tagger]\n", "error", "has no settings of its own"),
    ],
)
def test_the_doctor_looks_at_sections(run_bare: Run, written, text: str, level: str, said: str) -> None:  # type: ignore[no-untyped-def]
    """Of every table: is there such a worker, and does it understand what stands there? No server is needed for that."""
    written(text)
    ran = run_bare("doctor", "--url", "memory://", "--json")
    (finding,) = [record for record in ran.records if record["check"].startswith("workers.")]
    assert finding["level"] == level and said in finding["found"]
    assert ran.code == (0 if level == "ok" else 1)


def test_the_doctor_imports_the_modules(
    run_bare: Run, written: Callable[[str], Path], empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`modules` that are not there are an error with what may have been meant; those that are there are ok."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (empty_folder / "cli_my_events.py").touch()
    path = written('modules = ["cli_my_evnts", "cli_my_events"]\n')
    ran = run_bare("doctor", "--url", "memory://", "--json")
    wrong, right = [one for one in ran.records if one["check"] == "modules"]
    assert (ran.code, wrong["level"], right["level"]) == (1, "error", "ok")
    assert f"there is no module cli_my_evnts; did you mean cli_my_events? (from {path}" in wrong["found"]
    assert right["found"] == f"cli_my_events from {path}"
    written("")
    assert not [one for one in run_bare("doctor", "--url", "memory://", "--json").records if one["check"] == "modules"]


def test_a_worker_names_the_table_that_may_be_meant_for_it(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it starts, one warning: nobody would miss settings that are ignored. Tables of others are their own affair."""

    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(worker, "_serve", nothing)
    for table, said in (("alert", True), ("alerts", False), ("mine", False), ("drift", False)):
        path = written(f"[workers.{table}]\n")
        assert worker.main(["alerts", "--url", "redis://127.0.0.1:1", "--log-format", "json"]) == 0
        lines = [msgspec.json.decode(line) for line in capsys.readouterr().err.splitlines()]
        assert [(one["level"], one["event"], one["file"]) for one in lines] == (
            [("warning", "nobody reads [workers.alert]: did you mean alerts?", str(path))] if said else []
        )


SLACK = '[workers.alerts.destinations.chat]\nkind = "slack"\n'
HOOK = '[workers.alerts.destinations.hook]\nkind = "webhook"\nurl = "https://hook.example/"\n'
FEAST = '[workers.features.sinks.f]\nkind = "feast"\nurl = "http://feast"\n'
HTTP = '[workers.retrain]\nlauncher = "http"\n[workers.retrain.http]\nurl = "http://trainer/runs"\n'
PREFECT = (
    '[workers.retrain.models."m"]\nlauncher = "prefect"\n'
    'prefect = {url = "http://prefect/api", deployment = "a/b", authorization_env = "NOT_SET"}\n'
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SLACK + 'url_file = "gone"\n', "destinations.chat]: url_file names gone, which cannot be read: No such file"),
        (SLACK + 'url_env = "NOT_SET"\n', "destinations.chat]: url_env names the environment variable NOT_SET"),
        (HOOK + 'authorization_file = "gone"\n', "destinations.hook]: authorization_file names gone"),
        (HOOK + 'secret_env = "NOT_SET"\n', "destinations.hook]: secret_env names the environment variable NOT_SET"),
        (HOOK + 'proxy_file = "gone"\n', "destinations.hook]: proxy_file names gone"),
        (HOOK + 'ca_file = "gone"\n', "destinations.hook]: ca_file names gone"),
        (
            '[workers.features.sinks.r]\nkind = "redis"\nurl_env = "NOT_SET"\n',
            "sinks.r]: url_env names the environment",
        ),
        (
            FEAST + 'authorization_env = "NOT_SET"\n',
            "sinks.f]: authorization_env names the environment variable NOT_SET",
        ),
        (HTTP + 'authorization_file = "gone"\n', "[workers.retrain]: http: authorization_file names gone"),
        (PREFECT, '[workers.retrain.models."m"]: prefect: authorization_env names the environment variable NOT_SET'),
    ],
)
def test_the_doctor_finds_a_secret_that_is_missing(run_bare: Run, written, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    """Of every worker: with such a table it would not start."""
    written(text)
    ran = run_bare("doctor", "--url", "memory://", "--json")
    (finding,) = [record for record in ran.records if record["check"].startswith("workers.")]
    assert finding["level"] == "error" and said in finding["found"]
    assert ran.code == 1


SQLITE = '[workers.features.sinks.log]\nkind = "sqlite"\npath = "{here}/{path}"\n'
RUNS = '[workers.retrain]\nlauncher = "subprocess"\nfolder = "{here}/{folder}"\n[workers.retrain.subprocess]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SQLITE.replace("{path}", "gone/x.db"), "gone/x.db cannot be "),
        (SQLITE.replace("{path}", "text"), "text cannot be opened: file is not a database"),
        (SQLITE.replace("{path}", "folder"), "folder cannot be opened: it is a folder"),
        (SQLITE.replace("{path}", "new.db"), None),
        (RUNS.replace("{folder}", "text") + 'command = ["sh"]\n', "[workers.retrain]: folder {here}/text: File exists"),
        (RUNS.replace("{folder}", "text/a/b") + 'command = ["sh"]\n', "folder {here}/text/a/b: Not a directory"),
        (
            RUNS.replace("{folder}", "new") + 'command = ["no-such"]\n',
            "subprocess.command: there is no program 'no-such' on",
        ),
        (
            RUNS.replace("{folder}", "new") + 'command = ["./text"]\ncwd = "{here}"\n',
            "{here}/text is no program that can be started here",
        ),
        (
            RUNS.replace("{folder}", "new") + 'command = ["sh"]\ncwd = "{here}/gone"\n',
            "there is no folder {here}/gone here",
        ),
        (RUNS.replace("{folder}", "new") + 'command = ["./job"]\ncwd = "{here}"\n', None),
    ],
)
async def test_the_doctor_finds_what_the_worker_refuses_on_this_machine(
    run_bare: Run, written: Callable[[str], Path], tmp_path: Path, text: str, said: str | None
) -> None:
    """Files, folders and programs that settings name: an error of the doctor's, who makes none of them, and of the worker as
    it starts."""
    (tmp_path / "text").write_text("no database, no program, no folder " * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "job").write_text("#!/bin/sh\n")
    (tmp_path / "job").chmod(0o700)
    written(text.replace("{here}", str(tmp_path)))
    (finding,) = [
        record
        for record in run_bare("doctor", "--url", "memory://", "--json").records
        if record["check"].startswith("workers.")
    ]
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.db").exists()

    async def start() -> None:
        if finding["check"] == "workers.retrain":
            async with Launchers(section("retrain", RetrainSettings)):
                pass
        else:
            async with opened(section("features", FeaturesSettings).sinks):
                pass

    if said is None:
        assert finding["level"] == "ok"
        await start()
    else:
        said = said.replace("{here}", str(tmp_path))
        assert finding["level"] == "error" and said in finding["found"]
        with pytest.raises(ConfigError) as caught:
            await start()
        assert said in str(caught.value) or finding["check"] == "workers.features"


@pytest.mark.parametrize(
    ("text", "extra"),
    [(HOOK, "alerts"), (FEAST, "features"), (HTTP, "retrain"), (PREFECT, "retrain")],
)
def test_the_doctor_finds_a_library_that_is_missing(  # type: ignore[no-untyped-def]
    run_bare: Run, written, monkeypatch: pytest.MonkeyPatch, text: str, extra: str
) -> None:
    """And says how to get it; who needs none is asked for none."""
    written(text)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    ran = run_bare("doctor", "--url", "memory://", "--json")
    (finding,) = [record for record in ran.records if record["check"] == f"workers.{extra}"]
    assert finding["level"] == "error"
    assert f"needs httpx2, which is not installed: pip install 'canvasbus[{extra}]'" in finding["found"]
    written("[workers.alerts]\n[workers.features]\n[workers.retrain]\n")
    assert run_bare("doctor", "--url", "memory://").code == 0


async def test_the_doctor_says_what_has_never_been_started(
    server_url: str, namespace: str, run: Run, written: Callable[[str], object]
) -> None:
    """Settings that nobody follows: a warning that names the command. Once the worker has been there it is gone, also when
    it runs no more; a table that is an error already is told once."""
    written("[workers.metrics]\nlate_seconds = 5\n[workers.features]\n[workers.drfit]\n")

    def never_started() -> list[str]:
        ran = run("doctor", "--json")
        return [one["group"] for one in ran.records if one["check"] == "group" and "has settings" in one["found"]]

    assert never_started() == ["metrics", "features"]
    (finding,) = [one for one in run("doctor", "--json").records if one["group"] == "metrics"]
    assert finding["level"] == "warning" and "start it: `canvasbus-worker metrics`" in finding["advice"]
    assert f"has ever been in the namespace {namespace!r}" in finding["found"]
    async with running(server_url, metrics.worker, namespace=namespace):
        pass
    assert never_started() == ["features"]
