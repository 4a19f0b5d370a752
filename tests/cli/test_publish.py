"""canvasbus publish: arguments, files, stdin, CloudEvents; what is wrong is said with its line and costs no other line."""

import base64
import errno
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zlib import crc32

import pytest
from cli.commands import Run, runner
from proxy import Proxy
from servers import ServerProcess
from studio import Eyes

from canvasbus.cli.publish import BATCH_EVENTS
from canvasbus.config import default_source
from canvasbus.errors import Unavailable
from canvasbus.events import DriftDetected
from canvasbus.produce.fenced import Result
from canvasbus.produce.once import PartitionSender
from canvasbus.transport.resp import Operation
from canvasbus.wire.keys import Keys, partition_of
from canvasbus.wire.outgoing import Outgoing

DATA = '{"model_name": "gan", "drift_score": 0.4, "drift_type": "psi"}'
IDENT = "01a208bd-551c-77ec-ac2c-a3770ee88add"
CAUSE = "01a208bd-551c-77ec-ac2c-a3770ee88ade"
WHOLE = {
    "specversion": "1.0",
    "id": IDENT,
    "source": "lab",
    "type": "drift.detected",
    "time": "2026-01-02T03:04:05Z",
    "correlationid": CAUSE,
    "causationid": CAUSE,
    "traceparent": "00-1-2-01",
    "data": json.loads(DATA),
}


def row(name: str, **more: object) -> str:
    return json.dumps({"type": "drift.detected", "data": {**json.loads(DATA), "model_name": name, **more}})


def names(eyes: Eyes) -> list[str]:
    return [made.model_name for made in eyes.events("drift.detected")]


def test_type_and_json(run: Run, eyes: Eyes) -> None:
    """The event is stored as the type says, with this program as its source; the line names id and entry."""
    ran = run("publish", "drift.detected", DATA)
    ((envelope, made),) = eyes.entries("drift.detected")
    entry_id = eyes.call("XRANGE", eyes.stream("drift.detected"), "-", "+")[0][0].decode()
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"published drift.detected {envelope.id} as {entry_id}\n"
    assert isinstance(made, DriftDetected) and (made.model_name, made.drift_score) == ("gan", 0.4)
    assert (envelope.key, envelope.source) == ("gan", default_source())
    assert eyes.call("SISMEMBER", eyes.keys.topics, "drift.detected") == 1


@pytest.mark.parametrize("how", ["argument", "stdin", "file", "lines", "typed"])
def test_a_cloudevents_object_keeps_all_it_says(run: Run, eyes: Eyes, empty_folder: Path, how: str) -> None:
    """Id, source, time, correlation, cause and trace are the object's, whichever way it comes in."""
    text = json.dumps(WHOLE)
    (empty_folder / "events").write_text(text + "\n")
    match how:
        case "argument":
            ran = run("publish", text)
        case "stdin":
            ran = run("publish", "-", stdin=text.encode())
        case "file":
            ran = run("publish", "--from", "events")
        case "lines":
            ran = run("publish", "--from", "-", stdin=text.encode())
        case _:
            ran = run("publish", "drift.detected", text)
    assert ran.code == 0, ran
    ((envelope, made),) = eyes.entries("drift.detected")
    assert (str(envelope.id), envelope.source, envelope.causation_id) == (IDENT, "lab", UUID(CAUSE))
    assert (envelope.traceparent, made.correlation_id) == ("00-1-2-01", UUID(CAUSE))
    assert made.occurred_on.isoformat() == "2026-01-02T03:04:05+00:00"


def test_an_envelope_without_specversion_keeps_all_it_says_too(run: Run, eyes: Eyes) -> None:
    """`type` and `data` are enough to be an envelope; source and cause are not dropped then."""
    text = json.dumps({key: value for key, value in WHOLE.items() if key != "specversion"})
    assert run("publish", text).code == 0
    ((envelope, _),) = eyes.entries("drift.detected")
    assert (str(envelope.id), envelope.source, envelope.causation_id) == (IDENT, "lab", UUID(CAUSE))


