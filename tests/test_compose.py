"""compose.yaml and workers/Dockerfile, held to what they promise without a Docker engine."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    from canvasbus.consume.runner import GRACE_SECONDS

    for service in WORKERS.values():
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS
