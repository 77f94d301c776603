"""The training loop on a small network: its loss and optimizer, NaN, resuming, gradient accumulation, two devices."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from headstart.config import load_params
from headstart.errors import UserError
from headstart.fine_tune_config import FineTune
from headstart.training import fine_tuning, networks, trainer
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.fine_tuning import TrainingJob, TrainResult
from headstart.training.trainer import Trainer

FEATURES, CLASSES, TRAIN, VAL = 6, 3, 48, 24
ONES = np.ones(CLASSES, np.float32)


class Points:
    """Points around centers; their views have other noise. View `broken` of the training points is NaN."""

    workers, mixes, lengths = 1, True, None

    def __init__(self, broken: int | None = None) -> None:
        random = np.random.default_rng(0)
        self.targets = random.integers(0, CLASSES, TRAIN + VAL).astype(np.int32)
        centers = random.normal(size=(CLASSES, FEATURES))
        noise = random.normal(0, 0.5, (9, TRAIN + VAL, FEATURES))
        self._views = np.float32(centers[self.targets] + noise)
        self._broken = broken

    def read(self, rows: np.ndarray, view: int) -> dict[str, np.ndarray]:
        points = self._views[view, rows]
        return {"points": points * np.nan if view == self._broken and rows.max() < TRAIN else points}

    def batches(self, weights=ONES, batch_size: int = 16, views: int = 8) -> tuple[Batches, Batches]:
        train_rows, val_rows = np.arange(TRAIN), np.arange(TRAIN, TRAIN + VAL)
        return (
            Batches(self, self.targets, train_rows, weights, batch_size, views, seed=3),
            Batches(self, self.targets, val_rows, weights, batch_size, 0, seed=None),
        )


def make_network(dropout: float = 0.2) -> keras.Model:
    keras.utils.set_random_seed(1)
    points = keras.Input((FEATURES,), name="points")
    x = keras.layers.Dropout(dropout)(keras.layers.Dense(8, "relu")(points))
    return keras.Model({"points": points}, keras.layers.Dense(CLASSES)(x))


def settings(**changes: object) -> FineTune:
    return load_params(ROOT / "params.yaml").fine_tune.model_copy(
        update={"batch_size": 16, "learning_rate": 0.1, "label_smoothing": 0.1, "ema": 0, **changes}
    )


def train(
    folder: Path,
    points: Points | None = None,
    epochs: int = 6,
    on_epoch_end: Callable[[dict[str, float]], None] = lambda row: None,
    network: keras.Model | None = None,
    used: Trainer | None = None,
    head_logits: np.ndarray | None = None,
    give_up_after: int = 0,
    watch_val: bool = True,
    **changes: object,
) -> tuple[keras.Model, TrainResult]:
    """Return the network after training, and the result; without `head_logits` it has to beat its own start.

    Args:
        used: a trainer of this network that has trained before.
    """
    network, chosen = network or make_network(), settings(**changes)
    train_set, val_set = (points or Points()).batches(batch_size=chosen.batch_size)
    checkpoint = Checkpoint(folder / "state.npz")
    before = np.asarray(network(Points().read(np.arange(TRAIN, TRAIN + VAL), 0)))
    job = TrainingJob(
        trainer=used or Trainer(network, chosen, [1.0] * len(network.trainable_variables)),
        train_set=train_set,
        held_out=val_set,
        head_logits=before if head_logits is None else head_logits,
        settings=chosen,
        epochs=epochs,
        give_up_after=give_up_after,
        checkpoint=checkpoint,
        watch_val=watch_val,
        on_epoch_end=on_epoch_end,
    )
    result = fine_tuning.train(job)
    if checkpoint.file.is_file():
        checkpoint.file.unlink()
    return network, result


def plain_trainer(network: keras.Model, optimizer: keras.optimizers.Optimizer, **changes: object) -> Trainer:
    """Return a trainer with another optimizer."""
    made = Trainer(network, settings(**changes), [1.0] * len(network.trainable_variables))
    made.compile(optimizer, jit_compile=False)
    return made


def weights(network: keras.Model) -> np.ndarray:
    return np.concatenate([value.ravel() for value in network.get_weights()])


@cache
def uninterrupted(dropout: float = 0.2, **changes: object) -> tuple[np.ndarray, TrainResult]:
    """Return the weights after training, and the result."""
    with tempfile.TemporaryDirectory() as folder:
        network, result = train(Path(folder), network=make_network(dropout), **changes)
    return weights(network), result


def test_training_lowers_the_loss_and_keeps_the_last_epoch(tmp_path):
    points, rows = Points(), []
    network, result = train(tmp_path, points, on_epoch_end=rows.append, warm_up=0.9)
    assert [row["epoch"] for row in rows] == list(range(7))
    assert set(rows[1]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert result.history.kept == rows[-1]
    assert min(row["val_loss"] for row in rows) < rows[-1]["val_loss"] < rows[0]["val_loss"] / 2
    logits = np.asarray(network(points.read(np.arange(TRAIN, TRAIN + VAL), 0)))
    assert logits == pytest.approx(result.logits, abs=1e-5)
    assert (logits.argmax(axis=1) == points.targets[TRAIN:]).mean() == pytest.approx(rows[-1]["val_accuracy"])


def test_the_loss_in_the_curves_is_without_label_smoothing():
    _, result = uninterrupted(dropout=0.0, label_smoothing=0.5)
    assert result.history.kept["loss"] < 0.6  # of the smoothed labels of three classes: 0.87 at least


# --- resuming


@pytest.mark.parametrize(
    "changes",
    [{"ema": 0.9}, *(pytest.param(changes, marks=pytest.mark.slow) for changes in ({}, {"precision": "float16"}))],
    ids=str,
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, capsys, changes):
    expected_weights, expected = uninterrupted(**changes)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_epoch_end=stop, **changes)
    rows: list[dict[str, float]] = []
    resumed, result = train(tmp_path, on_epoch_end=rows.append, **changes)
    printed = capsys.readouterr()
    assert "stopped; the same command resumes after epoch 4" in printed.err
    assert "training resumes after epoch 3 of 6" in printed.out
    assert [row["epoch"] for row in rows] == [3, 4, 5, 6]
    assert len(result.history.rows) == 7
    assert (weights(resumed) == expected_weights).all()
    for name in ("losses", "brier_scores", "correct"):
        for ours, theirs in zip(getattr(result.scores, name), getattr(expected.scores, name), strict=True):
            assert (ours == theirs).all()
    assert len(result.scores.brier_scores) == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_checkpoint_that_cannot_be_used_is_ignored(tmp_path, capsys, damage):
    if damage is None:  # of another network
        np.savez(tmp_path / "state.npz", text=np.frombuffer(b"{}", np.uint8), v00000=np.zeros(2))
    else:
        (tmp_path / "state.npz").write_bytes(damage)
    network, _ = train(tmp_path)
    assert "cannot be used" in capsys.readouterr().err
    assert (weights(network) == uninterrupted()[0]).all()


def test_a_checkpoint_that_cannot_be_written_changes_no_result(tmp_path, capsys):
    (tmp_path / "file").touch()
    network, _ = train(tmp_path / "file")
    assert (weights(network) == uninterrupted()[0]).all()
    assert capsys.readouterr().err.count("a killed run cannot resume") == 1


# --- NaN


@pytest.mark.parametrize("watch_val", [True, False])
def test_training_keeps_the_epoch_before_a_last_step_that_gives_nan(tmp_path, monkeypatch, capsys, watch_val):
    class BrokenAtTheEnd(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: tf.Tensor) -> tf.Tensor:
            return tf.where(step == 6 * TRAIN // 16 - 1, np.nan, 0.1)

        def get_config(self) -> dict[str, float]:
            return {}

    monkeypatch.setattr(trainer, "make_optimizer", lambda *_: keras.optimizers.SGD(BrokenAtTheEnd()))
    network, result = train(tmp_path, watch_val=watch_val)
    assert result.last_epoch == 5
    assert np.isfinite(weights(network)).all()
    assert "the network gives NaN after epoch 6: training stops" in capsys.readouterr().err


def test_training_stops_when_the_loss_becomes_nan(tmp_path, capsys):
    network, result = train(tmp_path, Points(broken=3))
    assert "loss is NaN in epoch 4" in capsys.readouterr().err
    assert result.last_epoch == 3
    assert np.isfinite(weights(network)).all()
    assert np.isfinite(result.logits).all()


def test_training_stops_when_the_val_loss_becomes_nan(tmp_path, monkeypatch, capsys):
    predict, calls = Trainer.predict, iter(range(100))

    def nan_at_third(self, *some, **named):
        return predict(self, *some, **named) * (np.nan if next(calls) == 3 else 1)

    monkeypatch.setattr(Trainer, "predict", nan_at_third)
    network, result = train(tmp_path)
    assert "the network gives NaN after epoch 3" in capsys.readouterr().err
    assert [row["epoch"] for row in result.history.rows] == [0, 1, 2]
    assert result.scores.verdict(0.75)[0]
    assert np.isfinite(weights(network)).all()
    monkeypatch.setattr(Trainer, "predict", lambda self, *some, **named: np.full((VAL, CLASSES), np.nan))
    with pytest.raises(UserError, match=r"NaN for val before any training; try fine_tune\.precision=float32"):
        train(tmp_path)


# --- giving up


@pytest.mark.parametrize("watch_val", [True, False])
def test_a_training_far_behind_the_head_ends_early(tmp_path, capsys, watch_val):
    """Also if it is a fold's, which is else scored at its end alone."""
    known = 20 * np.eye(CLASSES, dtype=np.float32)[Points().targets[TRAIN:]]
    options = {"head_logits": known, "give_up_after": 2, "watch_val": watch_val}
    network, result = train(tmp_path, learning_rate=1e-9, **options)
    assert (result.gave_up, result.last_epoch) == (True, 2)
    assert result.scores.verdict(0.0) == (False, 0.0)
    printed = capsys.readouterr().err
    assert re.fullmatch(
        r"fine_tune: after epoch 2 of 6 log loss 1\.\d+ on held-out examples, 0\.0\d+ by the head: training ends\n",
        printed,
    )
    assert np.asarray(network(Points().read(np.arange(TRAIN, TRAIN + VAL), 0))) == pytest.approx(
        result.logits, abs=1e-5
    )