def test_what_others_wrote_is_published_as_they_meant_it(run: Run, eyes: Eyes) -> None:
    """Ids of other houses, data in base64, and an expiry, which --expires-in overrules."""
    data = base64.b64encode(DATA.encode()).decode()
    foreign = {"id": "A-1", "causationid": "A-0", "expirytime": "2120-01-02T03:04:05Z", "data_base64": data}
    text = json.dumps({name: value for name, value in WHOLE.items() if name != "data"} | foreign)
    assert run("publish", text).code == 0
    assert run("publish", text, "--expires-in", "1h").code == 0
    assert run("publish", text.replace("A-1", "A-0").replace("2120", "1970")).code == 0
    (first, made), (second, _), (cause, _) = eyes.entries("drift.detected")
    assert isinstance(made, DriftDetected) and made.drift_score == 0.4
    assert first.id == second.id and first.causation_id == cause.id
    assert first.expires_on == datetime(2120, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert second.expires_on is not None and second.expires_on < first.expires_on
    assert cause.expires_on == 86400 + 3 * 3600 + 4 * 60 + 5


def test_json_output_is_one_record(run: Run, eyes: Eyes) -> None:
    """Type, id and entry id, for programs; options may stand between TYPE and JSON."""
    for argv in (("--json", "publish", "drift.detected", DATA), ("publish", "drift.detected", "--json", DATA)):
        (record,) = run(*argv).records
        assert record["type"] == "drift.detected" and record["id"] == str(eyes.entries("drift.detected")[-1][0].id)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("drift.detected", "{}"), "drift.detected v1: Object missing required field `model_name`"),
        (("metric.reported", '{"model_name": "m"}'), "metric.reported v1: Object missing required field `metric`"),
        (("metric.reported", '{"model_name": "m", "metric": "fid"}'), "Object missing required field `value`"),
        (("data_quality.violated", '{"model_name": "m", "severity": "bad"}'), "use critical, info, warning"),
        (("drfit.detected", DATA), "unknown event type 'drfit.detected'; did you mean 'drift.detected'?"),
        (("drift.detected", "{"), "not JSON"),
        (("drift.detected", "[]"), "JSON object"),
        (("drift.detected", DATA.replace("0.4", "NaN")), "NaN is no JSON value"),
        (("drift.detected", DATA.replace("0.4", "1e999")), "1e999 is no JSON value"),
        (("drift.detected", DATA.replace("0.4", '"x"')), "Expected `float`"),
        (("drift.detected", DATA.replace("drift_type", "drift_typ")), "no field 'drift_typ'"),
        (("drift.detected", "[" * 100_000), "not JSON"),
        (('{"data": {}}',), "not a CloudEvents object"),
        (("drift.resolved", json.dumps(WHOLE)), "the object says type 'drift.detected'"),
    ],
)
def test_an_event_that_is_none_is_one_line(run: Run, eyes: Eyes, argv: tuple[str, ...], says: str) -> None:
    """Exit code 1, nothing stored."""
    run("publish", *argv).failed(1, says)
    assert eyes.count("drift.detected") == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "give TYPE and JSON"),
        (("drift.detected",), "give TYPE and JSON"),
        (("drift.detected", DATA, "--from", "x"), "either JSON or --from"),
        (("drift.detected", "--from", "nowhere"), "--from nowhere: No such file"),
        (("--from", "."), "--from .: Is a directory"),
        (("a", "b", "c"), "unknown argument c"),
        (("drift.detected", DATA, "--module", "no_such"), "--module: there is no module no_such"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, argv: tuple[str, ...], says: str) -> None:
    """Exit code 2."""
    run("publish", *argv).failed(2, says)


def test_bad_lines_are_named_and_lose_no_other(run: Run, eyes: Eyes) -> None:
    """A byte order mark, blank lines, Windows line ends and a missing last one are no problem; bad lines are, each its own."""
    lines = [
        "\ufeff" + row("first"),
        "",
        "not json",
        row("second") + "\r",
        json.dumps({"type": "drift.detcted", "data": {}}),
        row("wrong", drift_score="high"),
        row("surplus", surprise=1),
        '{"a": "\x00"}',
        "   ",
        row("last"),
    ]
    ran = run("publish", "--from", "-", stdin="\n".join(lines).encode())
    assert ran.code == 1
    assert names(eyes) == ["first", "second", "last"]
    assert ran.out == "published 3 events\n"
    errors = ran.err.splitlines()
    assert [line.split(": ")[1] for line in errors[:-1]] == [f"line {n}" for n in (3, 5, 6, 7, 8)]
    assert errors[-1] == "canvasbus: 5 lines not published; publish only what was mended, the others are stored"
    assert "did you mean 'drift.detected'" in errors[1] and "drift_score" in errors[2] and "'surprise'" in errors[3]


