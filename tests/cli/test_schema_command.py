"""canvasbus schema: a user's own events, in a user's own git repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from once import once
from servers import python_path

README = (Path(__file__).parent.parent.parent / "README.md").read_text()

HEAD = "from canvasbus import Event, event\n"
FIRST = (
    HEAD
    + '''
@event("picture.scored", key="model")
class PictureScored(Event):
    """A picture was scored."""

    model: str
    """Who made it."""
    aesthetic: float
'''
)
WITH_DEFAULT = FIRST + '    prompt: str = ""\n'
REMOVED = FIRST.replace("    aesthetic: float\n", "")
SECOND = (
    HEAD
    + '''
def to_percent(old):
    return {"model": old["model"], "percent": round(old["aesthetic"] * 100)}

@event("picture.scored", version=2, key="model", upcast={1: to_percent})
class PictureScored(Event):
    """A picture was scored."""

    model: str
    percent: int
'''
)


class Repository:
    """A user's checkout with a module `my_events` and git."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith(("CANVASBUS", "GIT"))}
        self._environ |= {
            "PYTHONPATH": python_path(path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str, where: str = ".") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.path / where, env=self._environ, capture_output=True, text=True, timeout=60, check=False
        )

    def git(self, *command: str) -> None:
        done = self.run("git", *command)
        assert done.returncode == 0, done

    def schema(self, *command: str, module: str = "my_events") -> subprocess.CompletedProcess[str]:
        done = self.run(sys.executable, "-m", "canvasbus", "schema", *command, "--module", module)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def write(self, events: str) -> None:
        (self.path / "my_events.py").write_text(events)

    def commit(self) -> subprocess.CompletedProcess[str]:
        self.git("add", "-A")
        return self.run("git", "commit", "-q", "-m", "change")


