"""The workers on a test bus: what they listen to, what follows, and what they refuse."""

import hashlib
from typing import Any

import numpy as np
import pytest
from trio.testing import MockClock

from canvasbus import Event
from canvasbus.events import (
    ArtifactRef,
    LabelsRecorded,
    ModelPromoted,
    ObservationsRecorded,
    ReferenceRegistered,
    RetrainFailed,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
)
from canvasbus.testing import TestBus
from canvasbus_workers import retrain, tagger, trainer
from canvasbus_workers.artifacts import ArtifactStore, pack
from canvasbus_workers.tagger import ImagesSubmitted
from canvasbus_workers.tagging import Network, observe

MISSING = ArtifactRef(uri="file:///nowhere/x.npz", sha256="0" * 64)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Some network for 8×8 images and three classes."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (64, 5), "b1": (5,), "w2": (5, 3), "b2": (3,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def images(n: int, seed: int = 0) -> np.ndarray:
    """n images with a bright row that is their class; and their classes are n % 3."""
    drawn = np.random.default_rng(seed).random((n, 8, 8)).astype(np.float32) * 0.3
    drawn[np.arange(n), np.arange(n) % 3, :] += 0.7
    return drawn


def labels(model: str, batch: str, split: str, n: int, seed: int, **fields: Any) -> LabelsRecorded:
    ids = tuple(f"{batch}/{at}" for at in range(n))
    fields = {"images": ArtifactStore().put({"images": images(n, seed)}), "groups": ids, **fields}
    return LabelsRecorded(
        model_name=model, batch_id=batch, split=split, item_ids=ids, labels=tuple(at % 3 for at in range(n)), **fields
    )


def events(bus: TestBus, what: type[Event]) -> list[Any]:
    return [one.event for one in bus.published(what)]


# --- tagger ----------------------------------------------------------------------------------------------------------


async def test_the_tagger_waits_for_a_model_and_answers_with_it(autojump_clock: MockClock, model: str) -> None:
    """Images that come before any model are kept; once one is promoted the answer is what its weights say, with the
    batch and the order of the items."""
    store = ArtifactStore()
    ref = store.put({"images": images(4)})
    asked = ImagesSubmitted(model_name=model, batch_id="b", item_ids=("p", "q", "r", "s"), images=ref)
    async with TestBus(tagger.worker) as bus:
        await bus.publish(asked)
        await bus.advance(3)
        await bus.publish(ModelPromoted(model_name=model, model_version="v1", model=store.put(weights())))
        await bus.settle()
    (answer,) = events(bus, ObservationsRecorded)
    assert len(bus.attempts(asked)) > 3
    seen = observe(Network.from_arrays(weights()), images(4))
    assert (answer.model_version, answer.batch_id, answer.item_ids) == ("v1", "b", asked.item_ids)
    assert answer.predictions == tuple(seen["probabilities"].argmax(axis=1))
    assert answer.arrays == {name: pack(array) for name, array in seen.items()}
    assert answer.correlation_id == asked.correlation_id


async def test_a_promotion_that_cannot_be_loaded_changes_nothing(autojump_clock: MockClock, model: str) -> None:
    """Weights that are damaged or no network are refused; the model in service goes on answering."""
    store = ArtifactStore()
    good, bad = store.put(weights(1)), store.put({"w1": np.ones(3)})
    async with TestBus(tagger.worker) as bus:
        await bus.publish(ModelPromoted(model_name=model, model_version="v1", model=good))
        await bus.settle()
        with pytest.raises(Exception, match="not the weights"):
            tagger.handlers.shelf.adopt(ModelPromoted(model_name=model, model_version="v2", model=bad))
        with pytest.raises(Exception, match="names no weights"):
            tagger.handlers.shelf.adopt(ModelPromoted(model_name=model, model_version="v3"))
        await bus.publish(
            ImagesSubmitted(model_name=model, batch_id="b", item_ids=("p",), images=store.put({"images": images(1)}))
        )
        await bus.settle()
    (answer,) = bus.published(ObservationsRecorded)
    assert answer.event.model_version == "v1"


