"""What the tagger touches: the artifact store, and in it one small file for each model that says what is served.

The file is what makes several tagger processes one service: model.promoted reaches one process of the group, and the
others see the file change. It is also what a restarted process begins with.
"""

import threading
from pathlib import Path
from urllib.parse import quote

import msgspec

from canvasbus.events import ModelPromoted
from canvasbus_workers.artifacts import ArtifactError, ArtifactStore, Floats
from canvasbus_workers.tagger.events import ImagesSubmitted
from canvasbus_workers.tagging import Network


class Shelf:
    """The models in service."""

    def __init__(self, store: ArtifactStore | None = None) -> None:
        self.store = store or ArtifactStore()
        self._loaded: dict[str, tuple[bytes, str, Network]] = {}
        self._lock = threading.Lock()

    def adopt(self, promoted: ModelPromoted) -> None:
        """Serve this version from now on. Raises ArtifactError, and goes on with the old one, when it cannot be loaded."""
        if promoted.model is None:
            raise ArtifactError(f"model.promoted {promoted.model_version} names no weights")
        Network.from_arrays(self.store.load(promoted.model))
        path = self._path(promoted.model_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            draft = path.with_suffix(f".{threading.get_ident()}.draft")
            draft.write_bytes(msgspec.json.encode(promoted))
            draft.replace(path)

    def current(self, model_name: str) -> tuple[str, Network] | None:
        """(version, network) in service; None before the first promotion."""
        try:
            said = self._path(model_name).read_bytes()
        except FileNotFoundError:
            return None
        with self._lock:
            kept = self._loaded.get(model_name)
            if kept is None or kept[0] != said:
                promoted = msgspec.json.decode(said, type=ModelPromoted)
                assert promoted.model is not None
                kept = said, promoted.model_version, Network.from_arrays(self.store.load(promoted.model))
                self._loaded[model_name] = kept
        return kept[1], kept[2]

    def images(self, submitted: ImagesSubmitted) -> Floats:
        """The submitted images (n, h, w). Raises ArtifactError when they are missing or not as many as the ids."""
        if submitted.images is None:
            raise ArtifactError(f"batch {submitted.batch_id}: no images")
        images = self.store.load(submitted.images).get("images")
        if images is None or images.ndim != 3 or len(images) != len(submitted.item_ids):
            found = None if images is None else images.shape
            raise ArtifactError(f"batch {submitted.batch_id}: {len(submitted.item_ids)} ids, images of shape {found}")
        return images

    def _path(self, model_name: str) -> Path:
        return self.store.root / "serving" / f"{quote(model_name, safe='')}.json"