def test_a_run_that_is_killed_after_giving_up_gives_up_again(tmp_path, monkeypatch):
    known = 20 * np.eye(CLASSES, dtype=np.float32)[Points().targets[TRAIN:]]
    options = {"head_logits": known, "give_up_after": 2, "learning_rate": 1e-9}
    expected, _ = train(tmp_path, **options)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fine_tuning._EachEpoch, "_stop", kill)  # the checkpoint of that epoch is written by then
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **options)
    network, result = train(tmp_path, **options)
    assert (result.gave_up, result.last_epoch) == (True, 2)
    assert (weights(network) == weights(expected)).all()


def test_a_training_goes_on_near_the_head_and_if_it_may_not_give_up(tmp_path):
    known = 20 * np.eye(CLASSES, dtype=np.float32)[Points().targets[TRAIN:]]
    slow = {"learning_rate": 1e-9, "epochs": 3}
    assert [
        train(tmp_path, give_up_after=after, head_logits=logits, **slow)[1].last_epoch
        for after, logits in ((1, None), (0, known))
    ] == [3, 3]


# --- gradient accumulation


def test_a_batch_in_parts_gives_the_same_step():
    """Also in parts of different sizes: the weights of the examples add up to the mean over the batch."""
    points, found = Points(), []
    for parts in (1, 3):
        network = make_network(dropout=0)
        optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5, global_clipnorm=0.1)
        tried = plain_trainer(network, optimizer, label_smoothing=0.1)
        tried.set_parts(parts)
        tried.fit(points.batches(np.float32([1, 2, 3]), batch_size=20)[0], epochs=1, verbose=0)  # 20, 20 and 8
        assert optimizer.iterations == 3
        found.append(weights(network))  # their exponential moving average
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_out_of_memory_leads_to_gradient_accumulation(tmp_path, monkeypatch, capsys):
    expected, _ = uninterrupted(dropout=0)
    least_parts, original = 4, fine_tuning._train

    def small_device(job):
        if job.trainer.parts < least_parts:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return original(job)

    monkeypatch.setattr(fine_tuning, "_train", small_device)
    points, asked = Points(), []
    read = points.read
    monkeypatch.setattr(points, "read", lambda rows, view: asked.append(rows) or read(rows, view))
    in_parts, _ = train(tmp_path, points, network=make_network(dropout=0))
    assert max(len(rows) for rows in asked if rows.min() >= TRAIN) == 4  # val's batches of 16 are divided by 4 too
    printed = capsys.readouterr().out
    assert "accumulating gradients over 2 parts of a batch" in printed
    assert "accumulating gradients over 4 parts of a batch" in printed
    assert weights(in_parts) == pytest.approx(expected, abs=1e-3)
    least_parts = 100
    with pytest.raises(UserError, match="out of memory with a single example") as error:
        train(tmp_path)
    named = [word.strip(",;") for word in str(error.value).split() if "." in word]
    assert named == ["fine_tune.unfreeze", "extract.size"]
    assert set(named) <= set(load_params(ROOT / "params.yaml").leaves())


