"""Watches what models see and say: windows of observations against references, late labels against what was promised."""

from canvasbus_workers.drift.handlers import worker

__all__ = ["worker"]
