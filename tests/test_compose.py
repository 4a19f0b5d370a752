"""compose.yaml and workers/Dockerfile, held to what they promise without a Docker engine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import ServerProcess, binaries, free_port, python_path

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
WORKERS = {name: service for name, service in COMPOSE["services"].items() if name != "redis"}
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["canvasbus.workers"]


def test_compose_is_valid() -> None:
    """The file follows the compose specification's schema."""
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"],
        check=True,
        capture_output=True,
    )


def test_the_doctor_finds_its_server_well(make_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Started with the arguments of compose.yaml: nothing that it has to warn of."""
    server = make_server(config=tuple(COMPOSE["services"]["redis"]["command"][1:]))
    done = subprocess.run(
        [sys.executable, "-m", "canvasbus", "doctor", "--url", server.url],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": python_path(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_dockerfile_is_clean() -> None:
    """hadolint finds nothing in the image's recipe."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "workers" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_the_image_runs_without_privileges() -> None:
    """Two stages, a user of its own, an exec-form entrypoint and SIGTERM."""
    text = (ROOT / "workers" / "Dockerfile").read_text()
    assert text.count("\nFROM ") == 2
    assert "\nUSER 10001" in text
    assert '\nENTRYPOINT ["canvasbus-worker"]' in text
    assert "\nSTOPSIGNAL SIGTERM" in text


def test_redis_keeps_events() -> None:
    """The server of the compose file persists, never evicts, and is waited for."""
    redis = COMPOSE["services"]["redis"]
    assert redis["command"][1:3] == ["--appendonly", "yes"]
    assert redis["command"][redis["command"].index("--maxmemory-policy") + 1] == "noeviction"
    assert redis["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    for service in WORKERS.values():
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", sorted(WORKERS))
def test_every_service_names_a_worker(name: str) -> None:
    """What a service starts is a registered worker."""
    assert WORKERS[name]["command"][0] in ENTRY_POINTS


def test_every_worker_has_a_service() -> None:
    """No registered worker is forgotten in the compose file."""
    assert set(ENTRY_POINTS) == set(WORKERS)


def test_the_grace_of_the_container_exceeds_that_of_the_worker() -> None:
    """Docker kills later than a drain takes."""
    from canvasbus.consume.leaving import GRACE_SECONDS

    for service in WORKERS.values():
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS


def test_whoever_needs_artifacts_shares_them() -> None:
    """Each worker that touches the artifact store gets the same folder; nobody else does."""
    sources = ROOT / "workers" / "canvasbus_workers"
    users = {name for name in WORKERS if "ArtifactStore" in (sources / name / "edge.py").read_text()}
    assert users == {name for name, service in WORKERS.items() if "ARTIFACT_ROOT" in service["environment"]}
    assert users == {name for name, service in WORKERS.items() if service.get("volumes") == ["artifacts:/artifacts"]}


@pytest.mark.long
def test_the_commands_run_as_plain_processes(tmp_path: Path) -> None:
    """The commands of all services, word for word but for addresses: they become ready, and SIGTERM ends them with 0."""
    port, ports = free_port(), {name: free_port() for name in WORKERS}
    server, *options = COMPOSE["services"]["redis"]["command"]
    found = binaries()
    processes = {}
    with contextlib.ExitStack() as stack:

        def start(name: str, command: list[str], environ: dict[str, str]) -> None:
            process = processes[name] = stack.enter_context(
                subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            )
            stack.callback(process.kill)

        assert server == "redis-server"
        where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
        start("redis", [found.get("redis", next(iter(found.values()))), *options, *where], dict(os.environ))
        for name, service in WORKERS.items():
            moved = {"0.0.0.0": "127.0.0.1", "8080": str(ports[name])}
            given = {key: str(value) for key, value in service["environment"].items()}
            given["CANVASBUS_URL"] = given["CANVASBUS_URL"].replace("redis:6379", f"127.0.0.1:{port}")
            if "ARTIFACT_ROOT" in given:
                given["ARTIFACT_ROOT"] = str(tmp_path / "artifacts")
            command = [moved.get(word, word) for word in service["command"]]
            start(name, [sys.executable, "-m", "canvasbus.cli.worker", *command], dict(os.environ) | given)
        deadline = time.monotonic() + 60
        waiting = dict(ports)
        while waiting:
            for name, health in list(waiting.items()):
                assert processes[name].poll() is None, f"{name} ended: {processes[name].communicate()[1][-2000:]!r}"
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://127.0.0.1:{health}/readyz", timeout=5).close()
                    del waiting[name]
            assert time.monotonic() < deadline, f"not ready: {sorted(waiting)}"
            time.sleep(0.05)
        for name in WORKERS:
            processes[name].send_signal(signal.SIGTERM)
        assert {name: processes[name].wait(30) for name in WORKERS} == dict.fromkeys(WORKERS, 0)