def test_bytes_that_are_no_text_are_a_bad_line(run: Run, eyes: Eyes) -> None:
    """Latin-1 in a file of UTF-8 is named by its line; the others go on."""
    ran = run("publish", "--from", "-", stdin=b'{"a": "\xe4"}\n' + row("good").encode())
    assert (ran.code, names(eyes)) == (1, ["good"])
    assert "line 1: not JSON" in ran.err


def test_each_line_has_its_record(run: Run, eyes: Eyes) -> None:
    """With --json: line, id and entry id of what is stored, line and error of what is not."""
    ran = run("publish", "--json", "drift.detected", "--from", "-", stdin=f"{DATA}\n[]\n{DATA}".encode())
    bad, first, third = sorted(ran.records, key=lambda record: "id" in record)
    assert (bad["line"], first["line"], third["line"], ran.code) == (2, 1, 3, 1)
    assert [first["id"], third["id"]] == [str(envelope.id) for envelope, _ in eyes.entries("drift.detected")]


def test_many_lines_keep_their_order(run: Run, eyes: Eyes) -> None:
    """More than two batches, stored in the order of the file, each once."""
    wanted = [f"m{n}" for n in range(1203)]
    ran = run("publish", "--from", "-", stdin="\n".join(map(row, wanted)).encode())
    assert (ran.code, ran.out) == (0, "published 1,203 events\n")
    assert names(eyes) == wanted


def test_a_dry_run_checks_and_sends_nothing(run: Run, run_bare: Run, eyes: Eyes) -> None:
    """The same errors and exit code; no server is needed."""
    for each in (run, run_bare):
        ran = each("publish", "--dry-run", "--from", "-", stdin=f"{row('a')}\nnope\n".encode())
        assert (ran.code, ran.out) == (1, "1 event valid; nothing was sent\n")
        assert "line 2" in ran.err
    assert eyes.count("drift.detected") == 0 and eyes.call("EXISTS", eyes.keys.meta) == 0


def test_off_sends_nothing_and_says_so(run_bare: Run) -> None:
    """The feature flag works for the command too."""
    ran = run_bare("publish", "drift.detected", DATA, "--url", "off://")
    assert (ran.code, ran.out) == (0, "the bus is switched off (off://): 1 event not sent\n")


def test_types_of_ones_own_module(run: Run, eyes: Eyes, empty_folder: Path) -> None:
    """--module, or `modules` in the file, makes the user's types known."""
    (empty_folder / "cli_shop.py").write_text(
        "from canvasbus import Event, event\n@event('cli_shop.opened')\nclass Opened(Event):\n    door: int\n"
    )
    assert "unknown event type" in run("publish", "cli_shop.opened", '{"door": 3}').err
    assert run("publish", "cli_shop.opened", '{"door": 3}', "--module", "cli_shop").code == 0
    assert eyes.count("cli_shop.opened") == 1


def test_a_topic_that_is_no_stream_fails_its_lines_only(run: Run, eyes: Eyes) -> None:
    """The key holds something else: its lines are refused by number, the others are stored."""
    eyes.call("SET", eyes.stream("drift.resolved"), "text")
    other = json.dumps({"type": "drift.resolved", "data": {"model_name": "m"}})
    ran = run("publish", "--from", "-", stdin=f"{row('a')}\n{other}\n{row('b')}".encode())
    assert ran.code == 1
    assert names(eyes) == ["a", "b"]
    assert "line 2: " in ran.err and "not a stream" in ran.err
    run("publish", other).failed(1, "not a stream")


def test_keys_decide_the_partition(run: Run, namespace: str, eyes: Eyes) -> None:
    """With two partitions every event lies where its key belongs, and the count is on record."""
    wanted = [f"m{n}" for n in range(20)]
    assert run("publish", "--partitions", "2", "--from", "-", stdin="\n".join(map(row, wanted)).encode()).code == 0
    for partition in (0, 1):
        stream = Keys(namespace, partition).stream("drift.detected")
        assert eyes.call("XLEN", stream) == sum(crc32(name.encode()) % 2 == partition for name in wanted) > 0
    assert run("publish", "drift.detected", DATA).code == 0, "the count on record is taken over"
    run("publish", "--partitions", "3", "drift.detected", DATA).failed(2, "2 partitions", "--partitions")
    for nonsense in ("0", "many"):
        eyes.call("HSET", eyes.keys.meta, "partitions", nonsense)
        run("publish", "drift.detected", DATA).failed(1, "number of partitions")


