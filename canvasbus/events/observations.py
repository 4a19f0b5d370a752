"""What models saw and said, and what turned out to be true."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from canvasbus.contract.event import AwareDatetime, Event
from canvasbus.contract.registry import event
from canvasbus.events.parts import ArtifactRef, Count, FloatArray, Fraction


@event("observations.recorded", key="model_name")
class ObservationsRecorded(Event):
    """A model server answered a batch of requests. Rows of all arrays belong to `item_ids`, in this order."""

    model_name: str
    """The model, by its name in the registry."""
    model_version: str = ""
    """The version that answered; a batch never mixes versions."""
    segment: str = ""
    """A part of the traffic that is watched by itself, for example a region or a client; a batch never mixes segments.
    Empty: all of it."""
    batch_id: str = ""
    """Unique for the batch: a second event with the same id is a repetition, not new data."""
    item_ids: tuple[str, ...] = ()
    """One id for each answered request; labels that come later refer to them."""
    predictions: tuple[int, ...] = ()
    """The predicted class of each item; empty for models that do not classify."""
    arrays: Mapping[str, FloatArray] = msgspec.field(default_factory=dict)
    """Name → what a monitor may look at, first axis = items: `probabilities` (n, classes), `embedding` (n, d),
    `sharpness` (n,), `aesthetic` (n,), `features` (n, k), and whatever else a model server measures. NaN: no value.
    Matrices whose name begins with `embedding`, or with more than 64 columns, are looked at as a whole."""


@event("labels.recorded", key="model_name")
class LabelsRecorded(Event):
    """People said what is true for some items, usually long after the model answered."""

    model_name: str
    """The model that answered, or is to be trained."""
    batch_id: str = ""
    """Unique for this set of labels."""
    split: Literal["train", "validation", "test"] = "train"
    """train: may be learnt from. validation: for references and acceptance. test: for judging only, never for training."""
    item_ids: tuple[str, ...] = ()
    """The labelled items, as in `observations.recorded` where a model answered them."""
    labels: tuple[int, ...] = ()
    """The true class of each item. An answer is judged once: by the last label in a batch, and by the first batch."""
    groups: tuple[str, ...] = ()
    """The original that each item was made from. Items of one original must stay on one side of every split, or the
    score measures memory. Empty: each item is its own original."""
    images: ArtifactRef | None = None
    """An .npz with the array `images` (n, height, width), float32 in 0 to 1, rows as in `item_ids`; None: labels only."""


@event("reference.registered", key="model_name")
class ReferenceRegistered(Event):
    """What a model version says on data that is known to be good. Windows are compared with all active references."""

    model_name: str
    """The model."""
    model_version: str = ""
    """The version that made the arrays; references of other versions say nothing about it."""
    reference_id: str = ""
    """Unique; immutable once registered. Empty: the drift worker takes the beginning of the sample's hash."""
    regime: str = ""
    """Which data it was made from, for example `baseline` or `retrain-2`; the same name over versions."""
    segment: str = ""
    """The segment that it describes; empty: every segment that has none of its own."""
    sample: ArtifactRef | None = None
    """An .npz with the arrays of `observations.recorded`, one row for each item, and `correct` (n,), 0 or 1, where it is
    known which rows the version classified correctly: the estimate of quality is calibrated by it."""
    columns: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Array → names of its columns; those of other arrays are called `name[0]`, `name[1]`, …"""
    categorical: tuple[str, ...] = ()
    """Columns that hold codes and no amounts. Columns of at most 32 different whole numbers are taken for such anyway."""
    items: Count = 0
    """Rows of the sample."""
    correct: Count = 0
    """How many of the rows the version classified correctly."""

    @property
    def accuracy(self) -> Fraction:
        """Share of correct rows; 0.0 when the reference is empty."""
        return self.correct / self.items if self.items else 0.0


@event("features.computed", key="entity")
class FeaturesComputed(Event):
    """A row for the feature store."""

    entity: str
    """What the features describe, for example an artwork, an artist or a model."""
    feature_set: str = ""
    """The group of features, versioned by name, for example `embedding-v2`."""
    values: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Scalar features by name."""
    vectors: Mapping[str, FloatArray] = msgspec.field(default_factory=dict)
    """Vector features by name."""
    event_time: AwareDatetime | None = None
    """The moment the features are true for; None: `occurred_on`. Point-in-time joins use it."""
