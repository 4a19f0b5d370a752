"""When a model is trained: tables, and a random test against a naive model that keeps the whole history."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest
from seeds import RUN_SEED

from canvasbus import config
from canvasbus.errors import ConfigError
from canvasbus_workers.retrain.book import Model, Propose, Rest, Run, Wait
from canvasbus_workers.retrain.settings import Policy, Settings

FREE = Policy(debounce_seconds=0, cooldown_seconds=0, daily_runs=1000)
T = 1_000_000.0


def started(model: Model, policy: Policy = FREE, now: float = T) -> Run:
    run = model.next("m", policy, now)
    assert isinstance(run, Run), run
    return run


def test_a_signal_starts_one_run() -> None:
    """With what it is for; asked again for the same episode, it says that it is in flight."""
    model = Model()
    assert isinstance(model.next("m", FREE, T), Rest)
    assert model.want(T, "accuracy 0.5", "e1", 3) == "wanted"
    assert started(model) == Run("m/v1", "v1", 1, T, ("e1",), "accuracy 0.5", 3)
    assert model.want(T, "still", "e1") == "m/v1 is in flight for it"
    assert model.wish is None


def test_what_comes_during_a_run_is_one_trailing_run() -> None:
    """However much it is; and nothing comes of it while the run is in flight."""
    model = Model()
    model.want(T, "first", "e1")
    run = started(model)
    for at, episode in enumerate(("e2", "e3", "e2", "e4")):
        model.want(T + at, f"signal {at}", episode, at)
        assert model.next("m", FREE, T + at) == Rest("m/v1 is in flight")
    assert model.end(run.run_id, run.fence, T + 10) == run
    second = started(model, now=T + 10)
    assert (second.fence, second.episodes, second.reason, second.windows) == (2, ("e2", "e3", "e4"), "signal 3", 3)
    model.end(second.run_id, 0, T + 20)
    assert isinstance(model.next("m", FREE, T + 20), Rest)


def test_debounce_joins_signals_and_requests_do_not_wait_for_it() -> None:
    """From the first signal on; a request takes them along at once."""
    policy = msgspec.structs.replace(FREE, debounce_seconds=30)
    model = Model()
    model.want(T, "a", "e1")
    assert model.next("m", policy, T) == Wait(T + 30, "other signals may follow")
    model.want(T + 20, "b", "e2")
    assert model.next("m", policy, T + 20) == Wait(T + 30, "other signals may follow")
    assert started(model, policy, T + 30).episodes == ("e1", "e2")
    model = Model()
    model.want(T, "a", "e1")
    model.want(T + 1, "please", "e2", asked=True)
    assert started(model, policy, T + 1).episodes == ("e1", "e2")


def test_cooldown_and_budget() -> None:
    """A run waits until a while after the last one's end, and until fewer than so many have begun within a day."""
    policy = msgspec.structs.replace(FREE, cooldown_seconds=100, daily_runs=2)
    model = Model()
    for start in (T, T + 150):
        model.want(start, "x", f"e{start}")
        run = started(model, policy, start)
        model.end(run.run_id, run.fence, start + 50)
        model.want(start + 60, "y", "other")
        assert isinstance(model.next("m", policy, start + 60), Wait)
        model.is_over("other")
    model.want(T + 200, "x", "e3")
    assert model.next("m", policy, T + 200) == Wait(T + 86400, "2 runs in a day")
    assert started(model, policy, T + 86400).fence == 3