def test_partitions_that_share_a_connection_are_fenced(
    make_server: Callable[..., ServerProcess],
    namespace: str,
    capsys: pytest.CaptureFixture[str],
    empty_folder: Path,
) -> None:
    """A batch for one partition, after one for another went over the same connection, is held up in the network and
    sent again: when it arrives at last its fence is closed, and every event is stored once."""
    server = make_server()
    keys = ["even", "odd"]
    assert [crc32(key.encode()) % 2 for key in keys] == [0, 1]
    wanted = [keys[n % 2] for n in range(BATCH_EVENTS)] + ["even"] * 3
    lines = [row(name, drift_type="late" if n >= BATCH_EVENTS else "psi") for n, name in enumerate(wanted)]
    with Proxy(server.port) as proxy:
        proxy.next(b"late", "hold")
        run = runner(proxy.url, namespace, capsys)
        ran = run("publish", "--partitions", "2", "--from", "-", stdin="\n".join(lines).encode())
        assert (ran.code, ran.out) == (0, f"published {len(wanted)} events\n")
        proxy.release()
        assert proxy.faults == ["hold"]
    eyes = Eyes(server.url, namespace)
    assert [eyes.call("XLEN", Keys(namespace, n).stream("drift.detected")) for n in (0, 1)] == [
        wanted.count(keys[0]),
        wanted.count(keys[1]),
    ]
    eyes.close()


@pytest.mark.parametrize(
    ("ambiguous", "away", "says"),
    [
        (False, 0, "0 events are stored, lines 1-3, 5-6 are not, nothing behind line 6 is"),
        (False, 1, "2 events are stored, lines 2-3, 6 are not, nothing behind line 6 is"),
        (
            True,
            0,
            "0 events are stored, whether lines 1, 5 are cannot be known, lines 2-3, 6 are not, nothing behind line 6 is",
        ),
        (True, 1, "2 events are stored, whether lines 2-3, 6 are cannot be known, nothing behind line 6 is"),
    ],
)
def test_a_server_that_leaves_between_two_partitions(
    run: Run, eyes: Eyes, namespace: str, monkeypatch: pytest.MonkeyPatch, ambiguous: bool, away: int, says: str
) -> None:
    """The message names the lines that are to be published again: with partitions they lie between those that are stored."""
    send = PartitionSender.send

    def leaves(sender: PartitionSender, batch: Sequence[Outgoing], **more: Any) -> Operation[list[Result]]:
        if partition_of(batch[0].key, 2) != away:
            return (yield from send(sender, batch, **more))
        return [Unavailable("gone", ambiguous=ambiguous)] * len(batch)

    monkeypatch.setattr(PartitionSender, "send", leaves)
    lines = [row("even"), row("odd"), row("odd"), "", row("even"), row("odd")]
    ran = run("publish", "--partitions", "2", "--from", "-", stdin="\n".join(lines).encode())
    ran.failed(1, f"gone; {says}")
    assert eyes.call("XLEN", Keys(namespace, 0).stream("drift.detected")) == 2 * away


@pytest.mark.parametrize("given", [("--from", "-"), ("drift.detected", "-")])
def test_a_stdin_that_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]) -> None:
    """As `<&-` leaves it."""
    monkeypatch.setattr("sys.stdin", None)
    run("publish", *given).failed(2, "reads stdin, which is closed")


