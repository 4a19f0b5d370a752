"""canvasbus doctor: what people and programs see of it, and its exit codes. What it finds: tests/operate/test_doctor.py."""

import json
from collections.abc import Callable

import pytest
from cli.commands import Run, runner
from servers import ServerProcess, free_port
from studio import Eyes

from canvasbus.cli.doctor import show
from canvasbus.cli.output import Output
from canvasbus.operate.doctor.finding import Finding

MakeServer = Callable[..., ServerProcess]


@pytest.fixture
def healthy(make_server: MakeServer) -> ServerProcess:
    """A server about which the doctor has nothing to say."""
    server = make_server(persistent=True, config=("--maxmemory", "200mb"))
    eyes = Eyes(server.url, "canvasbus")
    eyes.call("HSET", eyes.keys.meta, "partitions", 1)
    eyes.close()
    return server


def test_a_healthy_server(run_bare: Run, healthy: ServerProcess) -> None:
    """Exit code 0, one line for each check, and how many of each level on stderr."""
    ran = run_bare("doctor", "--url", healthy.url)
    assert ran.code == 0
    assert all(line.startswith("ok       ") for line in ran.lines)
    assert ran.err == f"{len(ran.lines)} ok\n"


def test_for_programs(run_bare: Run, healthy: ServerProcess) -> None:
    """One JSON object a line, nothing else; the same exit code."""
    ran = run_bare("doctor", "--url", healthy.url, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.records[0].keys() == {"level", "check", "found", "advice", "group", "topic", "estimate"}


def test_something_is_wrong(run_bare: Run, make_server: MakeServer) -> None:
    """Exit code 1, the finding with its advice behind an arrow on one line, for grep."""
    server = make_server(config=("--maxmemory-policy", "allkeys-lru"))
    ran = run_bare("doctor", "--url", server.url)
    assert ran.code == 1 and ran.err.startswith("1 error, 1 warning, ")
    (line,) = [line for line in ran.lines if line.startswith("error")]
    assert (
        line.startswith("error    eviction: maxmemory-policy allkeys-lru") and " → CONFIG SET maxmemory-policy" in line
    )


def test_a_server_that_is_away_is_a_finding(run_bare: Run) -> None:
    """Exit code 1, on stdout like all others; no password."""
    ran = run_bare("doctor", "--url", f"redis://me:sesame@127.0.0.1:{free_port()}", "--json")
    (finding,) = ran.records
    assert (ran.code, finding["level"], finding["check"]) == (1, "error", "connection")
    assert "sesame" not in ran.out + ran.err


@pytest.mark.parametrize("url", ["memory://", "off://", "memory://shared"])
def test_urls_without_a_server(run_bare: Run, url: str) -> None:
    """A note that says what they mean; exit code 0."""
    ran = run_bare("doctor", "--url", url)
    assert (ran.code, ran.err) == (0, "1 note\n")
    assert ran.out.startswith(f"note     url: {url.partition('//')[0]}//")


def test_bad_usage(run_bare: Run) -> None:
    """No URL, a URL that cannot work, an unknown role: exit code 2 and one line."""
    run_bare("doctor").failed(2, "CANVASBUS_URL")
    run_bare("doctor", "--url", "reddis://h").failed(2, "did you mean redis://?", "(url from --url)")
    run_bare("doctor", "--acl", "king").failed(2, "there are producer, worker, operator")


@pytest.mark.parametrize("role", ["producer", "worker", "operator"])
def test_the_line_of_a_role(run_bare: Run, role: str) -> None:
    """Needs no server. The line alone on stdout; what is still to be done on stderr."""
    ran = run_bare("doctor", "--acl", role, "--namespace", "studio")
    assert ran.code == 0 and len(ran.lines) == 1
    assert ran.lines[0].startswith(f"ACL SETUSER studio-{role} on resetkeys ~{{studio:*}}:")
    assert "has no password" in ran.err
    (record,) = run_bare("doctor", "--acl", role, "--namespace", "studio", "--json").records
    assert record == {"role": role, "user": f"studio-{role}", "command": ran.lines[0]}


def test_names_from_the_server_stay_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences and line ends in a finding are written as escapes, in every form."""
    nasty = "group '\x1b[2J\r\nok all is well\u202e'"
    for as_json in (False, True):
        show(Output(json=as_json), Finding("error", "x", nasty, nasty, group=nasty))
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "\x1b" not in out and "\u202e" not in out
    assert json.loads(out)["group"] == nasty


def test_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrapped under its beginning, in the terminal's width; nothing is cut."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Output()
    out.terminal = True
    words = [f"word{n}" for n in range(40)]
    show(out, Finding("warning", "x", " ".join(words), "do this"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning  x: word0 ") and all(line.startswith(" " * 9) for line in lines[1:])
    assert max(map(len, lines)) <= 60 and lines[-1] == " " * 9 + "→ do this"
    assert " ".join(" ".join(lines).split()) == f"warning x: {' '.join(words)} → do this"


def test_as_an_operator(healthy: ServerProcess, capsys: pytest.CaptureFixture[str], run_bare: Run) -> None:
    """Under the operator's own ACL nothing is wrong, and what is not known is said."""
    eyes = Eyes(healthy.url, "studio")
    eyes.call(*run_bare("doctor", "--acl", "operator", "--namespace", "studio").out.split())
    eyes.call("ACL", "SETUSER", "studio-operator", ">pw")
    ran = runner(healthy.url.replace("redis://", "redis://studio-operator:pw@"), "studio", capsys)("doctor")
    assert ran.code == 0 and "note     not told: the server does not answer CONFIG GET" in ran.out
    eyes.close()


def test_a_hostile_namespace(run: Run, eyes: Eyes) -> None:
    """Names that hold escape sequences and line ends forge no line, and none of them reaches the terminal."""
    keys = eyes.keys
    nasty = b"\x1b[2J\r\nok       all is well\n\xff\xe2\x80\xae"
    eyes.call("XADD", keys.stream("") + nasty, "*", "e", "x")
    eyes.call("XGROUP", "CREATE", keys.stream("") + nasty, nasty, "0")
    eyes.call("XREADGROUP", "GROUP", nasty, nasty, "STREAMS", keys.stream("") + nasty, ">")
    eyes.call("HSET", keys.groups, nasty, nasty)
    eyes.call("XADD", keys.dead("") + nasty, "*", "e", "x")
    eyes.call("LPUSH", keys.beats("") + nasty, "x")
    plain, programs = run("doctor"), run("doctor", "--json")
    assert plain.code == programs.code == 1
    assert len(plain.lines) == len(programs.records)
    for ran in (plain, programs):
        assert not {"\x1b", "\r", "\u202e", "\udcff"} & set(ran.out)
        assert not [line for line in ran.lines if "all is well" in line and line.startswith("ok")]


def test_partitions_of_this_process(run_bare: Run, healthy: ServerProcess) -> None:
    """A number that somebody has set must be the one on record; the default need not."""
    assert run_bare("doctor", "--url", healthy.url).code == 0
    ran = run_bare("doctor", "--url", healthy.url, "--partitions", "4")
    assert ran.code == 1 and "has 1 partition here, this process is set to 4" in ran.out
