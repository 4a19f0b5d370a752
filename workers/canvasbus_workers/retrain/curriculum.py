"""What a training learns from, and whether one should start. No I/O, no model.

    base      the first labelled images: the regime `baseline`
    recent    labelled images that came later, newest last
    regimes   what each training was started for: the newest batches at that time, kept for all later trainings. When the
              same episode asks again, the first training did not help enough, and its regime grows by what has come since

At most one training is in flight, and another starts only when enough new labels have come since: the same images give
the same model. Counting labels instead of seconds makes the cooldown right for a model with a million requests an hour
and for one with ten.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

from canvasbus_workers.retrain.training import Examples, split, together

BASELINE = "baseline"
COOLDOWN_ITEMS = 70
"""New labelled items that a training waits for."""
NEWEST = (3, 16)
"""Labelled batches that a regime is made of: at least and at most. (Measured on images turned by 40°: .78 to .88 with 3
batches of 50, .86 to .92 with 8, .88 to .94 with 12. Labels are what limits accuracy there, not the model.)"""
DESCRIBES = 6
"""Newest batches whose held-out images become the regime's reference: what it is like now, not on its way here."""
KEPT_REGIMES = 3
"""Besides the baseline. Each costs the drift worker one comparison a window."""


@dataclass(frozen=True)
class Start:
    """Train now."""

    version: str
    regime: str
    previous: str


@dataclass(frozen=True)
class Not:
    """Do not, and why."""

    why: str


class Curriculum:
    """The labelled images of one model."""

    def __init__(self) -> None:
        self.test: set[str] = set()
        """Originals that are judged by. They are never trained on."""
        self.in_flight: str = ""
        """The version that is being trained; empty: none."""
        self.serving: str = ""
        """The version promoted last."""
        self._versions = 0
        self._fresh = 0
        self._episode = ""
        self._newest = 0
        """Batches in the newest regime, and those that have come since."""
        self._recent: deque[Examples] = deque(maxlen=NEWEST[1])
        self._regimes: OrderedDict[str, tuple[Examples, Examples]] = OrderedDict()
        self._base: dict[str, Examples] = {}
        self._seen: set[str] = set()

    # --- labels come in ------------------------------------------------------------------------------------------

    def add(self, batch_id: str, kind: str, examples: Examples) -> None:
        """Labelled images of the split `train` or `validation`. A batch that comes again changes nothing."""
        if batch_id in self._seen:
            return
        self._seen.add(batch_id)
        if kind not in self._base and not self._versions:
            self._base[kind] = examples
        elif kind == "train":
            self._recent.append(examples)
            self._newest += 1
            self._fresh += len(examples)

    def judge_by(self, groups: tuple[str, ...]) -> None:
        """These originals are in a test split."""
        self.test.update(groups)

    @property
    def ready(self) -> bool:
        """There is something to learn from."""
        return "train" in self._base

    # --- deciding ------------------------------------------------------------------------------------------------

    def decide(self, windows: int = 0, episode_id: str = "") -> Start | Not:
        """Start a training? `windows`: how many of the newest batches show the new regime, as far as is known.
        `episode_id`: what it is for; asking again for the same one teaches the same regime with more images."""
        if self.in_flight:
            return Not(f"{self.in_flight} is being trained")
        if not self.ready:
            return Not("no labelled images have come yet")
        if not self._versions:
            regime = BASELINE
        else:
            if self._fresh < COOLDOWN_ITEMS:
                return Not(f"cooldown: {self._fresh} of {COOLDOWN_ITEMS} new labels")
            again = bool(self._regimes) and episode_id != "" and episode_id == self._episode
            regime = next(reversed(self._regimes)) if again else f"retrain-{self._versions}"
            count = min(max(self._newest if again else windows, NEWEST[0]), NEWEST[1])
            self._episode, self._newest = episode_id, count
            newest = list(self._recent)[-count:]
            self._regimes[regime] = split(together(newest))[0], split(together(newest[-DESCRIBES:]))[1]
            while len(self._regimes) > KEPT_REGIMES:
                self._regimes.popitem(last=False)
        self._versions += 1
        self._fresh = 0
        self.in_flight = f"v{self._versions}"
        return Start(self.in_flight, regime, self.serving)

    def finished(self, version: str, *, promoted: bool) -> None:
        """The training has ended."""
        if self.in_flight == version:
            self.in_flight = ""
        if promoted:
            self.serving = version

    # --- what is learnt from -------------------------------------------------------------------------------------

    def training(self) -> Examples:
        """All regimes that are kept. The newest one counts twice: it has few images and is what must be learnt now."""
        parts = [train for train, _ in self._regimes.values()]
        return together([self._base_split()[0], *parts, *parts[-1:], *parts[-1:]])

    def validation(self) -> dict[str, Examples]:
        """Regime → images that are in no training, for acceptance and for references."""
        held = {BASELINE: self._base_split()[1]}
        held.update((regime, validation) for regime, (_, validation) in self._regimes.items())
        return {regime: examples for regime, examples in held.items() if len(examples)}

    def _base_split(self) -> tuple[Examples, Examples]:
        if "validation" in self._base:
            return self._base["train"], self._base["validation"]
        return split(self._base["train"])

    def __repr__(self) -> str:
        return f"<Curriculum serving {self.serving or 'nothing'}, {list(self._regimes)}, {self._fresh} new labels>"
