"""A folder as it is in a revision of the git repository that it lies in. Nothing is fetched, nothing is checked out."""

import os
import subprocess
from pathlib import Path

from canvasbus.errors import ConfigError


def read_revision(directory: Path, revision: str) -> dict[str, bytes]:
    """The files below `directory` in a revision (a branch, a tag, a commit); empty where it had none then.

    Raises ConfigError when there is no git, no repository or no such revision.
    """
    where = directory.absolute()
    while not where.is_dir():
        where = where.parent
    if revision.startswith("-") or not revision:
        raise ConfigError(f"--against {revision!r} is no revision")
    try:
        commit = _git(where, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError:
        try:
            _git(where, "rev-parse", "--git-dir")
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().partition("\n")[0]
            if "not a git repository" in said:
                raise ConfigError(f"--against {revision}: {where} is not in a git repository") from None
            raise ConfigError(f"--against {revision}: git says in {where}: {said}") from None
        raise ConfigError(
            f"--against {revision}: the repository has no such revision here; fetch it first (in CI, a checkout with more "
            "than the last commit)"
        ) from None
    except FileNotFoundError:
        raise ConfigError(f"--against {revision}: git is not installed") from None
    top = Path(_git(where, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    inside = directory.resolve().relative_to(top.resolve()).as_posix()
    prefix = "" if inside == "." else f"{inside}/"
    listed = _git(top, "ls-tree", "-r", "-z", "--full-tree", commit.decode().strip(), "--", prefix or ".")
    blobs = [line.split(b"\t", 1) for line in listed.split(b"\0") if line]
    hashes = b"\n".join(head.split()[2] for head, _ in blobs)
    contents = _batch(_git(top, "cat-file", "--batch", given=hashes + b"\n")) if blobs else []
    names = (name.decode("utf-8", "surrogateescape").removeprefix(prefix) for _, name in blobs)
    return dict(zip(names, contents, strict=True))


def _git(where: Path, *args: str, given: bytes = b"") -> bytes:
    # A hook runs with variables that name the repository it belongs to, relative to another directory than ours.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(where), *args], input=given, capture_output=True, env=environ | {"LC_ALL": "C"}, check=True
    )
    return done.stdout


def _batch(out: bytes) -> list[bytes]:
    """The objects in the answer of `git cat-file --batch`: a line that ends with the size, the content, a line end."""
    found, at = [], 0
    while at < len(out):
        end = out.index(b"\n", at)
        size = int(out[at:end].rsplit(b" ", 1)[1])
        found.append(out[end + 1 : end + 1 + size])
        at = end + 1 + size + 1
    return found
