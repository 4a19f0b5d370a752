"""What a model answered, kept until labels come: eight bytes of each item's id and its predicted class, packed.

A window of a thousand answers takes 16 kB. Two ids that share their eight bytes would be taken for one: among a million
answers the odds are one in thirty million.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ROW = np.dtype([("item", "<u8"), ("answer", "<i8")])


def hashed(ids: Iterable[str]) -> Array:
    """(n,) uint64"""
    return np.array([int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "little") for i in ids], "<u8")


def pack(ids: Sequence[str], predictions: Sequence[int]) -> bytes:
    """The answers of a batch, in its order; nothing where there are no predictions."""
    if not predictions:
        return b""
    rows = np.empty(len(ids), ROW)
    rows["item"], rows["answer"] = hashed(ids), predictions
    return rows.tobytes()


class Answers:
    """The answers of one window."""

    def __init__(self, packed: bytes) -> None:
        rows = np.frombuffer(packed, ROW)
        order = np.argsort(rows["item"], kind="stable")
        self._items, self._answers = rows["item"][order], rows["answer"][order]

    def find(self, items: Array) -> tuple[Array, Array]:
        """Hashed ids → (which of them are here, the places of these)."""
        if not len(self._items):
            return np.zeros(len(items), bool), np.zeros(0, np.int64)
        at = np.minimum(np.searchsorted(self._items, items), len(self._items) - 1)
        here = self._items[at] == items
        return here, at[here]

    def said(self, places: Array) -> Array:
        """The answers at these places."""
        said: Array = self._answers[places]
        return said

    def not_yet(self, judged: bytes, places: Array) -> tuple[Array, bytes]:
        """`judged`: a bit for each place, empty: none is. Returns (which of these places were not, all that are now)."""
        bits = np.zeros(-(-len(self) // 8) * 8, np.uint8)
        bits[: 8 * len(judged)] = np.unpackbits(np.frombuffer(judged, np.uint8))
        fresh = bits[places] == 0
        bits[places] = 1
        return fresh, np.packbits(bits).tobytes()

    def __len__(self) -> int:
        return len(self._items)
