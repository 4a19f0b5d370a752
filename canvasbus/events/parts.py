"""Pieces that several events share: bounded numbers, packed arrays, references to what is too big for an event."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]
"""How many; never negative."""

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
"""A share, probability, p-value or accuracy: 0 to 1."""

NonNegative = Annotated[float, Meta(ge=0.0)]
"""A distance, a duration in seconds or another amount that has no sign."""

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", examples=["0" * 63 + "1"])]
"""A SHA-256 in lower-case hexadecimal."""

Severity = Literal["info", "warning", "critical"]
"""info: significant but small; warning: somebody should look; critical: quality is known to suffer, act now."""


class FloatArray(Struct, frozen=True, kw_only=True):
    """A dense array of float32, packed: a tenth of the size and a hundredth of the decoding time of nested tuples."""

    shape: tuple[Count, ...]
    """Length of each axis; the product times four is the length of `data`."""
    data: bytes
    """The elements in C order, little-endian IEEE 754 float32."""


class ArtifactRef(Struct, frozen=True, kw_only=True):
    """Something that is too big for an event: models, images, reference samples. Whoever loads it checks the digest."""

    uri: str
    """Where it lies, for example `file:///srv/artifacts/3f2a….npz` or `s3://bucket/key`."""
    sha256: Sha256
    """Digest of the stored bytes."""
    size: Count = 0
    """Bytes; 0: not stated."""
    media_type: str = ""
    """What it is, for example `application/x-npz`; empty: not stated."""