def test_out_of_memory_during_training_changes_no_result(tmp_path, capsys):
    expected_weights, expected = uninterrupted(dropout=0)
    full = iter([True])

    def on_epoch_end(row: dict[str, float]) -> None:
        if row["epoch"] == 3 and next(full, False):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    in_parts, result = train(tmp_path, network=make_network(0), on_epoch_end=on_epoch_end)
    assert "training resumes after epoch 2 of 6" in capsys.readouterr().out
    assert weights(in_parts) == pytest.approx(expected_weights, abs=1e-3)
    assert np.array(result.scores.losses) == pytest.approx(np.array(expected.scores.losses), abs=1e-2)


# --- loss and optimizer


def test_the_loss_is_smoothed_and_weighted_cross_entropy():
    """The gradient of a linear network, by hand."""
    points, class_weights, smoothing = Points(), np.float32([1, 2, 5]), 0.2
    start = keras.Input((FEATURES,), name="points")
    network = keras.Model({"points": start}, keras.layers.Dense(CLASSES, kernel_initializer="zeros")(start))
    plain_trainer(network, keras.optimizers.SGD(1.0), label_smoothing=smoothing).fit(
        points.batches(class_weights, batch_size=TRAIN, views=0)[0], epochs=1, verbose=0
    )
    inputs, targets = points.read(np.arange(TRAIN), 0)["points"], points.targets[:TRAIN]
    smoothed = (1 - smoothing) * np.eye(CLASSES)[targets] + smoothing / CLASSES
    slope = (1 / CLASSES - smoothed) * class_weights[targets, None] / TRAIN
    assert network.layers[-1].kernel.numpy() == pytest.approx(-inputs.T @ slope, abs=1e-5)


