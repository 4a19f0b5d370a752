"""Arrays by reference: what is stored is what is loaded, and nothing else is."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import canvasbus_workers.artifacts as artifacts
from canvasbus.events import ArtifactRef, FloatArray
from canvasbus_workers.artifacts import ArtifactError, ArtifactStore, pack, unpack


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An empty store."""
    return ArtifactStore(tmp_path / "store")


def written(path: Path, data: bytes) -> ArtifactRef:
    """Bytes that somebody else put there, with their true digest."""
    path.write_bytes(data)
    return ArtifactRef(uri=path.as_uri(), sha256=hashlib.sha256(data).hexdigest())


def test_what_is_put_is_loaded(store: ArtifactStore) -> None:
    """Arrays of every plain kind come back equal, by name."""
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(["x", "yy"]), "c": np.zeros((0, 3), int)}
    loaded = store.load(store.put(arrays))
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert np.array_equal(loaded[name], array)


def test_putting_again_changes_nothing(store: ArtifactStore) -> None:
    """Equal arrays give the equal reference, whatever order they are named in, and one file without drafts beside it."""
    a, b = np.ones(3), np.zeros(2)
    first = store.put({"a": a, "b": b})
    before = os.stat(store.root / f"{first.sha256}.npz").st_mtime_ns
    assert store.put({"b": b, "a": a}) == first
    assert [path.name for path in store.root.iterdir()] == [f"{first.sha256}.npz"]
    assert os.stat(store.root / f"{first.sha256}.npz").st_mtime_ns == before
    assert first.size == (store.root / f"{first.sha256}.npz").stat().st_size


def test_a_damaged_file_is_refused(store: ArtifactStore) -> None:
    """One flipped bit is an error that names both digests."""
    ref = store.put({"a": np.ones(100)})
    path = store.root / f"{ref.sha256}.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"the event says {ref.sha256}"):
        store.load(ref)


def test_too_big_is_refused_before_it_is_read(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file above the limit is not read; the limit itself is allowed."""
    ref = store.put({"a": np.ones(100)})
    monkeypatch.setattr(artifacts, "MAX_BYTES", ref.size)
    store.load(ref)
    monkeypatch.setattr(artifacts, "MAX_BYTES", ref.size - 1)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(ArtifactError, match="larger than"):
        store.load(ref)


@pytest.mark.parametrize("uri", ["s3://bucket/key", "http://host/x.npz", "/etc/passwd", "file://elsewhere/x.npz", ""])
def test_only_local_files_are_read(store: ArtifactStore, uri: str) -> None:
    """Another scheme, another host or a bare path is refused by name."""
    with pytest.raises(ArtifactError, match="file:// artifacts only"):
        store.load(ArtifactRef(uri=uri, sha256="0" * 64))


def test_a_missing_file_is_an_error(store: ArtifactStore, tmp_path: Path) -> None:
    """It names the URI and what the system says."""
    with pytest.raises(ArtifactError, match=r"nothing\.npz cannot be read: No such file"):
        store.load(ArtifactRef(uri=(tmp_path / "nothing.npz").as_uri(), sha256="0" * 64))


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return open, (str(self.path), "w")


def test_pickle_is_never_loaded(store: ArtifactStore, tmp_path: Path) -> None:
    """Neither a pickle nor an .npz with a pickled array inside runs code, even with the right digest."""
    fuse = tmp_path / "exploded"
    buffer = io.BytesIO()
    np.savez(buffer, images=np.array([Bomb(fuse)], dtype=object))
    for name, data in (("a.npz", buffer.getvalue()), ("b.npz", pickle.dumps(Bomb(fuse))), ("c.npz", b"no archive")):
        with pytest.raises(ArtifactError, match=r"not an \.npz of plain arrays"):
            store.load(written(tmp_path / name, data))
    assert not fuse.exists()
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        store.put({"a": np.array([Bomb(fuse)], dtype=object)})


def test_the_root_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARTIFACT_ROOT, asked for when it is needed; without it a folder in the temporary one."""
    store = ArtifactStore()
    monkeypatch.setenv("ARTIFACT_ROOT", str(tmp_path / "x"))
    assert store.root == tmp_path / "x"
    monkeypatch.setenv("ARTIFACT_ROOT", " ")
    assert store.root.name == "canvasbus-artifacts"


def test_packed_arrays() -> None:
    """float32 survives packing in any shape and memory order; bytes that do not fit the shape are refused."""
    array = np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3) / 3)
    assert np.array_equal(unpack(pack(array)), array.astype(np.float32))
    assert unpack(pack(np.zeros((0, 4)))).shape == (0, 4)
    for shape, data in (((2,), b"1234"), ((1,), b"12345"), ((1, 2), b"1234")):
        with pytest.raises(ArtifactError, match="no float32 array"):
            unpack(FloatArray(shape=shape, data=data))
