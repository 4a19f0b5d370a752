"""Seeds of the simulation. What is looked for is in judge.py; a failure names the command that shows it again."""

from collections import Counter

import pytest
from simulation.run import Result, never, replay, simulate


def told(result: Result) -> str:
    """Why a seed failed."""
    return "\n".join([*result.wrong[:10], f"again: {replay(result.seed)}"])


@pytest.mark.timeout(600)
def test_seeds_are_sound_and_take_every_way_of_recovery() -> None:
    """Nothing is wrong in any of forty, and each way of recovery is taken in some."""
    seen: Counter[str] = Counter()
    for seed in range(60, 100):
        result = simulate(seed)
        assert not result.wrong, told(result)
        seen += result.seen
    assert never(seen) == []


@pytest.mark.parametrize("seed", range(60))
def test_a_seed_is_sound(seed: int) -> None:
    """Nothing is wrong; one a test, so that processes share them."""
    result = simulate(seed)
    assert not result.wrong, told(result)
