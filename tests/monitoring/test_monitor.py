"""The monitor: rows in, verdicts out; shards that merge, and states that are stored."""

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from monitoring.conftest import Rows

import canvasbus_workers
from canvasbus_workers.monitoring import Monitor, Partial, Policy, Reference, ShapeError, count


def parts_of(rows: dict[str, np.ndarray], cuts: list[int]) -> list[dict[str, np.ndarray]]:
    bounds = [0, *sorted(cuts), len(rows["style"])]
    return [{k: v[a:b] for k, v in rows.items()} for a, b in itertools.pairwise(bounds) if b > a]


@functools.cache
def studied() -> tuple[Reference, dict[str, np.ndarray]]:
    """A reference and a window, the same for all draws."""
    random = np.random.default_rng(11)
    return Reference(some(random, 400)), some(random, 160)


def some(random: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    features = random.standard_normal((n, 3)).astype(np.float32)
    features[random.random(n) < 0.1, 1] = np.nan
    return {
        "features": features,
        "style": random.choice(5, n),
        "palette": random.choice(["oil", "ink", ""], n),
        "probabilities": random.dirichlet(np.ones(3), n).astype(np.float32),
        "embedding": random.standard_normal((n, 70)).astype(np.float32),
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 160), max_size=8), st.randoms(use_true_random=False), st.integers(1, 4))
def test_shards_merge_to_what_one_would_have(cuts: list[int], shuffle, shards: int) -> None:  # type: ignore[no-untyped-def]
    """However the rows are cut, dealt out to monitors and merged, in whatever order: the saved state and the verdict are
    the same to the last bit as those of one monitor that saw all rows."""
    reference, window = studied()
    parts = parts_of(window, cuts)
    single = Monitor(reference)
    for at, part in enumerate(parts):
        single.add(part, batch_id=f"b{at}")
    order = list(enumerate(parts))
    shuffle.shuffle(order)
    monitors = [Monitor(reference) for _ in range(shards)]
    for at, part in order:
        monitors[shuffle.randrange(shards)].add(part, batch_id=f"b{at}")
    first, *others = (Monitor.load(monitor.save(), reference) for monitor in monitors)
    for other in others:
        first.merge(other)
    assert first.save() == single.save()
    whole = Monitor(reference)
    whole.add(window)
    found = (first.close(), single.close(), whole.close())
    assert found[0] == found[1] == found[2] != None  # noqa: E711


def test_counts_survive_packing(rows: Rows) -> None:
    """Packed and unpacked they are equal, and small whatever number of rows they are of."""
    reference = Reference({"f": rows(500)["features"], "embedding": rows(500)["embedding"]})
    for n in (0, 1, 700, 50_000):
        drawn = rows(n)
        partial = count(reference, {"f": drawn["features"], "embedding": drawn["embedding"]})
        assert partial.items == n
        assert Partial.unpack(partial.pack()) == partial
        assert len(partial.pack()) < 10_000
    with pytest.raises(ValueError, match="counted against"):
        Partial.empty(reference).add(Partial.empty(studied()[0]))


def test_too_small_windows_are_merged_never_tested(rows: Rows) -> None:
    """Below the least number of rows closing gives nothing; what was counted goes on into the next window."""
    monitor = Monitor(Reference(rows(500)), policy=Policy(min_items=50))
    assert monitor.judge(rows(30)) is None
    assert monitor.judge(rows(19)) is None
    verdict = monitor.judge(rows(1))
    assert verdict is not None
    assert (verdict.items, verdict.number, monitor.items) == (50, 0, 0)


def test_a_report_for_every_feature(rows: Rows) -> None:
    """Numeric, categorical, text and embedding features each have one, with every statistic beside its threshold."""
    monitor = Monitor(Reference(rows(1000)))
    verdict = monitor.judge(rows(300))
    assert verdict is not None and verdict.status == "ok"
    kinds = {report.feature: (report.kind, report.test) for report in verdict.reports}
    assert kinds == {
        **{f"features[{at}]": ("numeric", "ks") for at in range(3)},
        **{f"probabilities[{at}]": ("numeric", "ks") for at in range(3)},
        "confidence": ("numeric", "ks"),
        "style": ("categorical", "chi2"),
        "palette": ("categorical", "chi2"),
        "embedding": ("embedding", "mmd"),
    }
    numeric = {"psi", "kl", "jensen_shannon", "hellinger", "total_variation", "chi2", "ks", "wasserstein"}
    for report in verdict.reports:
        wanted = {"numeric": numeric, "categorical": numeric - {"ks", "wasserstein"}, "embedding": {"mmd", "frechet"}}
        assert set(report.measures) == wanted[report.kind]
        assert report.p_value <= report.p_adjusted <= 1.0
        assert (report.items, report.reference_items) == (300, 1000)
        assert all(measure.threshold > 0 for measure in report.measures.values())


