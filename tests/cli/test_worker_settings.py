"""A worker's own table in canvasbus.toml: read by the worker, looked at by the doctor."""

from pathlib import Path

import msgspec
import pytest
from cli.commands import Run

from canvasbus.config import load
from canvasbus.errors import ConfigError
from canvasbus.worker import section


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
        ("[workers.drfit]\n", "error", "no worker 'drfit' is installed here"),
        ('[workers.retrain]\nlauncher = "http"\n', "error", "http.url: say where to send orders"),
        ("[workers.retrain.models.m]\ndaily = 3\n", "error", "models.m: unknown key 'daily'"),
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
