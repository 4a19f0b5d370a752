"""The domain's vocabulary: one event, one meaning. Above the machinery, which never imports it.

    observations.recorded  labels.recorded  reference.registered  features.computed        what was seen, and what is true
    window.evaluated  drift.detected  drift.resolved  data_quality.violated                what monitors found
    metric.reported  metric.threshold_breached  metric.recovered                           numbers and their bounds
    incident.opened  incident.resolved  silence.added  silence.expired                     what people are told, or not
    retrain.requested  .proposed  .rejected  .started  .succeeded  .failed  model.promoted what is done about it

Almost everything has a default, so that a small producer publishes what it knows and no more. Models, images and
reference samples travel as an ArtifactRef, never inside an event.
"""

from canvasbus.contract.bus_events import BusLoss, HandlerFailed
from canvasbus.events.drift import DataQualityViolated, DriftDetected, DriftResolved, FeatureDrift, WindowEvaluated
from canvasbus.events.incidents import IncidentOpened, IncidentResolved, SilenceAdded, SilenceExpired
from canvasbus.events.metrics import MetricRecovered, MetricReported, MetricThresholdBreached
from canvasbus.events.observations import (
    FeaturesComputed,
    LabelsRecorded,
    ObservationsRecorded,
    ReferenceRegistered,
)
from canvasbus.events.parts import ArtifactRef, Count, FloatArray, Fraction, NonNegative, Severity, Sha256
from canvasbus.events.training import (
    ModelPromoted,
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
)

__all__ = [
    "ArtifactRef",
    "BusLoss",
    "Count",
    "DataQualityViolated",
    "DriftDetected",
    "DriftResolved",
    "FeatureDrift",
    "FeaturesComputed",
    "FloatArray",
    "Fraction",
    "HandlerFailed",
    "IncidentOpened",
    "IncidentResolved",
    "LabelsRecorded",
    "MetricRecovered",
    "MetricReported",
    "MetricThresholdBreached",
    "ModelPromoted",
    "NonNegative",
    "ObservationsRecorded",
    "ReferenceRegistered",
    "RetrainFailed",
    "RetrainProposed",
    "RetrainRejected",
    "RetrainRequested",
    "RetrainStarted",
    "RetrainSucceeded",
    "Severity",
    "Sha256",
    "SilenceAdded",
    "SilenceExpired",
    "WindowEvaluated",
]
