"""Opens and resolves incidents, and tells people."""

from canvasbus_workers.alerts.handlers import worker

__all__ = ["worker"]
