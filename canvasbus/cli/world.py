"""The demo's world: real handwritten digits, who wrote them, and what happens to them window by window. No bus here.

The images are those of scikit-learn's digits (Alpaydin and Kaynak, UCI 1998: 1797 digits of 8×8 pixels from 43 hands).
Rows 0 to 1396 play the hands that the model knows, the rest the hands that it has never seen: the file keeps the order
in which people came, so this is a natural shift, not one that was made up.

    windows  0–14   clean          noise only
            15–34   corrupted      rotated by 40°·s and dimmed, s = .2 .4 .6 .8 and then 1
            35–40   clean again
            41–60   new hands      nothing is injected

Each window has 100 images: 50 whose labels may be bought for training, 50 for judging. Those two never share an
original, so a score never measures memory.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Phase = Literal["clean", "corrupted", "clean again", "new hands"]

WINDOW = 100
WINDOWS = 61
KNOWN_HANDS = 1397
ONSET_CORRUPTED, ONSET_CLEAN_AGAIN, ONSET_NEW_HANDS = 15, 35, 41
NOISE = 0.05
LABELS_LATE = 2
"""Windows after which people have labelled the images."""
TRAIN, VALIDATION = 450, 400
"""Images of the first training, and of the first reference."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Images with their labels and originals; rows belong together."""

    images: Images
    """(n, 8, 8) in 0 to 1"""
    labels: Labels
    originals: tuple[str, ...]
    """`digits/<row>`"""


@dataclass(frozen=True, eq=False)
class Window:
    """What arrives in one window: first the half whose labels may be bought, then the half that is judged."""

    number: int
    phase: Phase
    strength: float
    """Of the corruption, 0 to 1."""
    train: Sample
    test: Sample


def phase_of(number: int) -> Phase:
    """What the window with this number is."""
    if number < ONSET_CORRUPTED:
        return "clean"
    if number < ONSET_CLEAN_AGAIN:
        return "corrupted"
    return "clean again" if number < ONSET_NEW_HANDS else "new hands"


def strength_of(number: int) -> float:
    """How strongly the window's images are rotated and dimmed, 0 to 1."""
    return min(1.0, 0.2 * (number - ONSET_CORRUPTED + 1)) if phase_of(number) == "corrupted" else 0.0


def corrupt(images: Images, strength: float) -> Images:
    """Rotate by 40° times `strength` and dim by 40 % of it: (n, 8, 8) → the same."""
    if strength == 0.0:
        return images
    from scipy import ndimage

    turned = ndimage.rotate(images, 40.0 * strength, axes=(1, 2), reshape=False, order=1)
    dimmed: Images = (np.clip(turned, 0, 1) * (1 - 0.4 * strength)).astype(np.float32)
    return dimmed


class World:
    """All that will happen, from one seed: iterate for the windows in their order."""

    def __init__(self, seed: int = 0) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images = (digits.images / 16.0).astype(np.float32)
        self._labels = digits.target.astype(np.int64)
        self._random = np.random.default_rng([seed, 1])
        known = self._random.permutation(KNOWN_HANDS)
        new = KNOWN_HANDS + self._random.permutation(len(self._images) - KNOWN_HANDS)
        rest = known[TRAIN + VALIDATION :]
        self._pools = {
            "first training": known[:TRAIN],
            "first validation": known[TRAIN : TRAIN + VALIDATION],
            "known train": rest[: len(rest) // 2],
            "known test": rest[len(rest) // 2 :],
            "new train": new[: len(new) // 2],
            "new test": new[len(new) // 2 :],
        }

    def first_training(self) -> Sample:
        """The labelled images that the first model is trained on; none of them ever comes in a window."""
        return self._serve(self._pools["first training"], 0.0)

    def first_validation(self) -> Sample:
        """The labelled images that the first reference is made from; none of them ever comes in a window."""
        return self._serve(self._pools["first validation"], 0.0)

    def window(self, number: int) -> Window:
        """Draw the next window. Originals come again over time, within a half only once, with new noise each time."""
        hands = "new" if phase_of(number) == "new hands" else "known"
        strength = strength_of(number)
        halves = []
        for half in ("train", "test"):
            rows = self._random.choice(self._pools[f"{hands} {half}"], WINDOW // 2, replace=False)
            halves.append(self._serve(rows, strength))
        return Window(number, phase_of(number), strength, *halves)

    def _serve(self, rows: npt.NDArray[np.int64], strength: float) -> Sample:
        clean = corrupt(self._images[rows], strength)
        noisy = clean + NOISE * self._random.standard_normal(clean.shape)
        return Sample(
            np.clip(noisy, 0, 1).astype(np.float32), self._labels[rows], tuple(f"digits/{row:04d}" for row in rows)
        )
