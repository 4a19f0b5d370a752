"""The least rights of each role: the table that ACLs are made of agrees with what the code sends."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from servers import ServerProcess, binaries
from studio import Eyes

from canvasbus import ConfigError, Refused
from canvasbus.transport import group_scripts, owner_scripts, scripts, settle_script, timer_scripts, trim_script
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.rights import RIGHTS, ROLES, acl, acl_name, denied, user
from canvasbus.wire.keys import Keys

PACKAGE = Path(scripts.__file__).parent.parent

OF_ROLES = {  # which role runs the code of a folder or file; the longest that fits
    "produce": {"producer", "worker", "operator"},
    "consume": {"worker"},
    "bus.py": {"worker"},
    "worker.py": {"worker"},
    "operate": {"operator"},
    "operate/doctor/server.py": set(),  # asks first what it may ask, and goes on without
    "cli": {"operator"},
    "cli/worker.py": {"worker"},
    "cli/health.py": {"worker"},
    "cli/demo.py": set(),  # plays all roles in a namespace of its own
    "cli/cast.py": set(),
    "cli/twin.py": set(),
    "testing": set(),  # on servers of its own
    "transport": set(),
    "transport/remote_threads.py": {"producer", "worker", "operator"},
    "transport/remote_trio.py": {"producer", "worker", "operator"},
    "transport/sentinel.py": {"producer", "worker", "operator"},
}
IN_NO_ROLE = {
    "auth": "needs no right",
    "sentinel": "asked of sentinels, who have users of their own",
    "config|get": "shows the server's passwords; doctor asks where it may",
    **dict.fromkeys(("xackdel", "xnack", "waitaof"), "tried by doctor, with no arguments"),
}
ONLY_ASYNC = {
    "client|id",
    "info",
}  # remote_trio.py: its connections send these, which producers and operators have none of


class Sent(ast.NodeVisitor):
    """Commands in Python code: what `command`, `pack` and `call` are given, and tuples that begin like one."""

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.found: set[str] = set()
        self.names: set[tuple[str, ...]] = set()

    def visit_Name(self, node: ast.Name) -> None:
        self.names.add((node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name):
            self.names.add((node.value.id, node.attr))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("command", "pack", "call"):
            self._add(node.args)
        self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        self._add(node.elts)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """`word in ("READONLY", …)` compares and sends nothing."""
        self.visit(node.left)

    def _add(self, nodes: list[ast.expr]) -> None:
        words = [node.value for node in nodes[:2] if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if words and isinstance(nodes[0], ast.Constant) and words[0].isupper():
            name = acl_name(words)
            if name in self.known:
                self.found.add(name)


class Code:
    """The package's code, and which commands a piece of it sends."""

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.trees = {
            path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")
        }
        self._imports, self._of_piece = cache(self._imports_of), cache(self._find_piece)
        self.lua = {
            (f"transport/{module.__name__.rpartition('.')[2]}.py", name): self._in_lua(value.source)
            for module in (scripts, group_scripts, owner_scripts, settle_script, timer_scripts, trim_script)
            for name, value in vars(module).items()
            if isinstance(value, scripts.Script)
        }

    def _in_lua(self, source: str) -> set[str]:
        calls = re.findall(r"(?:redis\.p?call\(|\{)'([A-Z]+)'(?:, (?:KEYS\[\w+\], )?'([A-Z]+)')?", source)
        return {acl_name([word for word in call if word]) for call in calls} & self.known

    def of_file(self, file: str) -> set[str]:
        """What a file sends itself, and by what it imports from files that other roles run."""
        visitor = Sent(self.known)
        visitor.visit(self.trees[file])
        found, waiting, seen = visitor.found, self._places(file, visitor.names), set[tuple[str, str]]()
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen.add(place)
                commands, more = self._of_piece(*place)
                found = found | commands
                waiting += more
        return found

    def _imports_of(self, file: str) -> dict[str, tuple[str, str]]:
        """Name → (file, name) for what a file imports from the package."""
        return {
            alias.asname or alias.name: (node.module.removeprefix("canvasbus.").replace(".", "/") + ".py", alias.name)
            for node in ast.walk(self.trees[file])
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("canvasbus.")
            for alias in node.names
        }

    def _find_piece(self, file: str, name: str) -> tuple[set[str], list[tuple[str, str]]]:
        """What one function or class of a file sends, and the pieces that it names; the transport has none."""
        if (file, name) in self.lua:
            return self.lua[file, name] | {"eval", "evalsha"}, []
        if file not in self.trees or file.startswith("transport/"):
            return set(), []
        visitor = Sent(self.known)
        for node in self.trees[file].body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
                visitor.visit(node)
        return visitor.found, self._places(file, visitor.names)

    def _places(self, file: str, names: set[tuple[str, ...]]) -> list[tuple[str, str]]:
        """Where names that stand in a file, and names in modules that it imports, are defined."""
        places = []
        for name, *attribute in names:
            module, piece = self._imports(file).get(name, (file, name))
            if attribute:
                module, piece = f"{module.removesuffix('.py')}/{piece}.py", attribute[0]
            places.append((module, piece))
        return places


