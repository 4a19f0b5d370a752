"""A token bucket: each notification to a destination takes a token, and they come back evenly. Pure."""

from msgspec import Struct

from canvasbus_workers.alerts.settings import Settings

WHOLE = 1 - 1e-6
"""A token, but for what sums of floats lack."""


class Bucket(Struct, array_like=True):
    """That of one destination."""

    tokens: float
    at: float
    """When there were so many, in seconds since 1970."""
    empty_until: float = 0.0
    """When there is a token again, for those who look; 0: there is one."""

    def take(self, now: float, settings: Settings) -> bool:
        """Take a token. False: there is none."""
        gained = max(0.0, now - self.at) * settings.rate_per_minute / 60
        self.tokens, self.at = min(settings.burst, self.tokens + gained), max(now, self.at)
        taken = self.tokens >= WHOLE
        self.tokens -= taken
        self.empty_until = 0.0 if self.tokens >= WHOLE else self.next_at(settings)
        return taken

    def next_at(self, settings: Settings) -> float:
        """When there is a token again."""
        return self.at + (1 - self.tokens) * 60 / settings.rate_per_minute
