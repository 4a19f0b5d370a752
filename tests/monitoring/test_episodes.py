"""From flags to episodes."""

from random import Random

import msgspec
import pytest

from canvasbus_workers.monitoring import Episode, Policy

LETTERS = {"opened": "o", "escalated": "e", "reminded": "m", "resolved": "r", None: " "}


def told(flags: str, policy: Policy = Policy(), effects: dict[int, float] | None = None) -> str:
    """x: flagged, .: clean, -: neither."""
    episode, out = Episode(), ""
    for number, flag in enumerate(flags):
        effect = (effects or {}).get(number, 0.3)
        out += LETTERS[episode.feed(number, flagged=flag == "x", calm=flag == ".", effect=effect, policy=policy)]
        episode = msgspec.msgpack.decode(msgspec.msgpack.encode(episode), type=Episode)  # as between two workers
    return out


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ("..........", "          "),
        (".x..x..x..", "          "),
        (".x.x......", "   o  r    "[:10]),
        (".xx.......", "  o  r    "),
        (".xxxxx...x", "  o     r "),
        ("xx..x..x...", " o        r"),
        ("xx..-..-...", " o        r"),
        ("x---------", "          "),
        ("xx...xx...", " o  r o  r"),
    ],
)
def test_two_of_three_flags_open_and_three_clean_in_a_row_resolve(flags: str, changes: str) -> None:
    """One flag is nothing; what is neither flagged nor clean opens nothing and ends nothing."""
    assert told(flags) == changes


def test_states() -> None:
    """ok, suspect, drifting, resolving, and back; the first flagged window is remembered."""
    episode, states = Episode(), []
    for number, flag in enumerate(".x.xx..x..."):
        episode.feed(number, flagged=flag == "x", calm=flag == ".", effect=1.0, policy=Policy())
        states.append(episode.state[0])
    assert "".join(states) == "ossddrrdrro"
    assert (episode.first, episode.opened) == (1, 1)


def test_a_doubled_effect_escalates_once() -> None:
    """Told again when the effect is twice what was told last; not for every window in between."""
    assert told("xxxxxx", effects={2: 0.5, 3: 0.7, 4: 0.9, 5: 1.5}) == " o e e"


def test_reminders_come_at_their_distance() -> None:
    """Every so many windows while nothing new is told; never with 0."""
    assert told("x" * 12, Policy(repeat_windows=5)) == " o    m    m"
    assert told("x" * 60, Policy(repeat_windows=0)).strip() == "o"


@pytest.mark.parametrize("seed", range(5))
def test_changes_alternate(seed: int) -> None:
    """Over random verdicts: an episode that was opened is resolved before the next one, and told of only in between."""
    random = Random(seed)
    found = [
        c for c in told("".join(random.choice("xx.--..") for _ in range(2000)), Policy(repeat_windows=9)) if c != " "
    ]
    ends = [c for c in found if c in "or"]
    assert len(ends) > 20
    assert all(c == "or"[at % 2] for at, c in enumerate(ends))
    assert "".join(found).replace("r", "|").find("|e") == -1
