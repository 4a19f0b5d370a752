"""`pytest tests/simulation --seed N` runs that seed and nothing else."""

import pytest
from seeds import seeds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="run this seed of the simulation only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fresh_seed" in metafunc.fixturenames:
        given = getattr(metafunc.config.option, "seed", None)
        metafunc.parametrize("fresh_seed", seeds(60, "simulation") if given is None else [given])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if getattr(config.option, "seed", None) is not None:
        chosen = [item for item in items if "fresh_seed" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
