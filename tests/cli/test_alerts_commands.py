"""canvasbus silence and canvasbus alerts, beside a worker that runs."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from cli.commands import Ran, Run, runner
from studio import Eyes, quiet, running
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.cli import silence
from canvasbus.cli.output import Output
from canvasbus.events import DriftDetected, HandlerFailed, MetricThresholdBreached
from canvasbus_workers import alerts


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """The worker runs in this process: its lines shall not lie among those of the commands."""
    with Path(os.devnull).open("w") as nowhere:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=nowhere), cache_logger_on_first_use=False)
        yield


class Shop:
    """A worker that runs, and commands beside it."""

    def __init__(self, bus: EventBus, run: Run) -> None:
        self.bus = bus
        self._run = run

    async def run(self, *argv: str) -> Ran:
        return await trio.to_thread.run_sync(partial(self._run, *argv))

    async def drift(self, model: str, **fields: Any) -> None:
        await self.bus.publish(DriftDetected(model_name=model, drift_score=0.5, drift_type="ks", **fields))

    async def incidents(self, number: int) -> dict[str, dict[str, Any]]:
        """Those that are open, by model, as soon as there are so many."""
        while True:
            records = (await self.run("alerts", "status", "--json")).records
            found = {one["model_name"]: one for one in records if "incident_id" in one}
            if len(found) == number:
                return found


@asynccontextmanager
async def shop(url: str, namespace: str, run: Run, **options: Any) -> AsyncIterator[Shop]:
    with trio.fail_after(60):
        async with running(url, alerts.worker, namespace=namespace, **options) as bus:
            yield Shop(bus, run)


async def test_a_silence_is_added_listed_and_ended(server_url: str, namespace: str, run: Run) -> None:
    """It mutes what it matches and nothing else, until it is ended; status says who was told and who was not, and why."""
    async with shop(server_url, namespace, run) as here:
        added = await here.run(
            "silence", "add", "--model", "Style*", "--for", "2h", "--comment", "known \x1b[2J", "--author", "ada"
        )
        assert (added.code, added.err) == (0, ""), added
        (silence_id,) = re.findall(r"silence (\w{8}): model_name=Style\* for 2h", added.out)
        (listed,) = (await here.run("silence", "list", "--json")).records
        assert (listed["silence_id"], listed["model_name"], listed["severity"]) == (silence_id, "Style*", "*")
        assert listed["author"] == "ada"
        shown = await here.run("silence", "list")
        assert "wait" not in shown.err
        assert "\x1b[2J" not in shown.out and silence_id in shown.out and "in 1h 59m" in shown.out
        await here.drift("StyleGAN")
        await here.drift("other")
        found = await here.incidents(2)
        assert (found["StyleGAN"]["told"], found["StyleGAN"]["not_told"]) == ([], {"log": "silenced"})
        assert (found["other"]["told"], found["other"]["not_told"]) == (["log"], {})
        (counts,) = [one for one in (await here.run("alerts", "status", "--json")).records if "destination" in one]
        free = {"disabled": False, "disabled_until": None, "no_token_until": None, "waiting": 0}
        assert counts == {"destination": "log", "told": 1, "suppressed": {"silenced": 1}, **free}
        status = await here.run("alerts", "status")
        assert "told: nobody; not told: log (silenced)" in status.out and "2 open incidents, 1 silence" in status.err
        assert "nobody is told" not in status.err
        ended = await here.run("silence", "expire", silence_id)
        assert (ended.code, ended.err) == (0, "")
        found = await here.incidents(2)
        assert found["StyleGAN"]["told"] == ["log"]
        assert (await here.run("silence", "list")).out == ""
        (await here.run("silence", "expire", silence_id)).failed(1, silence_id, "there are: none")


async def test_status_shows_all_that_rings_and_how_each_destination_stands(
    server_url: str, namespace: str, run: Run, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every open incident with its signals, the gravest first, bounded; how many more there are; which destination is gone
    and which has no tokens; and nothing is wider than a terminal of 80 columns."""
    from canvasbus_workers.alerts import edge
    from canvasbus_workers.alerts.notification import Gone, Notification

    class Phone:
        def __init__(self, name: str) -> None:
            self.name = name

        async def send(self, notification: Notification) -> None:
            if self.name == "old-hook":
                raise Gone("410")

    @asynccontextmanager
    async def opened(table: dict[str, object]) -> AsyncIterator[dict[str, Phone]]:
        yield {name: Phone(name) for name in table}

    monkeypatch.setattr(edge, "opened", opened)
    tables = "".join(f'[workers.alerts.destinations.{name}]\nkind = "log"\n' for name in ("old-hook", "pager"))
    (empty_folder / "canvasbus.toml").write_text(f"[workers.alerts]\nburst = 2\nrate_per_minute = 0.01\n{tables}")
    model = "StyleGAN-Canvas-v3"
    async with shop(server_url, namespace, run) as here:
        await here.bus.publish(MetricThresholdBreached(model_name=model, metric="accuracy", episode_id="a1"))
        for number in range(12):
            await here.drift(model, episode_id=f"{model}/drift/{number}")
        await here.drift("Upscaler", episode_id="u1", severity="warning")
        await here.drift("Sketch", episode_id="s1", severity="warning")
        for what in ("drift.detected", "alert.notification_due"):
            eyes = Eyes(server_url, namespace)
            await quiet(eyes, "alerts", event_type=what, timeout=30)
            eyes.close()
        found = await here.incidents(3)
        while len(found[model]["signals"]) < 10 or found[model]["ringing"] < 13:
            found = await here.incidents(3)
        monkeypatch.setattr(Output, "_width", lambda _: 80)
        made = Output.__init__

        def on_a_terminal(self: Output, **options: Any) -> None:
            made(self, **options)
            self.terminal = True

        monkeypatch.setattr(Output, "__init__", on_a_terminal)
        status = await here.run("alerts", "status")
    assert len(found[model]["summary"]) == 10
    blocks = [block.splitlines() for block in status.out.split("\n\n")]
    assert [block[0].split()[0] for block in blocks[:3]] == ["critical", "warning", "warning"]
    assert "accuracy" in blocks[0][2] and blocks[0][-1] == "    - and 3 older signals"
    assert len([line for line in blocks[0] if f"(drift:{model}" in line]) == 10
    assert "(drift:u1)" in "".join(blocks[1]) or "(drift:u1)" in "".join(blocks[2])
    assert re.search(r"^old-hook +gone \(410\), left alone for 23h 59m ", status.out, re.MULTILINE)
    assert re.search(r"^pager +no token for 1h \d+m, 1 wait +2 +1", status.out, re.MULTILINE)
    assert max(map(len, status.out.splitlines())) <= 80