async def test_images_that_make_no_sense_are_refused_at_once(autojump_clock: MockClock, model: str) -> None:
    """Missing images, too few of them, or images of another size become dead letters that say so."""
    store = ArtifactStore()
    three = store.put({"images": images(3)})
    wide = store.put({"images": np.zeros((1, 9, 9), np.float32)})
    async with TestBus(tagger.worker) as bus:
        await bus.publish(ModelPromoted(model_name=model, model_version="v1", model=store.put(weights())))
        await bus.settle()
        for ref in (None, MISSING, three, wide):
            await bus.publish(ImagesSubmitted(model_name=model, batch_id="b", item_ids=("p",), images=ref))
        await bus.settle()
    dead = bus.dead_letters("tagger")
    assert len(dead) == 4
    said = " ".join(letter.error for letter in dead)
    for words in ("no images", "cannot be read", "1 ids, images of shape (3, 8, 8)", "do not fit a network for 64"):
        assert words in said
    assert {letter.reason for letter in dead} == {"rejected"}


# --- trainer, with retrain ---------------------------------------------------------------------------------------------


async def test_from_labels_to_a_promoted_model(autojump_clock: MockClock, model: str) -> None:
    """A request that came before any labels waits for them; then: started, references, succeeded, promoted. The weights
    that the event names are those that were trained, and the manifest names their images and none of the others."""
    async with TestBus(retrain.worker, trainer.worker) as bus:
        await bus.publish(RetrainRequested(model_name=model, reason="first"))
        await bus.publish(labels(model, "held", "validation", 30, 2))
        await bus.advance(3)
        await bus.publish(labels(model, "base", "train", 90, 1))
        await bus.publish(labels(model, "judged", "test", 30, 3))
        await bus.settle()
    (promoted,) = events(bus, ModelPromoted)
    (succeeded,) = events(bus, RetrainSucceeded)
    (reference,) = events(bus, ReferenceRegistered)
    (started,) = events(bus, RetrainStarted)
    assert (started.run_id, started.reason, started.fence) == (promoted.run_id, "first", promoted.fence)
    network = Network.from_arrays(ArtifactStore().load(promoted.model))
    assert (observe(network, images(30, 3))["probabilities"].argmax(axis=1) == np.arange(30) % 3).mean() > 0.9
    manifest = ArtifactStore().load(succeeded.manifest)
    assert set(manifest["train_groups"]) == {f"base/{n}" for n in range(90)}
    assert set(manifest["validation_groups"]) == {f"held/{n}" for n in range(30)}
    assert (reference.items, reference.model_version) == (30, "v1")
    assert promoted.model.sha256 == hashlib.sha256(_bytes_of(promoted.model)).hexdigest()


def _bytes_of(ref: ArtifactRef) -> bytes:
    from pathlib import Path
    from urllib.parse import urlsplit

    return Path(urlsplit(ref.uri).path).read_bytes()


async def test_a_run_without_labels_fails(autojump_clock: MockClock, model: str) -> None:
    """It waits for a minute for the first ones, and then says in plain words that there are none."""
    async with TestBus(trainer.worker) as bus:
        await bus.publish(RetrainStarted(model_name=model, run_id="r", model_version="v9", fence=9))
        await bus.settle()
    (failed,) = events(bus, RetrainFailed)
    assert (failed.run_id, failed.model_version, failed.fence) == ("r", "v9", 9)
    assert "no labelled images have come" in failed.error


async def test_labels_whose_images_do_not_fit_are_refused(autojump_clock: MockClock, model: str) -> None:
    """Missing images, or another number of them: a dead letter, and nothing is learnt."""
    few = ArtifactStore().put({"images": images(3)})
    async with TestBus(trainer.worker) as bus:
        await bus.publish(labels(model, "a", "train", 5, 1, images=MISSING))
        await bus.publish(labels(model, "b", "train", 5, 1, images=few))
        await bus.settle()
    assert [letter.reason for letter in bus.dead_letters("trainer")] == ["rejected", "rejected"]
    assert not trainer.handlers.curriculum_of(model).ready


async def test_a_run_that_was_not_committed_is_trained_again(autojump_clock: MockClock, model: str) -> None:
    """The trainer dies with its model in hand: the order comes again, and one model is promoted."""
    async with TestBus(retrain.worker, trainer.worker) as bus:
        await bus.publish(labels(model, "base", "train", 90, 1))
        await bus.settle()
        bus.fail_next("commit", "crash", group="trainer")
        await bus.publish(RetrainRequested(model_name=model, reason="first"))
        await bus.settle()
    (started,) = bus.published(RetrainStarted)
    assert len(bus.attempts(started, group="trainer")) == 2
    assert [event.run_id for event in events(bus, ModelPromoted)] == [started.event.run_id]
