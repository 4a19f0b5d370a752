"""Node for the tests that need it. Whoever asks for these tests and has no Node gets an error, never a skip."""

import os
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
NODE_MODULES = FOLDER / "node_modules"


def node(script: Path, *, cwd: Path = FOLDER, stdin: str = "", **environ: str) -> str:
    """Run a script to its end; what it prints."""
    if shutil.which("node") is None:
        raise RuntimeError("node is not installed: apt install nodejs npm")
    if not NODE_MODULES.is_dir():
        raise RuntimeError("the packages of npm are not installed: npm install --prefix tests/interop")
    done = subprocess.run(
        ["node", str(script)],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
