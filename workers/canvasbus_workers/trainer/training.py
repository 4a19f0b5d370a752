"""Fitting the tagger. The only file that needs scikit-learn, which is imported when a training starts.

What is learnt from: all regimes seen so far, so that adapting to new data does not unlearn the old (measured: .94 to
.97 on clean data after two retrainings). What is never learnt from: an item whose original is in a test split, and the
validation half of the originals, from which the references of the new version are made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from canvasbus_workers.artifacts import Floats
from canvasbus_workers.tagging import Network, observe

HIDDEN = 64
VALIDATION_SHARE = 0.3


class LeakError(AssertionError):
    """An image that is to be judged by was about to be trained on."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images: rows belong together."""

    images: Floats
    """(n, h, w) in 0 to 1"""
    labels: npt.NDArray[np.int64]
    """(n,)"""
    groups: tuple[str, ...]
    """The original of each image."""

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, keep: npt.NDArray[np.bool_]) -> "Examples":
        """The rows for which `keep` is true."""
        return Examples(
            self.images[keep], self.labels[keep], tuple(g for g, k in zip(self.groups, keep, strict=True) if k)
        )


def together(parts: Sequence[Examples]) -> Examples:
    """All rows, in order."""
    return Examples(
        np.concatenate([p.images for p in parts]),
        np.concatenate([p.labels for p in parts]),
        tuple(g for p in parts for g in p.groups),
    )


def split(examples: Examples, share: float = VALIDATION_SHARE) -> tuple[Examples, Examples]:
    """(train, validation), decided by a hash of each original: it is on the same side today and after a restart."""
    held_out = np.array([_place(group) < share for group in examples.groups], bool)
    return examples.where(~held_out), examples.where(held_out)


def check_disjoint(train: Sequence[str], test: frozenset[str], what: str = "test") -> None:
    """Raises LeakError when an original is in both."""
    leaked = test.intersection(train)
    if leaked:
        raise LeakError(f"{len(leaked)} {what} images among the training images, for example {min(leaked)}")


def fit(examples: Examples, seed: int) -> Network:
    """Train on (n, h, w) images. Equal input and seed give equal weights."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    batch = min(64, len(examples))
    classifier = MLPClassifier((HIDDEN,), max_iter=120, learning_rate_init=0.005, batch_size=batch, random_state=seed)
    with warnings.catch_warnings():
        # A bounded number of epochs is meant: the model is judged on validation images, not on its loss.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(examples.images.reshape(len(examples), -1), examples.labels)
    (w1, w2), (b1, b2) = classifier.coefs_, classifier.intercepts_
    found = dict(zip(classifier.classes_, range(len(classifier.classes_)), strict=True))
    classes = int(max(found)) + 1
    # A class without examples gets no column from scikit-learn; here every class has its own, unlikely where unseen.
    wide, bias = np.zeros((len(w2), classes)), np.full(classes, -30.0)
    for label, column in found.items():
        wide[:, int(label)], bias[int(label)] = w2[:, column], b2[column]
    return Network(*(np.asarray(a, np.float32) for a in (w1, b1, wide, bias)))


def accuracy(network: Network, examples: Examples) -> float:
    """Share of images classified correctly; 0.0 for none."""
    return correct(network, examples) / len(examples) if len(examples) else 0.0


def correct(network: Network, examples: Examples) -> int:
    """How many images are classified correctly."""
    return int((observe(network, examples.images)["probabilities"].argmax(axis=1) == examples.labels).sum())


def _place(group: str) -> float:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") / 2**32
