"""What a monitor is told: levels, floors and lengths. The defaults are what the calibration tests hold."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Level = Annotated[float, Meta(gt=0.0, le=0.2)]
Floor = Annotated[float, Meta(ge=0.0, le=100.0)]


class Policy(Struct, frozen=True, kw_only=True):
    """How a window is judged. A feature is flagged when its p-value, adjusted for all features of the window, is at most
    `level` *and* its effect is at least the floor: enough data make everything significant."""

    level: Level = 0.01
    """Of one window."""
    slow_level: Level = 0.0025
    """Of the long span."""
    calm_level: Level = 0.05
    """A window above it counts as clean when an episode is to end; between the two it counts for neither."""
    floor: Floor = 0.1
    """Numeric columns: standard deviations that the mass must have moved on average (Wasserstein), beyond what is usual
    for clean windows of this size."""
    categorical_floor: Floor = 0.05
    """Categorical columns: share of rows that must have changed their category, beyond the usual."""
    embedding_floor: Floor = 0.1
    """Embeddings: distance of the means in units of the spread, in the space of the random features."""
    min_items: Annotated[int, Meta(ge=10)] = 50
    """Rows below which a window is not tested, but goes on into the next one."""
    long_span: Annotated[int, Meta(ge=2, le=16)] = 4
    """Windows of the long span, which sees what is too slow for one."""
    enter: Annotated[int, Meta(ge=1, le=10)] = 2
    """Flagged windows that open an episode, …"""
    within: Annotated[int, Meta(ge=1, le=20)] = 3
    """… among so many."""
    leave: Annotated[int, Meta(ge=1, le=20)] = 3
    """Clean windows in a row that end it."""
    repeat_windows: Annotated[int, Meta(ge=0)] = 50
    """Windows after which an open episode is told again; 0: never."""
    quality_level: Level = 1e-4
    """Of each data quality check."""
    sequential: Literal["hddm_a", "adwin", "off"] = "hddm_a"
    """What watches the errors one by one, as labels come."""

    def __post_init__(self) -> None:
        if self.enter > self.within:
            raise ValueError(f"enter = {self.enter} is more than within = {self.within}: nothing would ever be drift")
