"""Libraries that only some settings need: an extra of the package brings them."""

from importlib.util import find_spec

from canvasbus.errors import ConfigError


def need_http(place: str, extra: str) -> None:
    """Raises ConfigError where httpx2 is not installed. Nothing is loaded for it. `place`: of the settings that need it."""
    if find_spec("httpx2") is None:
        raise ConfigError(f"{place} needs httpx2, which is not installed: pip install 'canvasbus[{extra}]'")
