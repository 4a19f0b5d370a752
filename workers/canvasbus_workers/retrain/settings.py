"""What the retrain worker can be told: the table [workers.retrain] of canvasbus.toml, and for single models
[workers.retrain.models."GLOB"], where the first that fits says what is different."""

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0, le=366 * 86400)]
Duration = Annotated[float, Meta(gt=0, le=30 * 86400)]


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a model is trained, and how."""

    on: tuple[Literal["quality", "critical_drift"], ...] = ("quality", "critical_drift")
    """What asks for a training by itself: critical breaches of metrics, and drift that is critical when it is detected.
    Input drift alone is neither. Empty: only people and other programs ask, by retrain.requested."""
    metrics: tuple[str, ...] = ("*",)
    """Whose breaches are about quality."""
    debounce_seconds: Seconds = 30.0
    """Seconds after the first signal in which others join it."""
    cooldown_seconds: Seconds = 3600.0
    """Seconds from the end of a run to the start of the next one."""
    daily_runs: Annotated[int, Meta(ge=1, le=1000)] = 4
    """Runs that may start within any 24 hours."""
    min_new_labels: Annotated[int, Meta(ge=0)] = 0
    """Labelled items for training that must have come since the last run began; with fewer, what asked is dropped and has to
    ask again, as a breach does by its reminders."""
    approval: bool = False
    """A person is asked before each run."""
    promote: bool = True
    """A run that succeeded is put into service: model.promoted."""
    timeout_seconds: Duration = 6 * 3600.0
    """Seconds after which a run has failed."""
    poll_seconds: Duration = 10.0
    """Seconds between two questions where a run stands that is trained elsewhere."""
    launcher: Literal["bus", "subprocess", "http", "prefect"] = "bus"
    """Who trains. bus: whoever reads retrain.started, another worker for example."""
    answer: Literal["", "file", "state", "bus"] = ""
    """What says that a run has succeeded. file: its result file (subprocess). state: that it ended well. bus: itself, by
    retrain.succeeded. Empty: file for a subprocess, else bus."""

    @property
    def answers_on_the_bus(self) -> bool:
        """A run tells of its success itself."""
        return self.answer == "bus" or (self.answer == "" and self.launcher != "subprocess")


class Settings(Policy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.retrain]."""

    models: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """Glob → what is different for these models."""

    def __post_init__(self) -> None:
        self.policy("")
        known = {field.name for field in msgspec.structs.fields(Policy)}
        for glob, table in self.models.items():
            for key in table.keys() - known:
                raise ValueError(f"models.{glob}: unknown key {key!r}; known are {', '.join(sorted(known))}")
            try:
                self._merged(table)
            except msgspec.ValidationError as error:
                said, _, path = str(error).replace("`", "").partition(" - at $")
                raise ValueError(f"models.{glob}{path}: {said}") from None

    def policy(self, model: str) -> Policy:
        """What holds for a model."""
        table = next((table for glob, table in self.models.items() if fnmatchcase(model, glob)), {})
        return self._merged(table)

    def _merged(self, table: dict[str, Any]) -> Policy:
        own = {field.name: getattr(self, field.name) for field in msgspec.structs.fields(Policy)}
        return msgspec.convert(own | table, Policy)
