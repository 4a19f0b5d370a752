"""One embedding of a reference: random Fourier features for MMD, leading components for the Fréchet distance.

Both are sums over rows, so a window's state has a fixed size (about 15 kB) however many rows it has, and partial ones
add up. Rows are mapped in blocks of 64, the last one filled with zeros: a matrix product gives a row other last bits in
a block of another height, and merged shards would then differ. What is summed are whole multiples of 1/65536.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from canvasbus_workers.monitoring import nulls

FREQUENCIES = 256
"""Random Fourier features are a cosine and a sine of each: the kernel of a pair is off by about 1/16, the mean over the
pairs of two windows by far less."""
COMPONENTS = 32
"""Leading principal components in which the Fréchet distance is measured."""
FEWEST = 64
"""Rows of a reference below which there is no Fréchet distance: its two halves say too little."""
BLOCK = 64
GRID = 65536
FINE = 1024
"""Components are summed as whole multiples of 1/1024 of the leading one's standard deviation."""
FARTHEST = 128.0
"""Of these standard deviations; beyond, a component is cut. Products then stay exact in float64 for 2¹⁸ rows."""

Array = npt.NDArray[Any]


class RandomFeatures:
    """A Gaussian kernel as a finite map: k(x, y) ≈ f(x)·f(y). Rahimi and Recht, "Random features for large-scale kernel
    machines", NIPS 2007. The bandwidth is the median distance within the reference."""

    def __init__(self, reference: Array, seed: int = 0, frequencies: int = FREQUENCIES) -> None:
        """`reference`: (m, d)."""
        some = np.asarray(reference, float)[:: max(1, len(reference) // 200)][:200]
        squares = ((some**2).sum(axis=1)[:, None] + (some**2).sum(axis=1)[None, :] - 2 * some @ some.T).clip(0)
        middle = float(np.median(squares[np.triu_indices(len(some), 1)])) if len(some) > 1 else 0.0
        self.bandwidth = float(np.sqrt(middle)) or 1.0
        random = np.random.default_rng([seed, reference.shape[1]])
        drawn = random.standard_normal((reference.shape[1], frequencies)) / self.bandwidth
        self._frequencies = drawn.astype(np.float32)

    def __call__(self, rows: Array) -> Array:
        """(n, d) → (n, 2·frequencies), each row of length 1."""
        angles = in_blocks(rows, self._frequencies)
        scale = np.float32(1 / np.sqrt(angles.shape[1]))
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * scale


def in_blocks(rows: Array, matrix: Array) -> Array:
    """rows (n, d) @ matrix (d, k) in float32, each row's result the same whatever rows it comes with."""
    n, d = rows.shape
    filled = np.zeros((-(-n // BLOCK) * BLOCK, d), np.float32)
    filled[:n] = rows
    out = np.empty((len(filled), matrix.shape[1]), np.float32)
    for at in range(0, len(filled), BLOCK):
        np.matmul(filled[at : at + BLOCK], matrix, out=out[at : at + BLOCK])
    return out[:n]


@dataclass(frozen=True, eq=False)
class Components:
    """The leading principal components of one half of a reference, and what the other half is like in them."""

    center: Array = field(repr=False)
    """(width,)"""
    basis: Array = field(repr=False)
    """(width, k)"""
    scale: float
    """Standard deviation of the leading one."""
    mean: Array = field(repr=False)
    covariance: Array = field(repr=False)
    """(k,) and (k, k), of the other half."""
    others: Array = field(repr=False)
    """(m/2, k): the other half's rows."""

    @cached_property
    def _nulls(self) -> nulls.Cache:
        return nulls.Cache(64)

    def null(self, n: int) -> nulls.Null:
        """Of the Fréchet distance of a window of n rows."""
        size = nulls.near(n)
        found: nulls.Null = self._nulls.get(size, lambda: nulls.frechet_null(self.others, size))
        return found

    def project(self, rows: Array) -> Array:
        """Rows (n, width) → whole multiples of scale/FINE (n, k), as float64."""
        return _project(rows, self.center, self.basis, self.scale)


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedding of a reference."""

    name: str
    width: int
    items: int
    features: RandomFeatures = field(repr=False)
    mean: Array = field(repr=False)
    """(2·frequencies,) of the features."""
    spread: float
    """Mean squared distance of a row's features from their mean."""
    null: nulls.Null
    """Of MMD², to be scaled by 1/n + 1/m."""
    parts: Components | None = field(repr=False)
    """None: the reference is too small for a Fréchet distance."""

    @property
    def components(self) -> int:
        """How many."""
        return self.parts.basis.shape[1] if self.parts else 0

    def sums(self, rows: Array) -> tuple[int, Array, Array, Array]:
        """Rows (n, width) → (rows counted, sum of features, sum of components, sum of their products), all of them whole
        numbers. A row with a value that is none is not counted."""
        sound = np.isfinite(rows).all(axis=1)
        rows = rows if sound.all() else rows[sound]
        features = np.rint(self.features(rows) * np.float32(GRID)).sum(axis=0, dtype=np.float64).astype(np.int64)
        if self.parts is None:
            return len(rows), features, np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
        parts = self.parts.project(rows)
        return len(rows), features, parts.sum(axis=0).astype(np.int64), (parts.T @ parts).astype(np.int64)


def fit(name: str, rows: Array) -> Embedding | None:
    """Prepare an embedding of a reference (m, d): about 0.2 s for 2000 × 512. None: fewer than two rows are sound."""
    rows = np.asarray(rows, np.float32)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows) < 2:
        return None
    features = RandomFeatures(rows)
    mapped = np.rint(features(rows) * np.float32(GRID)).astype(np.float64) / GRID
    covariance = np.cov(mapped, rowvar=False)
    return Embedding(
        name=name,
        width=rows.shape[1],
        items=len(rows),
        features=features,
        mean=mapped.mean(axis=0),
        spread=float(np.trace(covariance)) or 1.0,
        null=nulls.mmd_null(covariance),
        parts=_components(rows[::2], rows[1::2]) if len(rows) >= FEWEST else None,
    )


def _components(first: Array, second: Array) -> Components:
    width = first.shape[1]
    center = first.astype(np.float64).mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(first.astype(np.float64), rowvar=False).reshape(width, width))
    keep = min(COMPONENTS, len(first) // 4, width)
    basis = vectors[:, ::-1][:, :keep]
    scale = float(np.sqrt(max(values[-1], 0.0))) or 1.0
    others = _project(second, center, basis, scale) / FINE
    return Components(center, basis, scale, *nulls.moments(others), others)


def _project(rows: Array, center: Array, basis: Array, scale: float) -> Array:
    moved = in_blocks(rows - center.astype(np.float32), basis.astype(np.float32)).astype(np.float64)
    whole: Array = np.rint(np.clip(moved / scale, -FARTHEST, FARTHEST) * FINE)
    return whole
