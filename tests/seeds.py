"""Seeds of random tests: new ones in each run, all drawn from one number, so that a run can be had again.

The number is in the header of the report; CANVASBUS_TEST_SEED=N sets it. Processes that share a run share it.
"""

import os
from random import Random, SystemRandom

RUN_SEED = os.environ.setdefault("CANVASBUS_TEST_SEED", str(SystemRandom().randrange(2**32)))


def seeds(count: int, of: str) -> list[int]:
    """`count` seeds for the tests named `of`."""
    draw = Random(f"{RUN_SEED} {of}")
    return [draw.randrange(2**32) for _ in range(count)]
