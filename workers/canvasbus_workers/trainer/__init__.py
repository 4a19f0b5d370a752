"""Trains the tagger's models: keeps labelled images, and answers retrain.started with what came of it. The demo's."""

from canvasbus_workers.trainer.handlers import worker

__all__ = ["worker"]
