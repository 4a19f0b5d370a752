"""Running commands in this process, as a shell would see them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from canvasbus.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What one command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        """stdout of a command with --json."""
        return [json.loads(line) for line in self.lines]

    def failed(self, code: int, *parts: str) -> None:
        """It printed nothing, and one line on stderr with these parts."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.count("\n") == 1 and "Traceback" not in self.err, self
        for part in parts:
            assert part in self.err, self


Run = Callable[..., Ran]


class Input(io.BytesIO):
    """A stdin with these bytes."""

    @property
    def buffer(self) -> "Input":
        return self

    def isatty(self) -> bool:
        return False


def runner(url: str | None, namespace: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command against this server and namespace; `stdin` is given as bytes."""

    def run(*argv: str, stdin: bytes | None = None) -> Ran:
        capsys.readouterr()
        before = sys.stdin
        if stdin is not None:
            sys.stdin = Input(stdin)  # type: ignore[assignment]
        try:
            code = main([*argv, *(("--url", url, "--namespace", namespace) if url else ())])
        finally:
            sys.stdin = before
        return Ran(code, *capsys.readouterr())

    return run


def unread(url: str, namespace: str, *argv: str) -> tuple[int, str]:
    """A command as a process of its own, whose stdout nobody reads: its exit code, and what it says on stderr."""
    environ = {**os.environ, "CANVASBUS_URL": url, "CANVASBUS_NAMESPACE": namespace, "PYTHONWARNINGS": "error"}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "canvasbus", *argv]
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr.decode()
