"""Fixtures of the command line's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.commands import Run, runner
from studio import Eyes


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without anybody's canvasbus.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(server_url: str, namespace: str, capsys: pytest.CaptureFixture[str], empty_folder: Path) -> Run:
    """Run a command on a real server, in a namespace of its own."""
    return runner(server_url, namespace, capsys)


@pytest.fixture
def run_bare(namespace: str, capsys: pytest.CaptureFixture[str], empty_folder: Path) -> Run:
    """Run a command that is told nothing about a server."""
    return runner(None, namespace, capsys)


@pytest.fixture
def eyes(server_url: str, namespace: str) -> Iterator[Eyes]:
    """What lies on that server."""
    eyes = Eyes(server_url, namespace)
    yield eyes
    eyes.close()
