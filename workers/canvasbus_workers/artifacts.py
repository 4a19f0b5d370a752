"""Arrays by reference: .npz files named by their SHA-256, verified on every load.

Content addressing makes writing idempotent (a handler that runs twice writes the same file), makes a reference
immutable, and turns a damaged or replaced file into an error instead of a model that answers differently. Pickle is
never used, because loading one runs code: an event must not be able to do that to a worker.

The root is a folder that all workers see: the environment variable ARTIFACT_ROOT, else `canvasbus-artifacts` in the
temporary folder. Another store (S3, GCS) is another class with these two methods.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from canvasbus.events import ArtifactRef, FloatArray

MEDIA_TYPE = "application/x-npz"
MAX_BYTES = 256 * 1024 * 1024
"""An artifact above this size is refused before it is read: the reference came in an event, from anybody."""

Floats = npt.NDArray[np.float32]


class ArtifactError(Exception):
    """The artifact is missing, too big, damaged, or not what the event says it is."""


class ArtifactStore:
    """Files in one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The folder. Asked for when it is used: a store that is made at import looks at nothing."""
        return self._root or default_root()

    def put(self, arrays: Mapping[str, npt.NDArray[Any]]) -> ArtifactRef:
        """Store arrays by name and return the reference. Equal arrays give the equal reference."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        path = self.root / f"{digest}.npz"
        if not path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            # Renamed into place: a reader sees the whole file or none, also when the writer is killed in between.
            with tempfile.NamedTemporaryFile(dir=self.root, prefix=".", delete=False) as draft:
                draft.write(data)
            Path(draft.name).replace(path)
        return ArtifactRef(uri=path.absolute().as_uri(), sha256=digest, size=len(data), media_type=MEDIA_TYPE)

    def load(self, ref: ArtifactRef) -> dict[str, npt.NDArray[Any]]:
        """The arrays behind a reference, by name.

        Raises ArtifactError when there is no such file, it is above 256 MiB, or its digest is not the stated one.
        """
        parts = urlsplit(ref.uri)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise ArtifactError(f"{ref.uri}: this worker reads file:// artifacts only")
        path = Path(unquote(parts.path))
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ArtifactError(f"{ref.uri} is larger than {MAX_BYTES} bytes")
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{ref.uri} cannot be read: {error.strerror}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != ref.sha256:
            raise ArtifactError(f"{ref.uri} has the digest {found}, the event says {ref.sha256}: damaged or replaced")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:
            raise ArtifactError(f"{ref.uri} is not an .npz of plain arrays: {error}") from error

    def __repr__(self) -> str:
        return f"<ArtifactStore {self.root}>"


def default_root() -> Path:
    """The folder of ARTIFACT_ROOT, else one in the temporary folder."""
    given = os.environ.get("ARTIFACT_ROOT", "").strip()
    return Path(given) if given else Path(tempfile.gettempdir()) / "canvasbus-artifacts"


def pack(array: npt.NDArray[Any]) -> FloatArray:
    """The array as float32 for an event."""
    plain = np.ascontiguousarray(array, dtype="<f4")
    return FloatArray(shape=plain.shape, data=plain.tobytes())


def unpack(packed: FloatArray) -> Floats:
    """The array of an event, read-only. Raises ArtifactError when bytes and shape do not fit each other."""
    try:
        return np.frombuffer(packed.data, dtype="<f4").reshape(packed.shape)
    except ValueError as error:
        raise ArtifactError(f"{len(packed.data)} bytes are no float32 array of shape {packed.shape}") from error
