"""Programs that are run, killed, and looked at from outside."""

import subprocess
import sys
import textwrap
from pathlib import Path

from studio import Eyes

PRELUDE = """
import atexit, gc, multiprocessing, os, signal, sys, threading, time
from canvasbus import Event, Producer, event

@event("painting.made", key="title")
class PaintingMade(Event):
    title: str = "untitled"
    number: int = 0

URL, NAMESPACE, SPOOL = sys.argv[1:]

def producer(**options):
    return Producer(URL, namespace=NAMESPACE, **options)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


class Program:
    """Runs a script as a program of its own and tells what it stored."""

    def __init__(self, folder: Path, url: str, namespace: str) -> None:
        self._folder = folder
        self._started = 0
        self.spool = folder / "spool"
        self.url = url
        self.namespace = namespace

    def start(self, body: str) -> "subprocess.Popen[str]":
        self._started += 1
        script = self._folder / f"program{self._started}.py"
        script.write_text(PRELUDE + textwrap.dedent(body))
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(script), self.url, self.namespace, str(self.spool)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, body: str, *, code: int = 0, timeout: float = 40) -> tuple[str, str]:
        """Its stdout and stderr. Fails when it does not end with `code`."""
        process = self.start(body)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == code, f"ended with {process.returncode}: {out}{err}"
        return out, err

    def stored(self) -> list[int]:
        eyes = Eyes(self.url, self.namespace)
        numbers = [made.number for made in eyes.events("painting.made")]
        eyes.close()
        return numbers