@pytest.fixture
def repository(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository whose main branch has published version 1."""

    def publish() -> Path:
        made = Repository(tmp_path_factory.mktemp("published"))
        made.git("init", "-q", "-b", "main")
        made.write(FIRST)
        assert made.schema("export").returncode == 0
        assert made.commit().returncode == 0
        return made.path

    shutil.copytree(once(tmp_path_factory, "published", publish), tmp_path, dirs_exist_ok=True)
    return Repository(tmp_path)


def test_what_is_exported_is_in_order(repository: Repository) -> None:
    """Only the user's own events are exported; a second export writes nothing."""
    assert sorted(p.name for p in (repository.path / "schemas").iterdir()) == ["picture.scored"]
    assert len(list((repository.path / "schemas" / "picture.scored").iterdir())) == 3
    done = repository.schema("export")
    assert (done.returncode, done.stdout) == (0, "") and "0 of 3 files written" in done.stderr
    done = repository.schema("check", "--against", "main")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 schemas: schemas is what the code exports, every example decodes, and what main" in done.stderr


def test_a_change_is_found_before_it_is_exported(repository: Repository) -> None:
    """One line, exit code 1, the verdict and the next move; the same as a JSON object."""
    repository.write(WITH_DEFAULT)
    done = repository.schema("check", "--against", "main")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == (
        "picture.scored v1: field 'prompt' came with a default (FULL): run `canvasbus schema export --module my_events` "
        "and commit what it writes\n"
    )
    assert repository.schema("export").returncode == 0
    assert repository.schema("check", "--against", "main").returncode == 0
    repository.write(FIRST.replace("float", "str"))
    done = repository.schema("check", "--json", "--against", "main")
    assert done.returncode == 1
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record == {
        "type": "picture.scored",
        "version": 1,
        "problem": "field 'aesthetic' was number, is text",
        "move": "publish it as a new version with an upcaster",
        "verdict": "BREAKING",
        "path": "aesthetic",
    }


def test_a_break_is_a_new_version_with_nothing_to_compare_with_too(repository: Repository) -> None:
    """One line for each change, none for the old example that follows from it; the command to run is whole."""
    repository.write(REMOVED)
    done = repository.schema("check")
    assert done.returncode == 1
    assert done.stdout == (
        "picture.scored v1: field 'aesthetic' is gone (BACKWARD): publish it as a new version with an upcaster; only "
        "while nobody has published this one, run `canvasbus schema export --module my_events` and commit what it writes\n"
    )
    (line,) = repository.schema("check", "elsewhere").stdout.splitlines()
    assert "run `canvasbus schema export --module my_events elsewhere` and commit" in line


@pytest.mark.parametrize("command", ["check", "diff", "export"])
def test_a_forgotten_module_is_told_in_one_line(repository: Repository, command: str) -> None:
    """What comes along with canvasbus is neither missed in one's own folder nor written there."""
    done = repository.run(*CANVASBUS, "schema", command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "canvasbus: schemas has other events than those that come with canvasbus, like picture.scored: name the module "
        "that declares them (--module)\n"
    )
    assert len(list((repository.path / "schemas").iterdir())) == 1
    assert repository.run(*CANVASBUS, "schema", "export", "others").returncode == 0


def test_exporting_a_break_hides_it_from_nobody(repository: Repository) -> None:
    """Export warns, check alone is content, and check against the published version is not."""
    repository.write(REMOVED)
    done = repository.schema("export")
    assert "picture.scored v1: field 'aesthetic' is gone (BACKWARD): right only while nobody" in done.stderr
    assert repository.schema("check").returncode == 0
    done = repository.schema("check", "--against", "main")
    assert done.returncode == 1
    assert done.stdout.startswith(
        "picture.scored v1: field 'aesthetic' is gone (BACKWARD): publish it as a new version"
    )


def test_a_new_version_passes(repository: Repository) -> None:
    """The files of version 1 stay; a function that does not read its example is named."""
    repository.write(SECOND)
    assert repository.schema("export").returncode == 0
    assert repository.schema("check", "--against", "main").returncode == 0
    assert len(list((repository.path / "schemas" / "picture.scored").iterdir())) == 6
    repository.write(SECOND.replace('old["aesthetic"]', 'old["beauty"]'))
    done = repository.schema("check", "--against", "main")
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 2
    assert "my_events.to_percent raised KeyError: 'beauty'" in done.stdout
    repository.write(SECOND.replace(", upcast={1: to_percent}", ""))
    done = repository.schema("check")
    assert done.returncode == 2 and "picture.scored v2 cannot read v1" in done.stderr


def test_what_changed_is_shown(repository: Repository) -> None:
    """Allowed or not, since the folder or a revision; it is no failure."""
    assert "no change of the contract since schemas" in repository.schema("diff").stderr
    repository.write(WITH_DEFAULT.replace("float", "int"))
    done = repository.schema("diff", "--against", "main")
    assert done.returncode == 0
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "TYPE VERSION VERDICT RULE CHANGE",
        "picture.scored v1 FORWARD new version field 'aesthetic' was number, is integer",
        "picture.scored v1 FULL allowed field 'prompt' came with a default",
    ]
    records = [json.loads(line) for line in repository.schema("diff", "--json").stdout.splitlines()]
    assert [(r["path"], r["verdict"], r["allowed"]) for r in records] == [
        ("aesthetic", "FORWARD", False),
        ("prompt", "FULL", True),
    ]


def test_the_catalog_tells_what_there_is(repository: Repository) -> None:
    """Versions that are read, key and first line; with --json every field."""
    repository.write(SECOND)
    lines = repository.schema("catalog").stdout.splitlines()
    assert lines[1].split() == ["picture.scored", "v1–v2", "model", "2", "A", "picture", "was", "scored."]
    (record,) = map(json.loads, repository.schema("catalog", "picture.*", "--json").stdout.splitlines())
    assert (record["version"], record["since"], record["class"]) == (2, 1, "my_events.PictureScored")
    assert {"name": "percent", "type": "integer", "required": True, "description": ""} in record["fields"]
    done = repository.schema("catalog", "zzz*")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no type matches 'zzz*'\n")
    done = repository.run(*CANVASBUS, "schema", "catalog", "picture.scored")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "no type matches 'picture.scored'; your own are found with --module\n"


