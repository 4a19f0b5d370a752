"""What a few rows add to a window, in terms of one reference. All of it adds up, in any order, to the last bit.

A partial of 20 columns is about 4 kB packed, one of an embedding 15 kB more, whatever number of rows it is of.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from canvasbus_workers.monitoring.columns import FARTHEST, GRID, missing, plain
from canvasbus_workers.monitoring.reference import PROBABILITIES, Arrays, Reference, split, table, with_confidence

Array = npt.NDArray[Any]

CHUNK = 2048
"""Rows that are counted at once: their columns stay in the processor's cache."""

ADDED = ("rows", "seen", "wrong", "missing", "outside", "sums", "counts", "confidence", "parts")


@dataclass(eq=False)
class Partial:
    """Counts of some rows against a reference. (c,) is one number for each column of the reference, in its order."""

    digest: str
    """Of the reference."""
    rows: Array
    """(1,)"""
    seen: Array
    """(c,) Rows that had the column, with a value or without."""
    wrong: Array
    """(c,) Rows whose column had another type or width."""
    missing: Array
    """(c,) Rows without a value."""
    outside: Array
    """(c,) Values far outside the reference's range; infinite ones are among them."""
    sums: Array
    """(c,) Sums of (value - mean)/sd in multiples of 1/65536."""
    counts: Array = field(repr=False)
    """All columns' bins, one after another."""
    confidence: Array = field(repr=False)
    """Rows by confidence, for the quality estimate."""
    parts: Array = field(repr=False)
    """For each embedding: rows, sums of features, of components, of their products."""
    lows: Array
    highs: Array
    """(c,) Smallest and largest finite value; +inf and -inf: none."""

    @property
    def items(self) -> int:
        """Rows."""
        return int(self.rows[0])

    @classmethod
    def empty(cls, reference: Reference) -> "Partial":
        """Of no rows."""
        c = len(reference.columns)
        zeros = {name: np.zeros(c, np.int64) for name in ("seen", "wrong", "missing", "outside", "sums")}
        sizes = sum(part_size(one) for one in reference.embeddings)
        return cls(
            digest=reference.digest,
            rows=np.zeros(1, np.int64),
            counts=np.zeros(int(reference.starts[-1]), np.int64),
            confidence=np.zeros(reference.calibration.bins if reference.calibration else 0, np.int64),
            parts=np.zeros(sizes, np.int64),
            lows=np.full(c, np.inf),
            highs=np.full(c, -np.inf),
            **zeros,
        )

    def add(self, other: "Partial") -> None:
        """Add what others counted. Raises ValueError when it was counted against another reference."""
        if other.digest != self.digest:
            raise ValueError(f"counted against {other.digest[:12]}, not {self.digest[:12]}")
        for name in ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lows = np.minimum(self.lows, other.lows)
        self.highs = np.maximum(self.highs, other.highs)

    def pack(self) -> bytes:
        """For storing."""
        whole = [_packed(getattr(self, name)) for name in ADDED]
        return msgspec.msgpack.encode([self.digest, whole, self.lows.tobytes(), self.highs.tobytes()])

    @classmethod
    def unpack(cls, data: bytes) -> "Partial":
        """What was packed. Raises msgspec.ValidationError."""
        digest, whole, lows, highs = _decoder.decode(data)
        arrays = {name: _unpacked(one) for name, one in zip(ADDED, whole, strict=True)}
        return cls(digest=digest, lows=np.frombuffer(lows), highs=np.frombuffer(highs), **arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partial) and self.pack() == other.pack()

    __hash__ = None  # type: ignore[assignment]


_decoder = msgspec.msgpack.Decoder(tuple[str, list[bytes], bytes, bytes])


def _packed(array: Array) -> bytes:
    """The first byte says how wide the numbers are."""
    for code, kind in ((1, "<u1"), (2, "<u2"), (4, "<i4")):
        info = np.iinfo(kind)
        if not len(array) or (array.min() >= info.min and array.max() <= info.max):
            return bytes([code]) + array.astype(kind).tobytes()
    return b"\x08" + array.astype("<i8").tobytes()


def _unpacked(data: bytes) -> Array:
    kind = {1: "<u1", 2: "<u2", 4: "<i4", 8: "<i8"}[data[0]]
    return np.frombuffer(data[1:], kind).astype(np.int64)


def part_size(embedding: Any) -> int:
    """Numbers that an embedding's sums consist of."""
    k = embedding.components
    return int(1 + len(embedding.mean) + k + k * k)


