"""Fixtures of the workers' tests."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workers.model_server import Studio

_models = itertools.count(1)


@pytest.fixture
def model() -> str:
    """A model that nobody has heard of: what workers remember, they remember by its name."""
    return f"model-{next(_models)}"


@pytest.fixture(autouse=True)
def artifact_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ARTIFACT_ROOT."""
    monkeypatch.setenv("ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.fixture
def studio(model: str) -> Studio:
    return Studio(model)


@pytest.fixture
def drift_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write [workers.drift] of a canvasbus.toml that the worker finds."""

    def write(**settings: Any) -> None:
        path = tmp_path / "canvasbus.toml"
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        path.write_text("\n".join(["[workers.drift]", *lines]))
        monkeypatch.setenv("CANVASBUS_CONFIG", str(path))

    yield write
