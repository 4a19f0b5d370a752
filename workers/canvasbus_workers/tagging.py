"""The style tagger: a one-hidden-layer network in plain numpy, and what is measured on each image.

The trainer and the model server must get the same numbers from the same weights, or every reference would be off, so
the forward pass lies here, once. The weights are four arrays in an .npz; scikit-learn is needed to fit them only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from canvasbus_workers.artifacts import ArtifactError, Floats

_SHAPES = {"w1": 2, "b1": 1, "w2": 2, "b2": 1}


@dataclass(frozen=True, eq=False)
class Network:
    """ReLU hidden layer and softmax: images (n, h, w) → probabilities (n, classes)."""

    w1: Floats
    """(h·w, hidden)"""
    b1: Floats
    """(hidden,)"""
    w2: Floats
    """(hidden, classes)"""
    b2: Floats
    """(classes,)"""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Network":
        """Build it from the arrays of an artifact. Raises ArtifactError when they are not such a network."""
        found = {name: arrays[name].shape for name in _SHAPES if name in arrays}
        if any(len(found.get(name, ())) != axes for name, axes in _SHAPES.items()):
            raise ArtifactError(f"not the weights of a tagger: w1, b1, w2, b2 expected, got {found or sorted(arrays)}")
        if found["w1"][1:] != found["b1"] or found["b1"] != found["w2"][:1] or found["w2"][1:] != found["b2"]:
            raise ArtifactError(f"the weights of a tagger do not fit each other: {found}")
        return cls(**{name: np.asarray(arrays[name], np.float32) for name in _SHAPES})

    def arrays(self) -> dict[str, Floats]:
        """The weights by name, as they are stored."""
        return {"w1": self.w1, "b1": self.b1, "w2": self.w2, "b2": self.b2}

    def forward(self, images: Floats) -> tuple[Floats, Floats]:
        """Images (n, h, w) in 0 to 1 → (hidden activations (n, hidden), probabilities (n, classes))."""
        flat = images.reshape(len(images), -1)
        if flat.shape[1] != len(self.w1):
            raise ArtifactError(f"images of {images.shape[1:]} do not fit a network for {len(self.w1)} pixels")
        hidden = np.maximum(flat @ self.w1 + self.b1, 0.0)
        scores = hidden @ self.w2 + self.b2
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, powers / powers.sum(axis=1, keepdims=True)


def sharpness(images: Floats) -> Floats:
    """Mean absolute Laplacian (four neighbours) of each image: (n, h, w) → (n,). Blur and dimming lower it."""
    inner = images[:, 1:-1, 1:-1]
    around = images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    measured: Floats = np.abs(4 * inner - around).mean(axis=(1, 2)).astype(np.float32)
    return measured


def observe(network: Network, images: Floats) -> dict[str, Floats]:
    """What a monitor gets to see: `probabilities` (n, classes), `embedding` (n, hidden), `sharpness` (n,)."""
    hidden, probabilities = network.forward(images)
    return {"probabilities": probabilities, "embedding": hidden, "sharpness": sharpness(images)}
