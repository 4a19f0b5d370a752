"""The command line when something is wrong, and as a process: one line, the right exit code, no password, no traceback."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from cli.commands import Run, unread
from servers import ServerProcess, free_port
from studio import Eyes, PaintingMade

from canvasbus.wire.codec import Codec

NEED_A_SERVER = [
    ("topics",),
    ("groups",),
    ("dlq", "list"),
    ("dlq", "show", "1-0"),
    ("tail",),
    ("tail", "--from", "0"),
    ("publish", "drift.resolved", '{"model_name": "m"}'),
]
CANVASBUS = (sys.executable, "-m", "canvasbus")


@pytest.mark.parametrize("argv", NEED_A_SERVER, ids=" ".join)
def test_without_a_url_the_three_ways_to_set_one_are_named(run_bare: Run, argv: tuple[str, ...]) -> None:
    """Exit code 2."""
    run_bare(*argv).failed(2, "--url", "CANVASBUS_URL", "canvasbus.toml")


@pytest.mark.parametrize("argv", NEED_A_SERVER, ids=" ".join)
def test_memory_has_nothing_to_look_at(run_bare: Run, argv: tuple[str, ...]) -> None:
    """memory:// of another process cannot be seen: exit code 2, with the origin of the URL."""
    run_bare(*argv, "--url", "memory://").failed(2, "memory://", "(url from --url)")


@pytest.mark.parametrize("argv", NEED_A_SERVER, ids=" ".join)
def test_a_server_that_is_away_is_one_line(run_bare: Run, argv: tuple[str, ...]) -> None:
    """Nobody listens: exit code 1, the address without its password."""
    port = free_port()
    run_bare(*argv, "--url", f"redis://me:sesame@127.0.0.1:{port}").failed(1, f"redis://me:***@127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rediss//:sesame@h", "must begin with one of redis://"),
        ("reddis://:sesame@h", "did you mean redis://?"),
        ("localhost:6379", "no scheme://"),
        ("redis://h:sesame", "its port must be a number"),
        ("redis://:sesa/me@h", "%2F"),
        ("redis://:123/sesame@h:1", "%2F"),
        ("redis://:sesa#me@h", "%2F"),
        ("redis://u#sesame@h", "%2F"),
        ("redis://:1?sesame@h:1", "%2F"),
        ("redis://u:ses@me/sesame@h", "%2F"),
        ("redis://h/x", "must be a number"),
        ("redis://h?sll=1", "unknown option"),
        ("unix://", "names no socket"),
        ("off://", "off://"),
        ("", ""),
    ],
)
def test_a_url_that_cannot_work_is_one_line(run_bare: Run, url: str, says: str) -> None:
    """Exit code 2, the origin, and no piece of the password."""
    ran = run_bare("topics", "--url", url)
    ran.failed(2, says, "(url from --url)")
    assert "ses" not in ran.err


def test_a_server_that_wants_a_password(run_bare: Run, make_server: Callable[..., ServerProcess]) -> None:
    """None given, or a wrong one: exit code 1, what to do, and nothing of the password; with the right one all is well."""
    server = make_server(config=("--requirepass", "sesame"))
    run_bare("topics", "--url", server.url).failed(1, "wants a password")
    ran = run_bare("topics", "--url", server.url.replace("//", "//:wrong-one@"))
    ran.failed(1, "refuses this user or password")
    assert "wrong-one" not in ran.err
    ran = run_bare("topics", "--url", server.url.replace("//", "//:sesame@"))
    assert ran.code == 0 and "sesame" not in ran.err + ran.out


def test_another_number_of_partitions(run: Run, eyes: Eyes) -> None:
    """One that somebody set and that differs from the record is refused; the default follows the record."""
    eyes.call("HSET", eyes.keys.meta, "partitions", 4)
    for argv in NEED_A_SERVER:
        run(*argv, "--partitions", "3").failed(2, "4 partitions", "(partitions from --partitions)")
    assert run("topics").code == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "COMMAND"),
        (("tpoics",), "did you mean topics?"),
        (("topics", "--jsn"), "did you mean --json?"),
        (("topics", "--js"), "unknown argument --js"),
        (("topics", "a", "b"), "unknown argument b"),
        (("topics", "--namespace", "a b"), "namespace='a b' from --namespace"),
        (("topics", "--partitions", "many"), "invalid int value"),
        (("dlq",), "COMMAND"),
        (("dlq", "lst"), "did you mean list?"),
        (("topics", "--url"), "expected one argument"),
    ],
)
def test_wrong_usage_is_one_line(run_bare: Run, argv: tuple[str, ...], says: str) -> None:
    """Exit code 2, and what was probably meant."""
    run_bare(*argv).failed(2, says)


def test_help_and_version(run_bare: Run) -> None:
    """Exit code 0; every command is in the help."""
    ran = run_bare("--help")
    assert ran.code == 0
    for command in ("publish", "tail", "topics", "groups", "dlq", "config", "demo", "completion"):
        assert f"    {command} " in ran.out
    assert run_bare("--version").out.startswith("canvasbus ")