def test_the_budget_is_of_any_24_hours_and_not_of_a_date() -> None:
    """Runs of the evening count on the next morning, in whatever zone midnight lies; each comes free a day after its own
    start, one at a time."""
    policy = msgspec.structs.replace(FREE, daily_runs=3)
    midnight = datetime(2026, 3, 29, tzinfo=UTC).timestamp()  # 23 hours long in Europe
    evening = [midnight - 600, midnight - 300, midnight - 1]
    model = Model()

    def asks(at: float, episode: str) -> object:
        model.want(at, "x", episode)
        return model.next("m", policy, at)

    for number, at in enumerate(evening):
        run = asks(at, f"evening {number}")
        assert isinstance(run, Run)
        model.end(run.run_id, run.fence, at)
    for at in (midnight, midnight + 60, midnight + 86000 - 600):
        assert asks(at, "morning") == Wait(evening[0] + 86400, "3 runs in a day")
    for number, at in enumerate(evening):
        assert asks(at + 86400 - 0.5, f"next {number}") == Wait(at + 86400, "3 runs in a day")
        run = asks(at + 86400, f"next {number}")
        assert isinstance(run, Run)
        model.end(run.run_id, run.fence, at + 86400)
    assert asks(evening[-1] + 86401, "one more") == Wait(evening[0] + 2 * 86400, "3 runs in a day")
    assert len(model.starts) == 3


def test_too_few_labels_drop_what_asks() -> None:
    """Labels that came since the last run began count; what was dropped does not come back by itself."""
    policy = msgspec.structs.replace(FREE, min_new_labels=70)
    model = Model(labels=60)
    model.want(T, "x", "e1")
    assert "60 of 70 new labels" in str(model.next("m", policy, T))
    model.labels = 70
    assert isinstance(model.next("m", policy, T), Rest)
    model.want(T, "x", "e1")
    started(model, policy)
    assert model.labels == 0


def test_approval() -> None:
    """A proposal, once; yes starts the run, no forgets it and its episodes until they have ended."""
    policy = msgspec.structs.replace(FREE, approval=True)
    model = Model()
    model.want(T, "x", "e1")
    assert model.next("m", policy, T) == Propose("m/p1")
    model.want(T, "y", "e2")
    assert model.next("m", policy, T) == Rest("m/p1 waits for an answer")
    assert not model.approve("m/p0") and not model.reject("")
    assert model.approve("m/p1") and not model.reject("m/p1")
    run = started(model, policy)
    assert run.episodes == ("e1", "e2")
    model.end(run.run_id, run.fence, T)
    model.want(T, "z", "e3")
    assert model.next("m", policy, T) == Propose("m/p2")
    assert model.reject("m/p2")
    assert model.want(T, "z", "e3") == "it was rejected"
    model.is_over("e3")
    assert model.want(T, "z", "e3") == "wanted"


def test_what_is_over_is_wanted_no_more() -> None:
    """A wish ends with its last episode, and withdraws its proposal; one that somebody has asked for stays."""
    policy = msgspec.structs.replace(FREE, approval=True)
    model = Model()
    model.want(T, "x", "e1")
    model.want(T, "x", "e2")
    model.next("m", policy, T)
    assert model.is_over("e1") == ""
    assert model.is_over("e2") == "m/p1"
    assert model.wish is None
    model.want(T, "please", "e1", asked=True)
    assert model.is_over("e1") == "" and model.wish is not None


def test_only_the_run_in_flight_counts() -> None:
    """One that was given up for lost ends later: nothing. A wrong fence: nothing. Delivered again: nothing."""
    model = Model()
    model.want(T, "x", "e1")
    lost = started(model)
    assert model.end(lost.run_id, 0, T) == lost  # overdue
    model.want(T, "x", "e1")
    run = started(model)
    assert model.end(lost.run_id, lost.fence, T) is None
    assert model.end(lost.run_id, 0, T) is None
    assert model.end(run.run_id, lost.fence, T) is None
    assert model.end(run.run_id, run.fence, T) == run
    assert model.end(run.run_id, run.fence, T) is None


def test_a_promotion_by_hand_supersedes_what_is_in_flight() -> None:
    """And one that is told late changes nothing."""
    model = Model()
    model.want(T, "x", "e1")
    run = started(model)
    model.promoted("v1", "m/v1", 1)
    assert not model.superseded
    model.promoted("by hand", "", 0)
    assert model.superseded and model.serving == "by hand"
    model.end(run.run_id, run.fence, T)
    model.want(T, "x", "e2")
    started(model)
    assert not model.superseded
    model.promoted("v5", "m/v5", 5)
    model.promoted("v4", "m/v4", 4)
    assert model.serving == "v5"