def sent(known: set[str]) -> Iterator[tuple[str, set[str], set[str]]]:
    """(file, roles, commands) for every file of the package."""
    code = Code(known)
    for file in sorted(code.trees):
        roles = OF_ROLES[max((name for name in OF_ROLES if file.startswith(name)), key=len, default="transport")]
        yield file, roles, code.of_file(file)


@pytest.fixture(scope="module")
def known() -> Iterator[set[str]]:
    """All commands of a server, by the names that an ACL has for them."""
    server = ServerProcess(binaries()["redis"]).start()
    link = BlockingLink(open_server(server.url))
    yield {name.decode() for name in link.call("COMMAND", "LIST")} | {
        sub.decode()
        for container in ("acl", "client", "config", "memory", "script", "xgroup", "xinfo")
        for sub in [row[0] for row in link.call("COMMAND", "INFO", container)[0][9]]
    }
    link.close()
    server.remove()


@pytest.mark.long
def test_every_command_that_is_sent_has_a_role_that_may_send_it(known: set[str]) -> None:
    """A new command in the code must be added to transport/rights.py, for every role that runs that code."""
    missing = []
    for file, roles, commands in sent(known):
        for role in roles:
            rights = {right.name for right in RIGHTS[role]} | IN_NO_ROLE.keys()
            if file.startswith("transport/") and role != "worker":
                rights |= ONLY_ASYNC
            missing += [f"{role}: {command}, sent by {file}" for command in sorted(commands - rights)]
    assert not missing


@pytest.mark.long
def test_no_role_may_send_what_its_code_never_sends(known: set[str]) -> None:
    """The ACLs are the least ones."""
    for role in ROLES:
        used = set().union(*(commands for _, roles, commands in sent(known) if role in roles))
        used |= {
            "xadd",
            "multi",
            "exec",
            "watch",
            "get",
            "acl|whoami",
        }  # the batch of fenced.py, which is put together as bytes
        assert {right.name for right in RIGHTS[role]} <= used, role
        assert {right.name for right in RIGHTS[role]} <= known


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("role", ROLES)
def test_each_missing_right_is_found(make_server: Callable[..., ServerProcess], kind: str, role: str) -> None:
    """With the role's own ACL nothing is denied; without one command exactly that one is. Nothing is run or logged."""
    server = make_server(kind)
    eyes, keys = Eyes(server.url, "studio"), Keys("studio")
    eyes.call(*acl(role, "studio").split())
    name = user(role, "studio")
    eyes.call("ACL", "SETUSER", name, ">pw", "+eval", "+evalsha")
    link = BlockingLink(open_server(server.url.replace("redis://", f"redis://{name}:pw@")))

    def lacking(**options: Any) -> list[str]:
        return [right.name for right in link.run(denied(RIGHTS[role], keys, **options))]

    assert lacking() == []
    for command in sorted({right.name for right in RIGHTS[role]} - {"eval", "evalsha", "ping"}):
        eyes.call("ACL", "SETUSER", name, f"-{command}")
        assert set(lacking()) == {command}
        eyes.call("ACL", "SETUSER", name, f"+{command}")
    assert eyes.call("DBSIZE") == 0
    assert eyes.call("ACL", "LOG") == []
    for command in ("eval", "evalsha"):
        eyes.call("SCRIPT", "FLUSH")
        eyes.call("ACL", "SETUSER", name, f"-{command}")
        with pytest.raises(Refused, match=f"'{command}'"):
            lacking()
        eyes.call("ACL", "SETUSER", name, f"+{command}")
    eyes.close()
    link.close()


def test_a_right_for_other_keys_is_no_right(make_server: Callable[..., ServerProcess]) -> None:
    """A user of another namespace, or of some event types only, lacks what touches keys."""
    server = make_server()
    eyes = Eyes(server.url, "studio")
    eyes.call(*acl("worker", "studio").split())
    eyes.call("ACL", "SETUSER", "studio-worker", ">pw")
    link = BlockingLink(open_server(server.url.replace("redis://", "redis://studio-worker:pw@")))
    names = {right.name for right in link.run(denied(RIGHTS["worker"], Keys("elsewhere")))}
    assert {"xadd", "xreadgroup", "hgetall", "evalsha"} <= names
    assert not names & {"ping", "multi", "scan", "time"}
    eyes.call("ACL", "SETUSER", "studio-worker", "resetkeys", "~{studio:*}:stream:drift.*")
    asked = [right for right in RIGHTS["worker"] if right.form.startswith("X") and " stream" in right.form]
    assert link.run(denied(asked, Keys("studio"), event_type="drift.detected")) == []
    assert link.run(denied(asked, Keys("studio"), event_type="painting.made")) == asked
    eyes.close()
    link.close()


def test_the_line_of_a_role() -> None:
    """Without password; a namespace or a role that there cannot be is an error, not a wider pattern."""
    line = acl("producer", "studio")
    assert line.startswith("ACL SETUSER studio-producer on resetkeys ~{studio:*}:stream:* ")
    assert " resetchannels -@all +ping " in line and ">" not in line and "nopass" not in line
    assert line.count("+xadd") == 1
    with pytest.raises(ConfigError, match="there are producer, worker, operator"):
        acl("king", "studio")
    with pytest.raises(ConfigError, match="namespace"):
        acl("producer", "*")
