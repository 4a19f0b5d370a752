"""What the library's tests share."""

from collections.abc import Callable

import numpy as np
import pytest

Rows = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def random() -> np.random.Generator:
    """The same numbers each time."""
    return np.random.default_rng(20261126)


@pytest.fixture
def rows(random: np.random.Generator) -> Rows:
    """n rows: three numeric columns, a categorical one, texts, class probabilities and an embedding; `shift` moves all."""

    def draw(n: int, shift: float = 0.0) -> dict[str, np.ndarray]:
        scores = random.standard_normal((n, 3)) * 2 + np.array([1.0 + shift, 0, 0])
        powers = np.exp(scores)
        return {
            "features": (random.standard_normal((n, 3)) + shift).astype(np.float32),
            "style": random.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]),
            "palette": random.choice(["oil", "ink", "chalk"], n),
            "probabilities": (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
            "embedding": (random.standard_normal((n, 24)) + shift).astype(np.float32),
        }

    return draw
