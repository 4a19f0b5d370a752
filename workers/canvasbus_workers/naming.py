"""Names made of users' words: of a state, a timer, an episode, a run. One function, so that there is one rule.

A model may be called `org/style` and a segment `eu/1`; joined as they are, two models would share an episode, a window or,
where a name was cut to the bus's 500 characters, the fence that keeps an old run from promoting. Percent-encoding was the
alternative: shorter for one slash, of no help for what is long, and undone by programs that decode what looks encoded.
"""

from hashlib import blake2b

LONGEST = 200
"""Characters of a name. The bus takes 500; what hangs something on a name has the rest."""
MARK = "~"
_DIGEST = 12
"""Bytes. Among a billion names the odds that two share one are one in a hundred billion."""


def name_of(*parts: str, by: str = "/", longest: int = LONGEST) -> str:
    """The parts joined by `by`, as they are where that can be read in one way only: all of it printable, without `by` and
    `~` in a part, at most `longest` characters. Else with `_` in the place of such characters, cut, and after a `~` a digest of
    the parts. Different parts never have the same name: one without a digest has no `~`, and can be split again."""
    plain = by.join(parts)
    if len(plain) <= longest and plain.isprintable() and not any(by in part or MARK in part for part in parts):
        return plain
    digest = blake2b(repr(parts).encode(), digest_size=_DIGEST).hexdigest()
    shown = by.join("".join(_shown(one, by) for one in part[:longest]) for part in parts)
    return f"{shown[: longest - 1 - len(digest)]}{MARK}{digest}"


def _shown(character: str, by: str) -> str:
    return character if character.isprintable() and character not in (by, MARK) else "_"
