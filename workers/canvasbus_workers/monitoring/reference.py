"""References: what is known to be good, prepared once so that each window is cheap, and never changed.

A reference is named by its digest: the same rows under the same name give the same one in every process, and what was
counted against one is never compared with another. Data have regimes (the night shift, the new tablet, the season), so a
model has several, all of them active: a monitor with one calls the return to normal a drift (measured, 4 of 4 windows
after the data had come back, at an accuracy of .97 to .99).
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from canvasbus_workers.monitoring import columns, embeddings
from canvasbus_workers.monitoring.columns import Column
from canvasbus_workers.monitoring.embeddings import Embedding
from canvasbus_workers.monitoring.estimate import Calibration

Array = npt.NDArray[Any]
Arrays = Mapping[str, npt.NDArray[Any]]

PROBABILITIES, CONFIDENCE, CORRECT = "probabilities", "confidence", "correct"
SHARE = (-1e-3, 1 + 1e-3)
"""Where probabilities lie. One that was never above .01 and now is .5 tells of drift and not of a broken sensor."""
WIDEST = 64
"""A matrix with more columns than this is taken to be an embedding, as is any whose name begins with "embedding"."""


class ShapeError(ValueError):
    """Arrays that cannot be rows of one table."""


class Reference:
    """Rows known to be good. `arrays`: name → (n,) values or (n, k) columns, one row for each item.

    `correct` among them, (n,) of 0 and 1, says which rows the model answered rightly: the quality estimate is calibrated
    by it. `items` and `right` say so in sum where it is missing. `names`: array → names of its columns; `categorical`:
    columns that hold codes and no amounts (columns of few whole numbers are recognised). Raises ShapeError.
    """

    def __init__(
        self,
        arrays: Arrays,
        reference_id: str = "",
        *,
        regime: str = "",
        version: str = "",
        segment: str = "",
        items: int = 0,
        right: int = 0,
        names: Mapping[str, Sequence[str]] | None = None,
        categorical: Collection[str] = (),
    ) -> None:
        rows = table(arrays)
        if not rows:
            raise ShapeError(f"reference {reference_id or regime!r} has no rows")
        self.rows = rows
        self.regime = regime
        self.version = version
        self.segment = segment
        self.names = dict(names or {})
        check_names(arrays, self.names, categorical)
        told = arrays.get(CORRECT)
        self.items = items or (rows if told is not None else 0)
        self.right = right if items or told is None else int(np.asarray(told).sum())
        self.digest = _digest(arrays, self.names, categorical, self.items, self.right)
        self.reference_id = reference_id or self.digest[:12]
        self.arrays: dict[str, int] = {}
        """Array → columns it must have; 0: it is one column itself."""
        self.columns: list[Column] = []
        self.embeddings: list[Embedding] = []
        for name, array in sorted(with_confidence(arrays).items()):
            if name == CORRECT:
                continue
            if is_embedding(name, array):
                fitted = embeddings.fit(name, array)
                if fitted is not None:
                    self.embeddings.append(fitted)
                    self.arrays[name] = array.shape[1]
                continue
            self.arrays[name] = array.shape[1] if array.ndim == 2 else 0
            for each, values in split(name, array, self.names.get(name, ())):
                bounds = SHARE if name in (PROBABILITIES, CONFIDENCE) else None
                column = columns.fit(each, values, True if each in categorical else None, bounds)
                if column is not None:
                    self.columns.append(column)
        self.starts = np.cumsum([0, *(column.bins for column in self.columns)])
        """Where the bins of each column begin."""
        self.scales = {
            "mean": np.array([column.mean for column in self.columns]),
            "sd": np.array([column.sd for column in self.columns]),
            "least": np.array([column.least for column in self.columns]),
            "most": np.array([column.most for column in self.columns]),
        }
        self.calibration = Calibration.fit(arrays, self.right / self.items if self.items else None)

    @classmethod
    def fit(cls, arrays: Arrays, reference_id: str = "", **options: Any) -> "Reference":
        """The same as `Reference(arrays, …)`."""
        return cls(arrays, reference_id, **options)

    @property
    def accuracy(self) -> float:
        """Share of correct rows, a little (one success and one failure) towards a half: a small sample promises less."""
        return (self.right + 1) / (self.items + 2)

    def __repr__(self) -> str:
        return (
            f"<Reference {self.reference_id} {self.regime}: {self.rows} rows, {len(self.columns)} columns, "
            f"{len(self.embeddings)} embeddings, {self.digest[:12]}>"
        )


def table(arrays: Arrays) -> int:
    """How many rows the arrays have. Raises ShapeError when they differ, or when one is no column and no matrix."""
    lengths = set()
    for name, array in arrays.items():
        if array.ndim not in (1, 2):
            raise ShapeError(f"{name} has the shape {array.shape}: use (rows,) or (rows, columns)")
        lengths.add(len(array))
    if len(lengths) > 1:
        raise ShapeError(f"arrays of {sorted(lengths)} rows: each needs a row for each item")
    return lengths.pop() if lengths else 0


def check_names(arrays: Arrays, names: Mapping[str, Sequence[str]], categorical: Collection[str]) -> None:
    """Whether `names` and `categorical` are about what the arrays have, and probabilities have classes. Raises ShapeError."""
    given = arrays.get(PROBABILITIES)
    if given is not None and (given.ndim != 2 or given.shape[1] < 2):
        raise ShapeError(f"{PROBABILITIES} has the shape {given.shape}: use (rows, classes), one column for each class")
    for name, of_it in names.items():
        array = arrays.get(name)
        if array is None or array.ndim != 2 or array.shape[1] != len(of_it):
            shape = "is not there" if array is None else f"has the shape {array.shape}"
            raise ShapeError(f"names of {len(of_it)} columns of {name}, which {shape}")
    known = [
        each
        for name, array in with_confidence(arrays).items()
        if name != CORRECT and not is_embedding(name, array)
        for each, _ in split(name, array, names.get(name, ()))
    ]
    for name in sorted(set(categorical) - set(known)):
        raise ShapeError(f"categorical: no column is called {name!r}; there are {', '.join(known[:20]) or 'none'}")


def with_confidence(arrays: Arrays) -> Arrays:
    """The arrays, and the largest probability of each row as a column of its own."""
    given = arrays.get(PROBABILITIES)
    if given is None or given.ndim != 2 or not given.shape[1] or CONFIDENCE in arrays:
        return arrays
    return {**arrays, CONFIDENCE: given.max(axis=1)}


def is_embedding(name: str, array: Array) -> bool:
    """Whether a matrix is looked at as a whole."""
    return array.ndim == 2 and (name.startswith("embedding") or array.shape[1] > WIDEST)


def split(name: str, array: Array, names: Sequence[str] = ()) -> list[tuple[str, Array]]:
    """(name, values) of each column of an array."""
    if array.ndim == 1:
        return [(name, array)]
    named = names if len(names) == array.shape[1] else [f"{name}[{at}]" for at in range(array.shape[1])]
    return list(zip(named, np.asarray(array).T, strict=True))


def _digest(arrays: Arrays, *more: object) -> str:
    digest = hashlib.sha256(repr([sorted(m) if isinstance(m, set | frozenset) else m for m in more]).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        data = array if array.dtype.kind != "O" else array.astype(np.str_)
        digest.update(f"{name} {data.dtype.str} {data.shape}".encode())
        digest.update(data.tobytes())
    return digest.hexdigest()
