"""The programs: `canvasbus` and `canvasbus-worker`."""