class Torn(io.BytesIO):
    """A file on a disk that breaks behind so many lines, or from the start."""

    def __init__(self, data: bytes, lines: int) -> None:
        super().__init__(data)
        self.left = lines

    def __next__(self) -> bytes:
        if not self.left:
            raise OSError(errno.EIO, "Input/output error")
        self.left -= 1
        return super().__next__()

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def torn(monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    text = "\n".join(row(str(n)) for n in range(700)).encode()
    monkeypatch.setattr("canvasbus.cli.publish._stdin", lambda: Torn(text, lines))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (0, "--from -: it cannot be read (Input/output error)\n"),
        (613, "--from -: it cannot be read (Input/output error) behind line 613; the lines up to there are done\n"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end(
    run: Run, eyes: Eyes, monkeypatch: pytest.MonkeyPatch, lines: int, says: str
) -> None:
    """It is told as an error of the file, not of the output, and what could be read before is published."""
    torn(monkeypatch, lines)
    run("publish", "--from", "-").failed(2, says)
    assert names(eyes) == [str(n) for n in range(lines)]


def test_a_stdin_that_cannot_be_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event from stdin: the same."""
    torn(monkeypatch, 0)
    run("publish", "drift.detected", "-").failed(2, "reads stdin, which cannot be read (Input/output error)")


# --- dedupe -----------------------------------------------------------------------------------------------------------


def whole(number: int, **more: object) -> str:
    return json.dumps({**WHOLE, "id": f"01a208bd-551c-77ec-ac2c-{number:012d}", **more})


def test_a_file_that_is_published_again(run: Run, eyes: Eyes, empty_folder: Path) -> None:
    """With --dedupe what has been stored is stored no second time, and the command says how much that was. Without it,
    it is."""
    (empty_folder / "events").write_text("\n".join(whole(n) for n in range(700)))
    assert run("publish", "--from", "events", "--dedupe").out == "published 700 events\n"
    with (empty_folder / "events").open("a") as file:
        file.write(f"\n{whole(700)}\n")
    ran = run("publish", "--from", "events", "--dedupe", "--dedupe-window", "2h")
    assert (ran.code, ran.out) == (0, "published 701 events\n700 of them were there already\n")
    assert eyes.count("drift.detected") == 701
    records = run("publish", "--from", "events", "--dedupe", "--json").records
    rows = eyes.call("XRANGE", eyes.stream("drift.detected"), "-", "+")
    assert [record["entry_id"] for record in records] == [row[0].decode() for row in rows]
    assert run("publish", "--from", "events").code == 0 and eyes.count("drift.detected") == 1402
    live = eyes.call("PTTL", eyes.keys.once(whole(700)[whole(700).index("01a208bd") :][:36].replace("-", "")))
    assert 7_000_000 < live <= 7_200_000


def test_lines_that_dedupe_would_not_know_again(run: Run, eyes: Eyes) -> None:
    """A line without an id is reported by its number; the others are published."""
    lines = "\n".join((whole(1), row("a"), whole(2))).encode()
    ran = run("publish", "--from", "-", "--dedupe", stdin=lines)
    assert (ran.code, ran.out) == (1, "published 2 events\n")
    assert "line 2: it has no `id`, by which --dedupe would know it again" in ran.err
    assert eyes.count("drift.detected") == 2


def test_a_key_on_the_command_line(run: Run, eyes: Eyes) -> None:
    """The same key is the same event, whatever it says."""
    first = run("publish", "drift.detected", DATA, "--dedupe-key", "run-7:epoch-3")
    again = run("publish", "drift.detected", DATA.replace("gan", "other"), "--dedupe-key", "run-7:epoch-3")
    assert again.out == f"{first.out}it was there already\n" and names(eyes) == ["gan"]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--from", "x", "--dedupe-key", "k"), "--dedupe-key names one event"),
        (("drift.detected", DATA, "--dedupe", "--dedupe-key", "k"), "--dedupe-key names one event"),
        (("drift.detected", DATA, "--dedupe-key", ""), "--dedupe-key is empty"),
        (("drift.detected", DATA, "--dedupe-window", "2h"), "add one of them"),
        (("drift.detected", DATA, "--dedupe-key", "k", "--dedupe-window", "soon"), "--dedupe-window"),
        (("drift.detected", DATA, "--dedupe-key", "k", "--dedupe-window", "0s"), "--dedupe-window"),
    ],
)
def test_options_that_do_not_go_together(run: Run, eyes: Eyes, argv: tuple[str, ...], part: str) -> None:
    """One line, exit code 2, nothing stored."""
    run("publish", *argv).failed(2, part)
    assert eyes.call("EXISTS", eyes.stream("drift.detected")) == 0


@pytest.mark.parametrize("dry", [False, True])
def test_ctrl_c_amid_a_file(server_url: str, namespace: str, eyes: Eyes, dry: bool) -> None:
    """130, and how far it came: of the lines behind that nothing is stored. A dry run has come nowhere."""
    argv = ["publish", "--from", "-", "drift.resolved", *(["--dry-run"] if dry else [])]
    command = [sys.executable, "-m", "canvasbus", *argv, "--url", server_url, "--namespace", namespace]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin is not None and program.stdout is not None and program.stderr is not None
    program.stdin.write(b"".join(b'{"model_name": "m%d"}\n' % number for number in range(1200)) + b"none\n")
    program.stdin.flush()
    assert b"line 1201: " in program.stderr.readline()  # so it has read all of them, and sent two batches
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=20)
    assert (program.returncode, out) == (130, b"")
    assert eyes.count("drift.resolved") == (0 if dry else 1000)
    told = "canvasbus: interrupted; 1,000 events are stored, nothing from line 1001 on is\n"
    assert err.decode() == ("" if dry else told)
