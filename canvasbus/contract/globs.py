"""Patterns of type names: drift.*, *.detected, *. Pure; whoever only asks which types are meant needs nothing else."""

from collections.abc import Collection, Iterable

OWN_TYPES = frozenset({"handler.failed", "bus.loss"})
"""The bus's own, which no pattern means: whoever wants them names them."""


def listens(event_type: str, types: Collection[str], globs: Iterable[str]) -> bool:
    """True when these names or patterns mean the type."""
    return event_type in types or (
        event_type not in OWN_TYPES and any(glob_matches(glob, event_type) for glob in globs)
    )


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
    # Row by row, since patterns come from people and a recursion has an end: for each beginning of `b`, whether some text
    # matches it and the beginning of `a` that has been looked at.
    row = [True]
    for other in b:
        row.append(other == "*" and row[-1])
    for one in a:
        above, row = row, [one == "*" and row[0]]
        for j, other in enumerate(b):
            row.append((above[j + 1] or row[j]) if "*" in (one, other) else one == other and above[j])
    return row[-1]