def test_options_may_stand_before_the_command(run: Run, server_url: str, namespace: str, run_bare: Run) -> None:
    """--url and --namespace work on both sides; the later one wins nothing it did not say."""
    ran = run_bare("--url", server_url, "--namespace", namespace, "topics")
    assert ran.code == 0 and namespace in ran.err


# --- as processes -----------------------------------------------------------------------------------------------------


def started(url: str, namespace: str, *argv: str, **options: object) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "CANVASBUS_URL": url, "CANVASBUS_NAMESPACE": namespace, "PYTHONWARNINGS": "error"}
    pipes: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*CANVASBUS, *argv], env=environ, **pipes)  # type: ignore[call-overload,no-any-return]


def put(eyes: Eyes, count: int) -> None:
    for out in Codec("lab").encode_many([PaintingMade(title=f"t{n}" + "x" * 400) for n in range(count)]):
        eyes.call("XADD", eyes.stream(), "*", "e", out.data)


def test_tail_into_publish_copies_a_bus(
    server_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes and a pipe: every event arrives in the other namespace with its id and order."""
    put(eyes, 40)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    module = ("--module", "studio")
    reader = started(server_url, namespace, "tail", "--from", "0", "--json", *module)
    writer = started(server_url, namespace + "-copy", "publish", "--from", "-", *module, stdin=reader.stdout)
    assert reader.stdout is not None
    reader.stdout.close()
    out, err = writer.communicate(timeout=30)
    assert (writer.returncode, out, err) == (0, b"published 40 events\n", b"")
    assert reader.wait(10) == 0 and reader.stderr is not None and reader.stderr.read() == b""
    reader.stderr.close()
    copy = Eyes(server_url, namespace + "-copy")
    assert [envelope.id for envelope, _ in copy.entries("painting.made")] == [
        envelope.id for envelope, _ in eyes.entries("painting.made")
    ]
    copy.close()


@pytest.mark.parametrize(
    ("to", "code", "says"),
    [(">&-", 0, ""), (">/dev/full", 1, "canvasbus: the output cannot be written: No space left on device\n")],
)
def test_an_output_that_takes_nothing(server_url: str, namespace: str, to: str, code: int, says: str) -> None:
    """Closed, as under a supervisor: the command does its work. On a full disk it says so, in one line."""
    event = '{"model_name": "m"}'
    command = f"{sys.executable} -m canvasbus publish drift.resolved '{event}' {to}"
    environ = dict(os.environ) | {"CANVASBUS_URL": server_url, "CANVASBUS_NAMESPACE": namespace}
    done = subprocess.run(command, shell=True, env=environ, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, says)
    eyes = Eyes(server_url, namespace)
    assert eyes.count("drift.resolved") == 1
    eyes.close()


def test_a_reader_that_has_seen_enough_ends_tail_quietly(server_url: str, namespace: str, eyes: Eyes) -> None:
    """`| head -1`: exit code 0 and not a word on stderr."""
    put(eyes, 600)
    tail = started(server_url, namespace, "tail", "--from", "0", "--json")
    assert tail.stdout is not None and tail.stderr is not None
    assert tail.stdout.readline().startswith(b"{")
    tail.stdout.close()
    assert tail.stderr.read() == b""
    tail.stderr.close()
    assert tail.wait(10) == 0


def test_a_file_is_published_though_nobody_reads_the_records(
    server_url: str, namespace: str, eyes: Eyes, tmp_path: Path
) -> None:
    """`publish --from FILE --json | head -1`: all lines are stored, and the exit code tells of one that is no event."""
    lines = [f'{{"model_name": "m{number}"}}' for number in range(1200)]
    (tmp_path / "lines").write_text("\n".join(lines))
    asked = ("publish", "--from", str(tmp_path / "lines"), "drift.resolved", "--json")
    assert unread(server_url, namespace, *asked) == (0, "")
    assert eyes.count("drift.resolved") == 1200
    (tmp_path / "lines").write_text("\n".join(["none", *lines]))
    code, err = unread(server_url, namespace, *asked)
    assert code == 1 and "line 1: " in err and "1 line not published" not in err
    assert eyes.count("drift.resolved") == 2400
    assert unread(server_url, namespace, "topics") == (0, "")


def test_ctrl_c_ends_following_quietly(server_url: str, namespace: str, eyes: Eyes) -> None:
    """130, as a shell expects, and no traceback."""
    put(eyes, 1)
    tail = started(server_url, namespace, "tail", "--from", "0", "--follow")
    assert tail.stdout is not None
    assert b"painting.made" in tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    out, err = tail.communicate(timeout=20)
    assert (tail.returncode, out, err) == (130, b"", b"")


def cpu_seconds(*argv: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_quick() -> None:
    """Under 100 ms of CPU more than an empty interpreter; the median of differences, taken pairwise against noise."""
    program = Path(sys.executable).with_name("canvasbus")
    help_ = (str(program), "--help") if program.exists() else (*CANVASBUS, "--help")
    cpu_seconds(*help_)  # the first run may compile
    differences = [cpu_seconds(*help_) - cpu_seconds(sys.executable, "-c", "pass") for _ in range(7)]
    print(sorted(round(each * 1000) for each in differences), "ms")
    assert median(differences) < 0.1 or min(differences) < 0.08