def naive(policy: Policy, history: list[tuple[str, float, str]], now: float) -> bool:
    """May a run start now? By everything that has happened: (what, when, episode)."""
    starts = [at for what, at, _ in history if what == "start"]
    ends = [at for what, at, _ in history if what == "end"]
    if len(starts) > len(ends):
        return False
    last = max((n for n, (what, _, _) in enumerate(history) if what == "start"), default=-1)
    running_for, wanted = set(), []
    since_last = history[last:] if last >= 0 else history
    if last >= 0:
        running_for = set(since_last[0][2].split())
    ended = False
    for what, at, episode in since_last:
        ended |= what == "end" or last < 0
        if what == "want" and (ended or episode not in running_for):
            wanted.append((at, episode))
        if what == "over":
            wanted = [one for one in wanted if one[1] != episode]
    if not wanted:
        return False
    recent = [at for at in starts if now - at < 86400]
    first = min(at for what, at, _ in _since_empty(since_last, running_for, last) if what == "want")
    return (
        now >= first + policy.debounce_seconds
        and (not ends or now >= ends[-1] + policy.cooldown_seconds)
        and len(recent) < policy.daily_runs
    )


def _since_empty(
    events: list[tuple[str, float, str]], running_for: set[str], last: int
) -> Iterator[tuple[str, float, str]]:
    """The signals since nothing was wanted last."""
    kept: list[tuple[str, float, str]] = []
    wanted: set[str] = set()
    ended = last < 0
    for what, at, episode in events:
        ended |= what == "end"
        if what == "want" and (ended or episode not in running_for):
            wanted.add(episode)
            kept.append((what, at, episode))
        if what == "over" and episode in wanted:
            wanted.discard(episode)
            if not wanted:
                kept = []
    return iter(kept)


@pytest.mark.parametrize("number", range(60))
def test_random_histories(number: int) -> None:
    """Signals, ends, recoveries and time in any order, results delivered twice, late and out of order, with the state
    stored and loaded in between: runs start exactly when the naive model allows it, never two at a time, never within the
    cooldown, never above the budget; fences only grow, and only runs in flight promote, each once and in order."""
    draw = random.Random(f"{RUN_SEED}/retrain/{number}")
    policy = Policy(
        debounce_seconds=draw.choice([0.0, 30.0]),
        cooldown_seconds=draw.choice([0.0, 500.0]),
        daily_runs=draw.choice([1, 3, 1000]),
    )
    seed = f"seed {RUN_SEED}, {number}"
    model, now = Model(), T
    history: list[tuple[str, float, str]] = []
    runs: list[Run] = []
    promoted: list[int] = []
    for _ in range(400):
        now += draw.choice([0.0, 1.0, 20.0, 400.0, 20_000.0])
        match draw.choice(["want", "want", "end", "over", "again", "lost"]):
            case "want":
                episode = draw.choice("abcd")
                history.append(("want", now, episode))
                model.want(now, "x", episode)
            case "over":
                episode = draw.choice("abcd")
                history.append(("over", now, episode))
                model.is_over(episode)
            case "end" if runs:
                if model.end(runs[-1].run_id, runs[-1].fence, now) is not None:
                    history.append(("end", now, ""))
                    model.promoted(runs[-1].version, runs[-1].run_id, runs[-1].fence)
                    promoted.append(runs[-1].fence)
            case "lost" if runs and model.run is not None:  # overdue: it ends, and is not promoted
                assert model.end(runs[-1].run_id, runs[-1].fence, now) is not None, seed
                history.append(("end", now, ""))
            case "again" if runs:  # any result so far, delivered again
                run = draw.choice(runs)
                in_flight = model.run is not None and model.run.run_id == run.run_id
                if not in_flight:
                    assert model.end(run.run_id, draw.choice([0, run.fence]), now) is None, seed
                model.promoted(run.version, run.run_id, run.fence) if run.fence in promoted else None
        allowed = naive(policy, history, now)
        before = msgspec.msgpack.encode(model)
        step = model.next("m", policy, now)
        assert isinstance(step, Run) == allowed, f"{seed}: {step} after {history[-6:]}"
        if isinstance(step, Run):
            again = msgspec.msgpack.decode(before, type=Model)
            assert again.next("m", policy, now) == step, f"{seed}: run again it decides otherwise"
            runs.append(step)
            history.append(("start", now, " ".join(step.episodes)))
        elif isinstance(step, Wait):
            assert step.until > now, seed
        model = msgspec.msgpack.decode(msgspec.msgpack.encode(model), type=Model)
    assert [run.fence for run in runs] == list(range(1, len(runs) + 1)), seed
    assert promoted == sorted(set(promoted)), seed
    times = [run.started for run in runs]
    assert all(len([at for at in times if start <= at < start + 86400]) <= policy.daily_runs for start in times), seed