def test_two_of_three_windows_open_and_three_clean_ones_resolve(rows: Rows) -> None:
    """The states on the way: suspect, drifting, resolving, ok."""
    monitor = Monitor(Reference(rows(2000)))
    states = []
    for shift in (0, 1.0, 1.0, 0, 0, 0):
        verdict = monitor.judge(rows(200, shift))
        assert verdict is not None
        states.append((verdict.status, monitor.course.episode.state))
    flags, course = zip(*states, strict=True)
    assert flags == ("ok", "flagged", "flagged", "ok", "ok", "ok")
    assert course == ("ok", "suspect", "drifting", "resolving", "resolving", "ok")
    assert monitor.course.episode.first == 1


def test_a_return_to_any_known_regime_is_no_drift(rows: Rows) -> None:
    """Windows that match one of several references are clean, whichever it is; one registered later counts, too."""
    monitor = Monitor(Reference(rows(800), regime="day"), Reference(rows(800, 2.0), regime="night"))
    found = [monitor.judge(rows(150, shift)) for shift in (0, 2, 0, 5)]
    assert [(v.status, v.match.reference.regime) for v in found[:3]] == [("ok", "day"), ("ok", "night"), ("ok", "day")]
    assert found[3].status == "flagged"
    monitor.register(Reference(rows(800, 5.0), regime="dawn"))
    assert monitor.judge(rows(100, 5)).match.reference.regime == "dawn"


def test_what_is_too_slow_for_one_window_is_seen_in_four(random: np.random.Generator) -> None:
    """A shift that one window seldom shows is flagged when the last four are looked at together, at a level of its own."""
    monitor = Monitor(Reference({"x": random.standard_normal(5000)}))
    quantiles = scipy.stats.norm.ppf(np.linspace(0, 1, 101)[1:-1])  # windows without accidents
    found = [monitor.judge({"x": quantiles + 0.25 + 0.01 * random.standard_normal(99)}) for _ in range(4)]
    assert [v.status for v in found] == ["ok", "ok", "ok", "flagged"]
    assert (found[3].match.span, found[3].match.items) == (4, 396)
    assert found[3].match.reports[0].p_adjusted <= 0.0025


def test_repeated_batches_are_counted_once(rows: Rows) -> None:
    """The same rows, or the same batch id with others: not counted again."""
    monitor, batch = Monitor(Reference(rows(200))), rows(30)
    assert monitor.add(batch, batch_id="a")
    assert not monitor.add(dict(reversed(batch.items())))
    assert not monitor.add(rows(30), batch_id="a")
    assert monitor.add(rows(30), batch_id="b")
    assert monitor.items == 60


def test_references_are_immutable_and_named_by_their_rows(rows: Rows) -> None:
    """Equal rows give the equal digest, other rows or another meaning another one; a state goes with its references only."""
    arrays = rows(100)
    one, same = Reference(arrays, "r"), Reference(dict(reversed(arrays.items())), "other name")
    assert one.digest == same.digest
    others = [
        Reference({**arrays, "style": arrays["style"] + 1}),
        Reference(arrays, categorical={"features[0]"}),
        Reference(arrays, items=100, right=90),
        Reference(rows(100)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
    saved = Monitor(one).save()
    assert Monitor.load(saved, same).statistics()["window"] == 0
    with pytest.raises(ValueError, match=one.digest[:12]):
        Monitor.load(saved, others[0])
    with pytest.raises(ValueError, match="different references"):
        Monitor(one).merge(Monitor(others[0]))


def test_arrays_that_are_no_table_are_refused(rows: Rows) -> None:
    """Different lengths, no rows, three axes."""
    with pytest.raises(ShapeError, match="3, 4"):
        Reference({"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(ShapeError, match="no rows"):
        Reference({})
    with pytest.raises(ShapeError, match=r"\(2, 2, 2\)"):
        count(Reference({"a": np.arange(9.0)}), {"a": np.zeros((2, 2, 2))})


def test_the_library_needs_no_bus() -> None:
    """Importing it loads neither canvasbus nor trio; its files import numpy, scipy, msgspec and each other."""
    code = (
        "import sys, canvasbus_workers.monitoring, canvasbus_workers.monitoring.quality; "
        "print({'trio', 'canvasbus', 'redis', 'structlog'} & set(sys.modules))"
    )
    path = str(Path(canvasbus_workers.__path__[0]).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.stdout.strip() == "set()", done.stderr
