"""Fixtures of the workers' tests."""

import itertools
from pathlib import Path

import pytest

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
