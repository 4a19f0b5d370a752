"""Trains the tagger again when its quality breaks, and promotes the new version when it is better."""

from canvasbus_workers.retrain.handlers import worker

__all__ = ["worker"]
