"""canvasbus retrain: what waits, what runs, and answering."""

import pytest
from cli.commands import Run
from studio import Eyes

from canvasbus import Event, Producer
from canvasbus.events import (
    ModelPromoted,
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
)


def publish(eyes: Eyes, *events: Event) -> None:
    with Producer(eyes.server.name, namespace=eyes.keys.namespace) as producer:
        for event in events:
            producer.publish(event)
        assert producer.flush(10)


def proposal(model: str, number: int) -> RetrainProposed:
    return RetrainProposed(
        model_name=model, reason="accuracy 0.5", episode_id=f"e{number}", proposal_id=f"{model}/p{number}"
    )


def test_what_waits_and_what_runs(run: Run, eyes: Eyes) -> None:
    """Proposals without an answer and runs without an end; --all shows how the others ended; hostile text stays text."""
    eyes.put(b"junk", "retrain.started")
    publish(
        eyes,
        *(proposal("m", number) for number in (1, 2, 3)),
        RetrainRequested(model_name="m", proposal_id="m/p1", requested_by="ada"),
        RetrainRejected(model_name="m", proposal_id="m/p2", rejected_by="bob", reason="not \x1b[2J today"),
        *(RetrainStarted(model_name="m", run_id=f"m/v{n}", reason="x") for n in (1, 2, 3, 4)),
        RetrainSucceeded(model_name="m", run_id="m/v1", model_version="v1"),
        RetrainFailed(model_name="m", run_id="m/v2", error="exit code 3"),
        RetrainSucceeded(model_name="m", run_id="m/v3", model_version="v3"),
        ModelPromoted(model_name="m", run_id="m/v3", model_version="v3"),
        RetrainFailed(model_name="m", run_id="m/v3", error="too late to matter"),
    )
    assert {(r["id"], r["status"]) for r in run("retrain", "list", "--json").records} == {
        ("m/p3", "waiting"),
        ("m/v4", "running"),
    }
    whole = {r["id"]: (r["status"], r["about"]) for r in run("retrain", "list", "--all", "--json").records}
    assert whole == {
        "m/p1": ("approved", "ada"),
        "m/p2": ("rejected", "not \x1b[2J today"),
        "m/p3": ("waiting", "accuracy 0.5"),
        "m/v1": ("succeeded", "v1"),
        "m/v2": ("failed", "exit code 3"),
        "m/v3": ("promoted", "v3"),
        "m/v4": ("running", "x"),
    }
    shown = run("retrain", "list", "--all")
    assert shown.code == 0 and "\x1b[2J" not in shown.out and "exit code 3" in shown.out


@pytest.mark.parametrize("name", ["m/p1", "m"])
def test_approving(run: Run, eyes: Eyes, name: str) -> None:
    """By id or, where one waits, by model: retrain.requested with the proposal, its episode and its correlation. Once."""
    proposed = proposal("m", 1)
    publish(eyes, proposed)
    ran = run("retrain", "approve", name, "--reason", "go")
    assert (ran.code, ran.out) == (0, "m/p1 is approved: accuracy 0.5\n")
    assert "it counts as soon as one runs (canvasbus-worker retrain)" in ran.err
    ((envelope, asked),) = eyes.entries("retrain.requested")
    ((cause, _),) = eyes.entries("retrain.proposed")
    assert (asked.proposal_id, asked.episode_id, asked.reason) == ("m/p1", "e1", "go")
    assert asked.correlation_id == proposed.correlation_id and envelope.causation_id == cause.id
    assert "@" in asked.requested_by
    run("retrain", "approve", "m/p1").failed(1, "m/p1 has been answered: approved")


def test_rejecting(run: Run, eyes: Eyes) -> None:
    """retrain.rejected; and what cannot be meant is told with what could."""
    run("retrain", "reject", "m/p1").failed(1, "no proposal 'm/p1' waits, nor does any other")
    publish(eyes, proposal("m", 1), proposal("m", 2))
    run("retrain", "reject", "m").failed(1, "these do: m/p1, m/p2")
    assert run("retrain", "reject", "m/p2", "--json").records[0]["answer"] == "rejected"
    (rejected,) = eyes.events("retrain.rejected")
    assert (rejected.proposal_id, rejected.episode_id) == ("m/p2", "e2") and "@" in rejected.rejected_by
    run("retrain", "approve", "m/p1")
    assert "nothing waits or runs" in run("retrain", "list").err
