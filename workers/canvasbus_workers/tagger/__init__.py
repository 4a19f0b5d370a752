"""Serves the style tagger: a model server that consumes image batches and publishes what it saw and said."""

from canvasbus_workers.tagger.events import ImagesSubmitted
from canvasbus_workers.tagger.handlers import worker

__all__ = ["ImagesSubmitted", "worker"]