async def test_an_incident_of_the_bus_says_so_and_long_lines_end_between_words(
    server_url: str, namespace: str, run: Run
) -> None:
    """It has no model; what the worker has cut ends with an ellipsis after a whole word."""
    error = " ".join(["ValueError: no palette"] + ["is like another"] * 30)
    failed = {"handler": "paint", "entry_id": "1-0", "reason": "exhausted", "error": error, "attempts": 3}
    async with shop(server_url, namespace, run) as here:
        await here.bus.publish(HandlerFailed(group="painter", event_type="painting.made", **failed))  # type: ignore[arg-type]
        found = await here.incidents(1)
        status = await here.run("alerts", "status")
    assert found[""]["incident_id"].startswith("model_name=/")
    head, _, line = status.out.splitlines()[:3]
    assert re.match(r"warning   the bus/\w+  for ", head)
    assert re.fullmatch(
        r"    - painter gave up on painting\.made: .* (is|like|another)… \(handler:painter/painting\.made\)", line
    )


async def test_silences_outlive_workers_and_reach_every_partition(
    server_url: str,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Added while no worker runs it says so, and counts when one does; with partitions, for models of all of them."""
    monkeypatch.setattr(silence, "TAKEN_WITHIN", 0.0)
    run = runner(server_url, namespace, capsys)
    models = [f"m{number}" for number in range(8)]
    async with running(server_url, namespace=namespace, partitions=3):
        ran = await trio.to_thread.run_sync(
            partial(run, "silence", "add", "--severity", "info|warning", "--for", "1h", "--comment", "x")
        )
        assert ran.code == 0 and "no alerts worker has heard of it yet" in ran.err
        for command in (("silence", "list"), ("alerts", "status")):
            ran = await trio.to_thread.run_sync(partial(run, *command))
            assert ran.code == 0 and "1 silence waits for an alerts worker" in ran.err
        (waiting,) = (await trio.to_thread.run_sync(partial(run, "silence", "list", "--json"))).records
    async with shop(server_url, namespace, run, partitions=3) as here:
        for partition in range(3):
            eyes = Eyes(server_url, namespace, partition)
            await until(partial(eyes.call, "GET", eyes.keys.state("alerts", "desk")), 20)
            eyes.close()
        (taken,) = (await here.run("silence", "list", "--json")).records
        assert (waiting.pop("taken"), taken.pop("taken")) == (False, True) and waiting == taken
        for model in models:
            await here.drift(model)
        await here.bus.publish(MetricThresholdBreached(model_name="m0", metric="accuracy"))
        found = await here.incidents(8)
        while found["m0"]["severity"] != "critical":
            found = await here.incidents(8)
    told = {model: one["told"] for model, one in found.items()}
    assert told == {model: ["log"] if model == "m0" else [] for model in models}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--for", "1h", "--comment", "x"), "at least one of --model"),
        (("--model", "m", "--comment", "x"), "--for"),
        (("--model", "m", "--for", "1h"), "--comment"),
        (("--model", "m", "--for", "1h", "--comment", ""), "--comment is empty: say why"),
        (("--model", "m", "--for", "1h", "--comment", " \n"), "--comment is empty: say why"),
        (("--model", "m", "--for", "soon", "--comment", "x"), "--for soon"),
        (("--severity", "grave", "--for", "1h", "--comment", "x"), "there are info, warning, critical"),
        (("--severity", "", "--for", "1h", "--comment", "x"), "--severity '': there are info, warning, critical"),
        (
            ("--signal", "drift|acc*", "--for", "1h", "--comment", "x"),
            "--signal acc*: there are drift, metric:*, quality",
        ),
    ],
)
def test_a_silence_that_makes_no_sense_is_refused(run: Run, argv: tuple[str, ...], said: str) -> None:
    """In one line, with 2."""
    run("silence", "add", *argv).failed(2, said)


def test_an_empty_namespace_has_nothing(run: Run) -> None:
    """No worker has ever run: no error."""
    assert run("silence", "list").err.startswith("no silences in")
    status = run("alerts", "status")
    assert (status.code, status.out) == (0, "") and "0 open incidents, 0 silences" in status.err
    assert "nobody is told of anything (canvasbus-worker alerts)" in status.err


def test_samples_are_sent(run_bare: Run) -> None:
    """Without a server: each destination with a line, the log among them."""
    ran = run_bare("alerts", "test", "--json")
    assert (ran.code, ran.records) == (0, [{"destination": "log", "ok": True, "error": None}])


def test_a_sample_that_reaches_the_log_alone_says_so(run_bare: Run, empty_folder: Path) -> None:
    """`log: ok` would look like a Slack that works: which file has no destinations, and which table may have been meant."""
    says = "no [workers.alerts.destinations.NAME] in canvasbus.toml: the log is the only destination\n"
    assert run_bare("alerts", "test").err == says
    path = empty_folder / "canvasbus.toml"
    path.write_text('[workers.alert.destinations.page]\nkind = "log"\n')
    assert run_bare("alerts", "test").err == (
        says.replace("canvasbus.toml", str(path)) + "nobody reads [workers.alert]: did you mean alerts?\n"
    )
    path.write_text('[workers.alerts.destinations.page]\nkind = "log"\n')
    assert run_bare("alerts", "test").err == ""


def test_a_destination_that_fails_says_whose_move_is_next(run_bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 when one failed; the others are tried all the same; nothing of a traceback."""
    from canvasbus.worker import Reject, RetryLater
    from canvasbus_workers.alerts import edge
    from canvasbus_workers.alerts.notification import Gone, Notification

    errors = {
        "fine": None,
        "refused": Reject("404 no_service"),
        "gone": Gone("410"),
        "busy": RetryLater(30),
        "away": ConnectionError("connection\nrefused"),
    }

    class Phone:
        def __init__(self, name: str) -> None:
            self.name = name

        async def send(self, notification: Notification) -> None:
            assert notification.kind == "test"
            if errors[self.name] is not None:
                raise errors[self.name]  # type: ignore[misc]

    @asynccontextmanager
    async def opened(table: object) -> AsyncIterator[dict[str, Phone]]:
        yield {name: Phone(name) for name in errors}

    monkeypatch.setattr(edge, "opened", opened)
    Path("canvasbus.toml").write_text('[workers.alerts.destinations.fine]\nkind = "log"\n')
    ran = run_bare("alerts", "test")
    assert ran.code == 1 and ran.err == ""
    fine, refused, gone, busy, away = ran.lines
    assert fine == "fine: ok"
    assert refused == "refused: failed: it refuses: 404 no_service: mend its settings, or what it expects"
    assert "give its new address, or remove it" in gone and "try again later" in busy
    assert "connection refused: look whether it runs" in away


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("for_second = 1", "did you mean for_seconds?"),
        ('group_by = ["colour"]', "group_by"),
        ("burst = 0", "burst: expected int >= 1"),
        ('[[workers.alerts.routes]]\ndestinations = ["pager"]', "there is no destination 'pager'; there are log"),
        (
            '[[workers.alerts.routes]]\ndestinations = ["log"]\nseverity = "warning|fatal"',
            "no incident has the severity 'fatal'; there are info, warning, critical",
        ),
        (
            '[[workers.alerts.routes]]\ndestinations = ["log"]\nsignal = "drift|accuracy"',
            "no signal is called 'accuracy'; there are drift, metric:*, quality",
        ),
        (
            '[[workers.alerts.inhibit]]\nsource = {signal = "retraining"}\ntarget = {signal = "retraining"}',
            "no signal is called 'retraining'; there are drift",
        ),
        (
            '[[workers.alerts.inhibit]]\nsource = {severity = "grave"}\ntarget = {}',
            "no incident has the severity 'grave'; there are info",
        ),
        ('[[workers.alerts.routes]]\nmodel = "x"\ndestinations = ["log"]', "unknown field model"),
        (
            '[workers.alerts.destinations.x]\nkind = "pigeon"',
            "[workers.alerts.destinations.x]: kind must be one of log, slack",
        ),
        ('[workers.alerts.destinations.x]\nkind = ["slack"]', "[workers.alerts.destinations.x]: kind must be one of"),
        ('[workers.alerts.destinations.x]\nkind = "log"\ncolour = 1', "unknown key 'colour'"),
        ('[workers.alerts.destinations.x]\nkind = "slack"\nurl_fil = "x"', "did you mean url_file?"),
        ('[workers.alerts.destinations.x]\nkind = "slack"', "give one of url, url_file, url_env"),
        (
            'repeat_seconds = 0\n[workers.alerts.destinations.x]\nkind = "alertmanager"\nurl = "https://am.example.com"',
            "repeat_seconds = 0 must be less than that, and not 0",
        ),
    ],
)
def test_the_doctor_and_the_sample_refuse_wrong_settings(
    run: Run, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """An error of the doctor's, and bad usage for whoever sends a sample; both name the file, whatever it is called."""
    (empty_folder / "staging.toml").write_text(f"[workers.alerts]\n{text}\n")
    monkeypatch.setenv("CANVASBUS_CONFIG", "staging.toml")
    (finding,) = [one for one in run("doctor", "--json").records if one["check"] == "workers.alerts"]
    assert finding["level"] == "error" and said in finding["found"], finding
    assert "staging.toml: [workers.alerts" in finding["found"] and "canvasbus.toml" not in finding["found"]
    run("alerts", "test").failed(2, said)
