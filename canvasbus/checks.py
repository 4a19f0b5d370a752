"""What is passed to us is looked at here, where an error can still say whose move is next."""

import math
import re
from numbers import Integral, Real

from canvasbus.errors import ConfigError, ContractError

_SURROGATES = re.compile("[\ud800-\udfff]")


def check_number(
    name: str,
    value: object,
    *,
    whole: bool = False,
    least: float = -math.inf,
    error: type[Exception] = ConfigError,
) -> None:
    """Raise `error` for what is no number: "4" and "64MiB" would fail somewhere inside, with words about Python. And for
    one below `least`."""
    what = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise error(f"{name}={value!r}: {what} is wanted, not a {type(value).__name__}")
    if value != value:
        raise error(f"{name}={value!r}: {what} is wanted")
    if value < least:
        raise error(f"{name}={value!r}: use a number from {least:g}")


def check_flag(name: str, value: object) -> None:
    """Raise ConfigError for what is neither True nor False: "no" would count as a yes."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: True or False is wanted")


def check_function(name: str, value: object) -> None:
    """Raise ContractError for what nobody can call: it would fail at the first event, and not say where it came from."""
    if not callable(value):
        raise ContractError(f"{name}={value!r}: a function is wanted")


def has_surrogates(text: str) -> bool:
    """Whether UTF-8 cannot carry a text."""
    return _SURROGATES.search(text) is not None


def is_label(name: object) -> bool:
    """Whether a handler may name something so (a state, a part, a timer): 1 to 500 characters, no lone surrogates, which
    UTF-8 cannot carry."""
    return isinstance(name, str) and 0 < len(name) <= 500 and not has_surrogates(name)
