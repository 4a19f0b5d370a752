"""What a training learns from. No I/O, no model. When one starts is the retrain worker's business.

base      the first labelled images: the regime `baseline`
recent    labelled images that came later, newest last
regimes   what each training was started for: the newest batches at that time, kept for all later trainings. When the
          same episode asks again, the first training did not help enough, and its regime grows by what has come since
"""

from collections import OrderedDict, deque

from canvasbus_workers.trainer.training import Examples, split, together

BASELINE = "baseline"
NEWEST = (3, 16)
"""Labelled batches that a regime is made of: at least and at most. (Measured on images turned by 40°: .78 to .88 with 3
batches of 50, .86 to .92 with 8, .88 to .94 with 12. Labels are what limits accuracy there, not the model.)"""
DESCRIBES = 6
"""Newest batches whose held-out images become the regime's reference: what it is like now, not on its way here."""
KEPT_REGIMES = 3
"""Besides the baseline. Each costs the drift worker one comparison a window."""


class Curriculum:
    """The labelled images of one model."""

    def __init__(self) -> None:
        self.test: set[str] = set()
        """Originals that are judged by. They are never trained on."""
        self._begun: dict[str, str] = {}
        """Run → its regime."""
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
        if kind not in self._base and not self._begun:
            self._base[kind] = examples
        elif kind == "train":
            self._recent.append(examples)
            self._newest += 1

    def judge_by(self, groups: tuple[str, ...]) -> None:
        """These originals are in a test split."""
        self.test.update(groups)

    @property
    def ready(self) -> bool:
        """There is something to learn from."""
        return "train" in self._base

    # --- beginning -----------------------------------------------------------------------------------------------

    def begin(self, run_id: str, windows: int = 0, episode_id: str = "") -> str:
        """A run begins: the regime that it is for. `windows`: how many of the newest batches show it, as far as is known.
        `episode_id`: what it is for; another run for the same one teaches the same regime with more images. A run that
        begins again has the regime that it had."""
        if run_id in self._begun:
            return self._begun[run_id]
        regime = BASELINE
        if self._begun and self._recent:
            again = bool(self._regimes) and episode_id != "" and episode_id == self._episode
            regime = next(reversed(self._regimes)) if again else f"retrain-{len(self._begun)}"
            count = min(max(self._newest if again else windows, NEWEST[0]), NEWEST[1])
            self._episode, self._newest = episode_id, count
            newest = list(self._recent)[-count:]
            self._regimes[regime] = split(together(newest))[0], split(together(newest[-DESCRIBES:]))[1]
            while len(self._regimes) > KEPT_REGIMES:
                self._regimes.popitem(last=False)
        self._begun[run_id] = regime
        return regime

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
        return f"<Curriculum {list(self._regimes)}, {len(self._begun)} runs, {len(self._recent)} newest batches>"