def test_without_warm_up_a_single_step_trains(tmp_path):
    _, result = train(tmp_path, epochs=1, batch_size=TRAIN, warm_up=0)
    assert result.history.rows[1]["val_loss"] < result.history.rows[0]["val_loss"]


def test_the_learning_rate_is_warmed_up_and_decays_to_zero(tmp_path):
    _, result = train(tmp_path, epochs=10, warm_up=0.5)
    rates = [row["learning_rate"] for row in result.history.rows[1:]]
    assert rates[4] == pytest.approx(0.1)
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_trainer_that_was_used_trains_as_a_new_one_does(tmp_path, precision):
    """It keeps neither moments, average, steps nor float16's loss scale, and takes another length and rate."""
    options = {"ema": None, "precision": precision, "clip_norm": 0.0}
    network = make_network()
    start = networks.get_state(network)
    used = Trainer(network, settings(**options), [1.0] * len(network.trainable_variables))
    train(tmp_path, epochs=2, network=network, used=used, learning_rate=0.05, **options)
    networks.set_state(network, start)
    again, result = train(tmp_path, network=network, used=used, **options)
    expected_weights, expected = train(tmp_path, **options)
    assert (weights(again) == weights(expected_weights)).all()
    assert result.history.rows == expected.history.rows


def test_the_exponential_moving_average_is_scored_and_kept(tmp_path):
    start = weights(make_network())
    averaged, _ = train(tmp_path, ema=0.99)
    assert 0 < np.abs(weights(averaged) - start).mean() < 0.8 * np.abs(uninterrupted()[0] - start).mean()


TWO_DEVICES = """
import sys, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path[:0] = ["tests"]
import test_fine_tuning as t
from pathlib import Path
found = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        network, _ = t.train(Path(sys.argv[1]), network=t.make_network(0), ema=0.9)
    print(strategy.num_replicas_in_sync)
    found.append(t.weights(network))
print(float(np.abs(found[0] - found[1]).max()) < 1e-3)
"""


@pytest.mark.slow
def test_two_devices_train_like_one(tmp_path):
    command = [sys.executable, "-c", TWO_DEVICES, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line in ("1", "2", "True", "False")]
    assert lines == ["1", "2", "True"], done.stderr[-2000:]