def count(reference: Reference, arrays: Arrays) -> Partial:
    """Rows → what they add to a window. Arrays that the reference does not have are not looked at; those that it has and
    the rows lack are noticed when the window is judged. Raises ShapeError."""
    rows = table(arrays)
    partial = Partial.empty(reference)
    partial.rows[0] = rows
    if not rows:
        return partial
    if _fits(arrays.get(PROBABILITIES), reference.arrays.get(PROBABILITIES, 0)):
        if reference.calibration is not None:
            partial.confidence = reference.calibration.count(arrays[PROBABILITIES])
        arrays = with_confidence(arrays)
    given: dict[str, Array] = {}
    refused: set[str] = set()
    for name, width in reference.arrays.items():
        array = arrays.get(name)
        if array is None:
            continue
        if (array.shape[1] if array.ndim == 2 else 0) == width:
            given.update(split(name, array, reference.names.get(name, ())))
        else:
            refused.add(name)
            given.update((each, np.empty(0)) for each in _names(reference, name, width))
    _count_columns(reference, partial, given, rows)
    at = 0
    for embedding in reference.embeddings:
        size = part_size(embedding)
        array = arrays.get(embedding.name)
        if array is not None and embedding.name not in refused and array.dtype.kind in "fiub":
            counted, features, sums, products = embedding.sums(np.asarray(array, np.float32))
            partial.parts[at : at + size] = np.concatenate([[counted], features, sums, products.ravel()])
        at += size
    return partial


def _fits(array: Array | None, width: int) -> bool:
    return array is not None and array.ndim == 2 and 0 < array.shape[1] == width and array.dtype.kind in "fiub"


def _names(reference: Reference, name: str, width: int) -> list[str]:
    return [
        each for each, _ in split(name, np.empty((0, width)) if width else np.empty(0), reference.names.get(name, ()))
    ]


def _count_columns(reference: Reference, partial: Partial, given: dict[str, Array], rows: int) -> None:
    """All numbers at once, since for a hundred rows numpy's calls cost more than its arithmetic; texts one by one."""
    places: list[int] = []
    numbers: list[Array] = []
    for at, column in enumerate(reference.columns):
        values = given.get(column.name)
        if values is None:
            continue
        partial.seen[at] = rows
        text = column.edges.dtype.kind == "U"
        if len(values) != rows or (values.dtype.kind in "fiub") == text:
            partial.wrong[at] = rows
        elif text:
            values = plain(values)
            there = values[~missing(values)]
            partial.missing[at] = rows - len(there)
            partial.counts[reference.starts[at] : reference.starts[at + 1]] = column.count(there)
        else:
            places.append(at)
            numbers.append(values)
    if numbers:
        for first in range(0, rows, CHUNK):
            some = np.array([values[first : first + CHUNK] for values in numbers], np.float64)
            _count_numbers(reference, partial, np.array(places), some)


def _count_numbers(reference: Reference, partial: Partial, places: Array, values: Array) -> None:
    """`values`: (columns, rows)."""
    columns = [reference.columns[at] for at in places]
    nowhere = int(reference.starts[-1])
    bins = np.empty(values.shape, np.intp)
    for row, (at, column) in enumerate(zip(places, columns, strict=True)):
        np.add(column.bin(values[row]), reference.starts[at], out=bins[row])
    absent = np.isnan(values)
    if absent.any():
        bins[absent] = nowhere
        partial.missing[places] += absent.sum(axis=1)
    partial.counts += np.bincount(bins.ravel(), minlength=nowhere + 1)[:nowhere]
    lows, highs = np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)
    means, sds, least, most = (reference.scales[name][places] for name in ("mean", "sd", "least", "most"))
    for row in map(int, np.flatnonzero((lows < least) | (highs > most))):
        partial.outside[places[row]] += ((values[row] < least[row]) | (values[row] > most[row])).sum()
        finite = values[row][np.isfinite(values[row])]
        lows[row], highs[row] = (finite.min(), finite.max()) if len(finite) else (np.inf, -np.inf)
    partial.lows[places] = np.fmin(partial.lows[places], lows)
    partial.highs[places] = np.fmax(partial.highs[places], highs)
    moved = (values - means[:, None]) * (GRID / sds)[:, None]
    np.clip(moved, -FARTHEST * GRID, FARTHEST * GRID, out=moved)
    if absent.any():
        moved[absent] = 0.0
    partial.sums[places] += np.rint(moved, out=moved).astype(np.int64).sum(axis=1)