WORKERS = """
from canvasbus.worker import Worker
from my_events import PictureScored

worker = Worker("judges")

@worker.on(PictureScored)
async def judge(event: PictureScored) -> None:
    pass

@worker.on("picture.framed")
async def frame(event) -> None:
    pass
"""


def test_topics_and_workers_as_asyncapi(repository: Repository) -> None:
    """Of modules and of workers, to a file or to stdout, the same each time; what cannot be said is told on stderr."""
    repository.write(SECOND)
    (repository.path / "my_workers.py").write_text(WORKERS)
    done = repository.schema("asyncapi", "my_workers:worker", "-o", "asyncapi.json", "--release", "7")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "picture.framed is left out: no module that declares it is imported (--module)",
        "wrote asyncapi.json",
    ]
    first = (repository.path / "asyncapi.json").read_bytes()
    document = json.loads(first)
    assert document["info"]["title"] == "Events of my_events, my_workers:worker"
    assert (document["asyncapi"], document["info"]["version"]) == ("3.0.0", "7")
    assert set(document["channels"]) == {"picture.scored"} and "servers" not in document
    assert set(document["components"]["messages"]) == {"picture.scored.v1", "picture.scored.v2"}
    assert set(document["operations"]) == {"send-picture.scored", "receive-picture.scored-by-judges"}
    assert repository.schema("asyncapi", "my_workers:worker", "--release", "7").stdout.encode() == first
    (line,) = repository.schema("asyncapi", "--json").stdout.splitlines()
    assert set(json.loads(line)["operations"]) == {"send-picture.scored"}
    done = repository.schema("asyncapi", "--folder", "elsewhere")
    assert "picture.scored v1 is left out: elsewhere has no schema of it (--folder)" in done.stderr
    assert set(json.loads(done.stdout)["components"]["messages"]) == {"picture.scored.v2"}
    url = "redis://mia:hidden@lab:6380/1"
    done = repository.run(*CANVASBUS, "schema", "asyncapi", "my_workers:worker", "--url", url, "--title", "Judges")
    assert json.loads(done.stdout)["servers"]["bus"]["host"] == "lab:6380"
    assert json.loads(done.stdout)["info"]["title"] == "Judges" and "hidden" not in done.stdout


def test_without_names_asyncapi_tells_what_comes_along(repository: Repository) -> None:
    """canvasbus's own events."""
    done = repository.run(*CANVASBUS, "schema", "asyncapi")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["channels"]) == 24


CANVASBUS = (sys.executable, "-m", "canvasbus")


@pytest.mark.parametrize(
    ("command", "module", "says"),
    [
        (("asyncapi", "my_events:worker"), "my_events", "has no 'worker'; it declares no Worker"),
        (("asyncapi", "-o", "no/such/folder"), "my_events", "-o no/such/folder: No such file or directory"),
        (("asyncapi", "--url", "rediss:/x"), "my_events", "off:// (url from --url)"),
        (("check", "--against", "nowhere"), "my_events", "the repository has no such revision here; fetch it first"),
        (("check", "--against", "--all"), "my_events", "expected one argument"),
        (("check", "--against=-x"), "my_events", "is no revision"),
        (("check", "my_events.py"), "my_events", "my_events.py is no folder"),
        (("export", "my_events.py"), "my_events", "my_events.py is no folder"),
        (("check", "x" * 300), "my_events", "cannot be read: File name too long"),
        (("export", "/dev/null/schemas"), "my_events", "picture.scored/v1.json cannot be written: Not a directory"),
        (("check",), "json", "json: no event is declared there"),
        (("check",), "my_events:PictureScored", "'my_events:PictureScored' is not a module name; write my_events\n"),
        (("check",), "my_events.py", "there is no module my_events.py; did you mean my_events?"),
        (("check",), "./my_events.py", "is not a module name; write it as `import` does, like my_events or"),
        (("check",), "my_evnts", "there is no module my_evnts; did you mean my_events?"),
    ],
)
def test_bad_usage_is_one_line(repository: Repository, command: tuple[str, ...], module: str, says: str) -> None:
    """And exit code 2: whether the schemas are right is not known then."""
    done = repository.schema(*command, module=module)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_a_schema_with_conflict_markers_says_what_to_do(repository: Repository) -> None:
    """In one line, and doing so helps."""
    schema = repository.path / "schemas" / "picture.scored" / "v1.json"
    schema.write_text("<<<<<<< HEAD\n" + schema.read_text())
    for command in ("check", "diff", "export"):
        done = repository.schema(command)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
        assert "picture.scored/v1.json is no JSON" in done.stderr
        assert "restore it, or remove it and export it anew" in done.stderr
    schema.unlink()
    assert "1 of 3 files written, the others were so already" in repository.schema("export").stderr
    assert repository.schema("check", "--against", "main").returncode == 0


