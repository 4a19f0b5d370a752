"""Seeds of the simulation. What is looked for is in judge.py; a failure names the command that shows it again."""

from collections import Counter

import pytest
from simulation.run import Result, never, replay, simulate

FIXED = range(40)


def told(result: Result) -> str:
    """Why a seed failed."""
    return "\n".join([*result.wrong[:10], f"again: {replay(result.seed)}"])


@pytest.mark.timeout(600)
def test_fixed_seeds_are_sound_and_take_every_way_of_recovery() -> None:
    """Nothing is wrong in any of them, and each way of recovery is taken in some."""
    seen: Counter[str] = Counter()
    for seed in FIXED:
        result = simulate(seed)
        assert not result.wrong, told(result)
        seen += result.seen
    assert never(seen) == []


def test_a_fresh_seed_is_sound(fresh_seed: int) -> None:
    """Sixty that nobody has run, one a test so that processes share them, or the one of --seed: nothing is wrong."""
    result = simulate(fresh_seed)
    assert not result.wrong, told(result)
