"""The patterns of the workers' settings and of silences, one dialect for all of them: * stands for any characters, |
separates alternatives, everything else stands for itself, and capitals count. `StyleGAN-*|Pix`. Pure.

Not fnmatch: it makes regular expressions, of which one with thirty stars takes years, and a silence may come from anybody.
"""

from collections.abc import Iterable

from canvasbus.contract.globs import glob_matches, globs_overlap


def fits(pattern: str, text: str) -> bool:
    """True when one of the pattern's alternatives matches the whole text."""
    return any(glob_matches(one, text) for one in pattern.split("|"))


def fits_nothing(pattern: str, known: Iterable[str]) -> str | None:
    """The first alternative that matches none of the texts that there are, each of which may have stars in it, too. None:
    there is no such."""
    texts = tuple(known)
    return next((one for one in pattern.split("|") if not any(globs_overlap(one, text) for text in texts)), None)