def test_outside_of_a_repository_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    """The reason is said."""
    made = Repository(tmp_path)
    made.write(FIRST)
    done = made.schema("check", "--against", "main")
    assert done.returncode == 2 and "is not in a git repository" in done.stderr
    (tmp_path / ".git").write_text("nonsense")  # like a checkout of another user, which git refuses, too
    done = made.schema("check", "--against", "main")
    assert done.returncode == 2 and f"git says in {tmp_path}: fatal: invalid gitfile format" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_a_revision_does_not_have_is_empty_there(repository: Repository) -> None:
    """A project that begins to export has published nothing yet; the folder may lie anywhere in the repository."""
    (repository.path / "deep" / "down").mkdir(parents=True)
    assert repository.schema("export", "deep/down/schemas").returncode == 0
    assert repository.schema("check", "deep/down/schemas", "--against", "main").returncode == 0
    assert repository.commit().returncode == 0
    repository.write(REMOVED)
    assert repository.schema("export", "deep/down/schemas").returncode == 0
    assert repository.schema("check", "deep/down/schemas", "--against", "main").returncode == 1


def test_a_deleted_folder_does_not_open_the_gate(repository: Repository) -> None:
    """What main has published is read from there."""
    repository.write(REMOVED)
    for path in sorted((repository.path / "schemas").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (repository.path / "schemas").rmdir()
    assert repository.schema("export").returncode == 0
    assert repository.schema("check", "--against", "main").returncode == 1


@pytest.fixture
def hook(repository: Repository) -> Callable[[], None]:
    """Install the README's hook as git's own: what pre-commit would run."""
    (config,) = [text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "hooks:" in text]
    ((found,),) = [repo["hooks"] for repo in yaml.safe_load(config)["repos"]]
    assert (found["language"], found["pass_filenames"]) == ("system", False)

    def install() -> None:
        path = repository.path / ".git" / "hooks" / "pre-commit"
        path.write_text(f"#!/bin/sh\nexec {found['entry']}\n")
        path.chmod(0o755)

    return install


def test_the_hook_of_the_readme_refuses_a_break_and_lets_the_rest_through(
    repository: Repository, hook: Callable[[], None]
) -> None:
    """On a branch, with git's own variables around it: a break is refused, exported or not; a default and a new version
    are not."""
    hook()
    repository.git("checkout", "-q", "-b", "branch")
    repository.write(REMOVED)
    assert repository.schema("export").returncode == 0
    done = repository.commit()
    assert done.returncode == 1 and "field 'aesthetic' is gone (BACKWARD)" in done.stdout + done.stderr
    for good in (WITH_DEFAULT, SECOND):
        repository.git("checkout", "-q", "-f", "main", "--", "schemas")
        repository.write(good)
        assert repository.commit().returncode == 1  # not exported yet
        assert repository.schema("export").returncode == 0
        assert repository.commit().returncode == 0
        repository.git("reset", "-q", "--hard", "main")
