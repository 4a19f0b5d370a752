"""Sequential detectors decide as river's do, and their state survives storing."""

import msgspec
import numpy as np
import pytest

from canvasbus_workers.monitoring.sequential import Adwin, HddmA


def stored(detector):  # type: ignore[no-untyped-def]
    """What comes back from a server."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(detector), type=type(detector))


@pytest.mark.parametrize("seed", range(8))
def test_hddm_fires_where_rivers_does(seed: int) -> None:
    """The same values, over rises and falls of the error rate, also when the state is stored after every hundred."""
    random = np.random.default_rng(seed)
    errors = np.concatenate([random.random(1500) < p for p in (0.1, 0.25, 0.05, 0.2)]).astype(int)
    from river.drift.binary import HDDMA  # scikit-learn comes with it, which no other test waits for

    theirs, mine = HDDMA(), HddmA()
    fired: tuple[list[int], list[int]] = ([], [])
    for at, error in enumerate(errors.tolist()):
        theirs.update(error)
        if theirs.drift_detected:
            fired[0].append(at)
        if mine.update(error):
            fired[1].append(at)
        if at % 100 == 0:
            mine = stored(mine)
    assert fired[1] == fired[0] != []
    assert mine.fired == len(fired[0])


@pytest.mark.parametrize("clock", [1, 32])
@pytest.mark.parametrize("seed", range(6))
def test_adwin_fires_where_rivers_does(seed: int, clock: int) -> None:
    """The same values, over changes of the mean in both directions, also when the state is stored in between."""
    random = np.random.default_rng(seed)
    values = np.concatenate([random.standard_normal(1500) + mean for mean in (0.0, 0.6, -0.2)])
    from river.drift import ADWIN

    theirs, mine = ADWIN(clock=clock), Adwin(clock=clock)
    fired: tuple[list[int], list[int]] = ([], [])
    for at, value in enumerate(values.tolist()):
        theirs.update(value)
        if theirs.drift_detected:
            fired[0].append(at)
        if mine.update(value):
            fired[1].append(at)
        if at % 100 == 0:
            mine = stored(mine)
    assert fired[1] == fired[0] != []
    assert mine.width == theirs.width


def test_the_state_is_small() -> None:
    """After a hundred thousand values it is a few hundred bytes, or two kilobytes for ADWIN's buckets."""
    random = np.random.default_rng(3)
    hddm, adwin = HddmA(), Adwin()
    for value in random.random(100_000).tolist():
        hddm.update(float(value < 0.1))
        adwin.update(value)
    assert adwin.width > 90_000
    assert len(msgspec.msgpack.encode(hddm)) < 300
    assert len(msgspec.msgpack.encode(adwin)) < 2500
