"""For model servers and training jobs: numpy arrays in, events out. No trio, nothing is published here.

    bus = Producer(source="model-server")
    bus.publish(observations("StyleGAN-Canvas-v3", version="v7", ids=ids, embedding=vectors, aesthetic=scores))
    bus.publish(labels("StyleGAN-Canvas-v3", ids=ids, truth=classes))
    bus.publish(reference("StyleGAN-Canvas-v3", "v7", regime="baseline", embedding=known, aesthetic=known_scores))

Arrays are anything that numpy takes: lists, torch tensors on the CPU. A batch travels as float32, four bytes a value, and
must fit into an event (1 MiB unless the bus is told otherwise: 500 rows of 512 dimensions); a reference may be of any
size, since its rows go to the artifact store.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from canvasbus.events import LabelsRecorded, ObservationsRecorded, ReferenceRegistered
from canvasbus_workers.artifacts import ArtifactStore, pack
from canvasbus_workers.naming import name_of

PROBABILITIES = "probabilities"


def observations(
    model_name: str,
    *,
    ids: Iterable[object],
    version: str = "",
    segment: str = "",
    batch_id: str = "",
    predictions: Any = None,
    **arrays: Any,
) -> ObservationsRecorded:
    """What a model saw and said for a batch: `ids` names the answers, each array has a row for each of them: (n,) or
    (n, k). `batch_id`: unique for the batch (default: a new one). Raises ValueError when lengths differ, and for an id
    that two answers have."""
    names = tuple(str(one) for one in ids)
    if (twice := repeated(names)) is not None:
        raise ValueError(f"ids: {twice!r} is there twice, and labels could not tell which answer they are about")
    classes = () if predictions is None else tuple(np.asarray(predictions).tolist())
    if predictions is not None and len(classes) != len(names):
        raise ValueError(f"predictions: {len(classes)} of them for {len(names)} ids")
    return ObservationsRecorded(
        model_name=model_name,
        model_version=version,
        segment=segment,
        batch_id=batch_id or uuid.uuid4().hex,
        item_ids=names,
        predictions=classes,
        arrays={name: pack(_checked(name, array, len(names))) for name, array in sorted(arrays.items())},
    )


def labels(
    model_name: str, *, ids: Iterable[object], truth: Any, split: Any = "test", batch_id: str = ""
) -> LabelsRecorded:
    """What is true for some answers, by the ids of `observations`. Only labels of the split "test" judge a model."""
    names, classes = tuple(str(one) for one in ids), tuple(np.asarray(truth).tolist())
    if len(names) != len(classes):
        raise ValueError(f"truth: {len(classes)} labels for {len(names)} ids")
    return LabelsRecorded(
        model_name=model_name, batch_id=batch_id or uuid.uuid4().hex, split=split, item_ids=names, labels=classes
    )


def reference(
    model_name: str,
    version: str = "",
    *,
    regime: str = "baseline",
    segment: str = "",
    correct: Any = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    categorical: Sequence[str] = (),
    store: ArtifactStore | None = None,
    **arrays: Any,
) -> ReferenceRegistered:
    """What the version says on data that is known to be good. The rows are written into the artifact store (default: the
    folder of ARTIFACT_ROOT), which the drift workers must be able to read. `correct` (n,): which rows it answered
    rightly. `columns`: array → names of its columns; `categorical`: names of columns that hold codes. Raises ValueError
    when lengths differ, and for names of what is not there; TypeError for a text where a list of names is wanted."""
    for what, names in (
        ("categorical", categorical),
        *((f"columns[{name!r}]", of) for name, of in (columns or {}).items()),
    ):
        if isinstance(names, str):
            raise TypeError(f"{what}: a list of names is wanted, like [{names!r}], not {names!r}")
    lengths = {len(np.asarray(array)) for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"a reference needs arrays with a row for each item, these have {sorted(lengths)} rows")
    rows = lengths.pop()
    sample = {name: _checked(name, array, rows) for name, array in arrays.items()}
    if columns or categorical:
        # It brings scipy, which model servers, who publish batches and seldom a reference, need not wait for.
        from canvasbus_workers.monitoring.reference import check_names

        check_names(sample, columns or {}, categorical)
    if correct is not None:
        sample["correct"] = _checked("correct", correct, rows)
    ref = (store or ArtifactStore()).put(sample)
    return ReferenceRegistered(
        model_name=model_name,
        model_version=version,
        segment=segment,
        reference_id=name_of(model_name, version, *([segment] if segment else []), regime, ref.sha256[:12]),
        regime=regime,
        sample=ref,
        items=0 if correct is None else rows,
        correct=0 if correct is None else int(np.asarray(correct).astype(bool).sum()),
        columns={name: tuple(names) for name, names in (columns or {}).items()},
        categorical=tuple(categorical),
    )


def repeated(ids: Sequence[str]) -> str | None:
    """An id that is there more than once; None: each is its own."""
    if len(set(ids)) == len(ids):
        return None
    return next(name for name, times in Counter(ids).items() if times > 1)


def _checked(name: str, array: Any, rows: int) -> Any:
    plain = np.asarray(array)
    if plain.ndim not in (1, 2) or len(plain) != rows:
        raise ValueError(f"{name} has the shape {plain.shape}: use ({rows},) or ({rows}, k)")
    if name == PROBABILITIES and (plain.ndim == 1 or plain.shape[1] < 2):
        raise ValueError(
            f"{name} has the shape {plain.shape}: use ({rows}, classes), one column for each of two or more"
        )
    try:
        return plain.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} has values that are no numbers ({error}): give categories as whole numbers") from None
