"""Patterns of type names: drift.*, *.detected, *. Pure; whoever only asks which types are meant needs nothing else."""

import functools


def glob_matches(pattern: str, text: str) -> bool:
    """True when `pattern`, in which * stands for any characters, matches the whole text. In one pass: a regular expression
    of thirty stars, which a stranger may have declared, would take years."""
    first, *middle = pattern.split("*")
    if not middle:
        return pattern == text
    last = middle.pop()
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in middle:
        at = text.find(part, at, end) + len(part)
        if at < len(part):
            return False
    return True


def globs_overlap(a: str, b: str) -> bool:
    """True when some text matches both patterns."""

    @functools.cache
    def meet(i: int, j: int) -> bool:
        if i == len(a) and j == len(b):
            return True
        if i < len(a) and a[i] == "*":
            return meet(i + 1, j) or (j < len(b) and meet(i, j + 1))
        if j < len(b) and b[j] == "*":
            return meet(i, j + 1) or (i < len(a) and meet(i + 1, j))
        return i < len(a) and j < len(b) and a[i] == b[j] and meet(i + 1, j + 1)

    return meet(0, 0)
