"""What becomes of events while the server is away, by `when_full` and by how the program ends: the table of the README.

Each cell is a program that publishes 60 events into a buffer for 20, and ends. Accepted: publish returned. Reported: the
caller got BufferFull, or a line went to the log. Counted: statistics() knew of it before the end. Lost: it is neither on
the server, once that is back, nor can it ever get there.
"""

import json
import re
import signal
from pathlib import Path

import pytest
from produce.programs import Program

from canvasbus import Producer

EVENTS = 60

ENDS = {
    "normal exit": ("", 0),
    "uncaught exception": ("raise ValueError('as planned')", 1),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)", -signal.SIGTERM),
    "os._exit": ("os._exit(3)", 3),
    "kill -9": ("os.kill(os.getpid(), signal.SIGKILL); time.sleep(5)", -signal.SIGKILL),
}
TELLS = ("normal exit", "uncaught exception")
"""The ends that Python code sees, and at which the log says what did not arrive."""

POLICIES = ("block", "raise", "drop_oldest", "spool")

BODY = """
from canvasbus import BufferFull
import json
options = {{"spool": SPOOL}} if {policy!r} == "spool" else {{"when_full": {policy!r}, "max_block": 0.001}}
bus = producer(buffer_bytes=2600, flush_timeout=0.05, **options)
accepted, raised = [], 0
for n in range({events}):
    try:
        bus.publish(PaintingMade(number=n))
        accepted.append(n)
    except BufferFull:
        raised += 1
now = bus.statistics()
os.write(1, json.dumps([accepted, raised, now.dropped, now.waiting_events, now.spool_events]).encode())
{end}
"""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_server_away(program: Program, policy: str, end: str) -> None:
    """One cell of the table."""
    url, program.url = program.url, "redis://127.0.0.1:1"
    statement, code = ENDS[end]
    out, err = program.run(BODY.format(policy=policy, events=EVENTS, end=statement), code=code)
    accepted, raised, dropped, waiting, spooled = json.loads(out)
    fits = waiting if policy != "spool" else 0

    # accepted or reported, and counted
    if policy in ("block", "raise"):
        assert 15 <= len(accepted) <= 25 and raised == EVENTS - len(accepted) and (dropped, waiting) == (0, fits)
    else:
        assert accepted == list(range(EVENTS)) and raised == 0 and dropped + waiting == EVENTS
        assert (dropped > 30) is (policy == "drop_oldest") and spooled == (EVENTS if policy == "spool" else 0)

    # reported at the end
    said = re.findall(r"the program ends and (\d+) events? did not reach the server", err)
    assert said == ([str(waiting)] if end in TELLS else [])
    assert (f"; {dropped:,} dropped before that" in err) is (policy == "drop_oldest" and end in TELLS)
    assert ("is sent by the next Producer" in err) is (policy == "spool" and end in TELLS)

    # lost
    program.url = url
    with Producer(url, namespace=program.namespace, spool=program.spool) as bus:
        assert bus.flush(timeout=10) is True
    assert program.stored() == (list(range(EVENTS)) if policy == "spool" else [])


def test_the_table_of_the_readme() -> None:
    """The README's table has these rows and columns, and says what the cells above hold."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (table,) = re.findall(r"(\| `when_full` \|.*?)\n\n", text, re.DOTALL)
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert head == ["`when_full`", "accepted", *ENDS]
    assert [re.sub(r"\W", "", row[0].split("`")[1]) for row in rows] == list(POLICIES)
    for policy, row in zip(POLICIES, rows, strict=True):
        for end, cell in zip(ENDS, row[2:], strict=True):
            assert cell.startswith("kept" if policy == "spool" else "lost"), (policy, end)
            assert ("told" in cell) is (end in TELLS), (policy, end)