def test_policies_for_single_models() -> None:
    """The first glob that fits says what is different; the rest is the table's own. What is unknown there is an error."""
    table = {"daily_runs": 2, "models": {"Style*": {"approval": True}, "*-v3": {"daily_runs": 9}}}
    settings = msgspec.convert(table, Settings)
    assert settings.policy("StyleGAN-v3") == Policy(daily_runs=2, approval=True)
    assert settings.policy("Pix-v3") == Policy(daily_runs=9)
    assert settings.policy("Pix") == Policy(daily_runs=2)
    with pytest.raises(ConfigError, match=r'models."Style\*"\]: unknown key .aproval.; did you mean approval'):
        msgspec.convert({"models": {"Style*": {"aproval": True}}}, Settings)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"launcher": "subprocess"}, "subprocess.command: say what trains"),
        ({"launcher": "http"}, "http.url: say where"),
        (
            {"launcher": "http", "http": {"url": "trainer:80"}},
            "http.url: it must begin with https://HOST or http://HOST",
        ),
        ({"launcher": "prefect", "prefect": {"url": "http://h/api", "deployment": "d"}}, "FLOW/DEPLOYMENT"),
        ({"answer": "file"}, "only a subprocess writes"),
        ({"answer": "state"}, "answer: how a run stands"),
        (
            {"http": {"url": "https://me:secret@h/"}},
            "http.url: it has a user or a password in it: give them as authorization_file",
        ),
        (
            {"http": {"authorization_env": "A", "authorization_file": "B"}},
            "authorization_file and authorization_env are both set: keep one",
        ),
        ({"subprocess": {"shell": True}}, "shell"),
        ({"models": {"m": {"launcher": "subprocess"}}}, r'models."m"\]: subprocess.command'),
    ],
)
def test_settings_that_make_no_sense(table: dict[str, object], said: str) -> None:
    """Each is told with its key, and without what may be secret."""
    with pytest.raises(ConfigError, match=said) as caught:
        config.table("[workers.retrain]", table, Settings)
    assert "secret" not in str(caught.value)


def test_a_clock_that_goes_back_costs_no_more_than_the_times_themselves() -> None:
    """A run and a wish of a month ahead: debounce, cooldown and budget are counted from now, not from then."""
    now, month = 1e9, 30 * 86400.0
    policy = Policy(debounce_seconds=30, cooldown_seconds=3600, daily_runs=1)
    model = Model()
    model.want(now + month, "r", "e1")
    run = model.next("m", policy, now + month + 30)
    assert isinstance(run, Run) and model.end(run.run_id, run.fence, now + month + 60)
    model.want(now + month + 90, "r", "e2")
    assert model.next("m", policy, now) == Wait(now + 86400.0, "1 runs in a day")
    free = model.next("m", Policy(debounce_seconds=30, cooldown_seconds=3600), now)
    assert free == Wait(now + 3600.0, "cooldown")
    assert isinstance(model.next("m", policy, now + 86400.0), Run)
