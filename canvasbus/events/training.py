"""Retraining, from the wish to the promoted model."""

from collections.abc import Mapping

import msgspec

from canvasbus.contract.event import Event
from canvasbus.contract.registry import event
from canvasbus.events.parts import ArtifactRef, Count, NonNegative


@event("retrain.requested", key="model_name")
class RetrainRequested(Event):
    """Somebody, or a rule, wants a new version of a model, or approves one that was proposed. Asking again for an episode
    whose training waits or runs starts no other one."""

    model_name: str
    """The model."""
    reason: str = ""
    """One line for a person."""
    episode_id: str = ""
    """What it is for; requests with the same id are one request. Empty: the event's own correlation."""
    requested_by: str = ""
    """A person or a rule."""
    proposal_id: str = ""
    """The `retrain.proposed` that this approves; empty: it asks for one of its own."""


@event("retrain.proposed", key="model_name")
class RetrainProposed(Event):
    """A retraining that waits for a person: a `retrain.requested` or `retrain.rejected` with its `proposal_id` answers it."""

    model_name: str
    """The model."""
    reason: str = ""
    """Why."""
    episode_id: str = ""
    """What it is for."""
    estimated_seconds: NonNegative | None = None
    """How long it will probably take; None: unknown."""
    labelled_items: Count = 0
    """Labelled items that have come since the last training."""
    proposal_id: str = ""
    """What an answer names."""


@event("retrain.rejected", key="model_name")
class RetrainRejected(Event):
    """A retraining that was proposed will not take place."""

    model_name: str
    """The model."""
    proposal_id: str = ""
    """As in `retrain.proposed`."""
    episode_id: str = ""
    """As in `retrain.proposed`."""
    rejected_by: str = ""
    """A person, or the worker that had proposed it."""
    reason: str = ""
    """Why, in one line."""


@event("retrain.started", key="model_name")
class RetrainStarted(Event):
    """A training run has been decided on; at most one is in flight for a model."""

    model_name: str
    """The model."""
    run_id: str = ""
    """The same until `retrain.succeeded` or `retrain.failed`."""
    model_version: str = ""
    """The version it will make."""
    reason: str = ""
    """One line for a person."""
    episode_id: str = ""
    """What it is for."""
    fence: Count = 0
    """Grows with each run of a model: whoever serves or stores models refuses what has a smaller one than they have seen.
    0: not known."""
    windows: Count = 0
    """How many of the newest windows show what it is for; 0: not known."""


@event("retrain.succeeded", key="model_name")
class RetrainSucceeded(Event):
    """A training run has made a model. Whether it is used is said by `model.promoted`."""

    model_name: str
    """The model."""
    run_id: str = ""
    """As in `retrain.started`."""
    model_version: str = ""
    """The new version."""
    model: ArtifactRef | None = None
    """The weights."""
    manifest: ArtifactRef | None = None
    """An .npz that lists what it was trained on: `train_groups` and `validation_groups`, arrays of str."""
    train_items: Count = 0
    """Items it was fitted on."""
    duration: NonNegative = 0.0
    """Seconds of training."""
    metrics: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Measured on validation items, by name: `accuracy`, `accuracy:<regime>`, and the old version's `previous:accuracy`."""
    fence: Count = 0
    """Grows with each run of a model: whoever serves or stores models refuses what has a smaller one than they have seen.
    0: not known."""


@event("retrain.failed", key="model_name")
class RetrainFailed(Event):
    """A training run ended without a model that may be used."""

    model_name: str
    """The model."""
    run_id: str = ""
    """As in `retrain.started`."""
    model_version: str = ""
    """The version that it would have made."""
    error: str = ""
    """The reason, in one line."""
    duration: NonNegative = 0.0
    """Seconds until it failed."""
    fence: Count = 0
    """Grows with each run of a model: whoever serves or stores models refuses what has a smaller one than they have seen.
    0: not known."""


@event("model.promoted", key="model_name")
class ModelPromoted(Event):
    """Model servers are to answer with this version from now on."""

    model_name: str
    """The model."""
    model_version: str = ""
    """The version to serve."""
    model: ArtifactRef | None = None
    """The weights; None: the model server knows where they are."""
    previous_version: str = ""
    """What it replaces; empty: it is the first."""
    run_id: str = ""
    """The training run that made it; empty: none on this bus."""
    fence: Count = 0
    """Grows with each run of a model: whoever serves or stores models refuses what has a smaller one than they have seen.
    0: not known."""
