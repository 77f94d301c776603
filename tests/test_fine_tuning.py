"""The training loop on a small network: what it learns by, how it stops, goes on, and saves memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from headstart.config import load_params
from headstart.errors import UserError
from headstart.training import fine_tuning
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.fine_tuning import Job, Trainer, tune
from headstart.training.optimizers import LayerwiseAdamW

FEATURES, CLASSES, TRAIN, VAL = 6, 3, 48, 24
ONES = np.ones(CLASSES, np.float32)


class Points:
    """Points around centres; views of them have other noise. Epoch `broken`, counted from 0, has no numbers."""

    workers = 1

    def __init__(self, broken: int | None = None) -> None:
        random = np.random.default_rng(0)
        self.targets = random.integers(0, CLASSES, TRAIN + VAL).astype(np.int32)
        centres = random.normal(size=(CLASSES, FEATURES))
        noise = random.normal(0, 0.5, (9, TRAIN + VAL, FEATURES))
        self._views = np.float32(centres[self.targets] + noise)
        self._broken = broken

    def read(self, rows: np.ndarray, number: int) -> np.ndarray:
        found = self._views[number, rows]
        return found * np.nan if number == self._broken and rows.max() < TRAIN else found

    def sets(self, weights=ONES, batch_size: int = 16, views: int = 8) -> tuple[Batches, Batches]:
        return (
            Batches(self, self.targets, np.arange(TRAIN), weights, batch_size, views, seed=3),
            Batches(self, self.targets, np.arange(TRAIN, TRAIN + VAL), weights, batch_size, 0, seed=None),
        )


def network(dropout: float = 0.2) -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(dropout), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


def choice(**changes):
    return load_params(ROOT / "params.yaml").fine_tune.model_copy(
        update={"batch_size": 16, "learning_rate": 0.1, "ema": 0, **changes}
    )


def trained(tmp_path: Path, points: Points | None = None, epochs: int = 6, tell=lambda row: None, net=None, **changes):
    """The network after training, and what came of it."""
    net, chosen = net or network(), choice(**changes)
    train_set, val_set = (points or Points()).sets(batch_size=chosen.batch_size)
    scales = [1.0] * len(net.trainable_variables)
    checkpoint = Checkpoint(tmp_path / "state.npz")
    tuned = tune(Job(net, train_set, val_set, scales, chosen, epochs, chosen.ema, checkpoint, True, tell))
    checkpoint.remove()
    return net, tuned


def values(net: keras.Model) -> np.ndarray:
    return np.concatenate([value.ravel() for value in net.get_weights()])


def test_it_learns_and_is_left_as_it_is_after_the_last_epoch(tmp_path):
    points, rows = Points(), []
    net, tuned = trained(tmp_path, points, tell=rows.append)
    assert [row["epoch"] for row in rows] == list(range(7))
    assert set(rows[1]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert tuned.epochs.kept == rows[-1]
    assert min(row["val_loss"] for row in rows) < rows[-1]["val_loss"] < rows[0]["val_loss"] / 2
    found = np.asarray(net(points.read(np.arange(TRAIN, TRAIN + VAL), 0)))
    assert found == pytest.approx(tuned.logits, abs=1e-5)
    assert (found.argmax(axis=1) == points.targets[TRAIN:]).mean() == pytest.approx(tuned.epochs.kept["val_accuracy"])


def test_a_state_that_cannot_be_written_costs_no_result(tmp_path, capsys):
    (tmp_path / "taken").touch()
    checkpoint = Checkpoint(tmp_path / "taken" / "state.npz")
    tuned = tune(Job(network(), *Points().sets(), [1.0] * 4, choice(), 3, 0, checkpoint, True, lambda row: None))
    assert len(tuned.epochs.rows) == 4
    assert capsys.readouterr().err.count("a kill would cost the whole training") == 1


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"precision": "float16"}], ids=str)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, capsys, changes):
    undisturbed, expected = trained(tmp_path, **changes)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, tell=stop, **changes)
    rows = []
    again, tuned = trained(tmp_path, tell=rows.append, **changes)
    assert "goes on after epoch 3 of 6" in capsys.readouterr().out
    assert [row["epoch"] for row in rows] == [3, 4, 5, 6]
    assert len(tuned.epochs.rows) == 7
    assert (values(again) == values(undisturbed)).all()
    for name in ("losses", "scores", "right"):
        for ours, theirs in zip(getattr(tuned.states, name), getattr(expected.states, name), strict=True):
            assert (ours == theirs).all()
    assert len(tuned.states.scores) == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_state_that_cannot_be_used_is_told_and_left_out(tmp_path, capsys, damage):
    if damage is None:  # of another network
        np.savez(tmp_path / "state.npz", text=np.frombuffer(b"{}", np.uint8), v00000=np.zeros(2))
    else:
        (tmp_path / "state.npz").write_bytes(damage)
    net, _ = trained(tmp_path)
    assert "fine-tuning begins anew" in capsys.readouterr().err
    assert (values(net) == values(trained(tmp_path)[0])).all()


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights(tmp_path, capsys):
    net, tuned = trained(tmp_path, Points(broken=3))
    assert "the loss is no number in epoch 4" in capsys.readouterr().err
    assert tuned.epochs.rows[-1]["epoch"] == 3
    assert np.isfinite(values(net)).all()
    assert np.isfinite(tuned.logits).all()


def test_a_val_loss_that_is_no_number_stops_and_hides_no_good_epoch(tmp_path, monkeypatch, capsys):
    predict, calls = fine_tuning.Trainer.predict, iter(range(100))
    monkeypatch.setattr(
        fine_tuning.Trainer,
        "predict",
        lambda self, *some, **named: predict(self, *some, **named) * (np.nan if next(calls) == 3 else 1),
    )
    net, tuned = trained(tmp_path)
    assert "val loss is no number after epoch 3" in capsys.readouterr().err
    assert [row["epoch"] for row in tuned.epochs.rows] == [0, 1, 2]
    assert tuned.states.verdict(0.75)[0]
    assert np.isfinite(values(net)).all()
    monkeypatch.setattr(fine_tuning.Trainer, "predict", lambda self, *some, **named: np.full((VAL, CLASSES), np.nan))
    with pytest.raises(UserError, match="no number before any training"):
        trained(tmp_path)


def test_without_warm_up_a_single_step_trains(tmp_path):
    before = values(network())
    _, tuned = trained(tmp_path, epochs=1, batch_size=TRAIN, warm_up=0)
    assert tuned.epochs.rows[1]["val_loss"] < tuned.epochs.rows[0]["val_loss"]
    assert (values(network()) == before).all()


def test_a_batch_in_parts_makes_the_same_step():
    """Parts of unlike sizes too: the weights of the examples add up to the mean over the batch."""
    points, found = Points(), []
    for parts in (1, 3):
        net = network(dropout=0)
        trainer = Trainer(net, 0.1, parts)
        trainer.compile(keras.optimizers.SGD(0.5), jit_compile=False)
        trainer.fit(points.sets(np.float32([1, 2, 3]), batch_size=16)[0], epochs=1, verbose=0)
        found.append(values(net))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


class Marks:
    """Each image is one at its own place, and zero elsewhere: what is mixed of it can be read off."""

    workers = 1

    def read(self, rows: np.ndarray, number: int) -> np.ndarray:
        return np.eye(TRAIN, dtype=np.uint8)[rows]


def test_mixup_mixes_images_and_their_classes_by_the_same_share():
    targets, weights = np.arange(TRAIN) % CLASSES, np.float32([1, 2, 4])
    mixed = Batches(Marks(), targets, np.arange(TRAIN), weights, 16, 0, 3, mixup=0.7)
    of_image = np.diag(weights)[targets] / 16  # what it adds to the loss, by class
    shares = set()
    for inputs, classes, weight in mixed:
        assert inputs.sum(axis=1) == pytest.approx(1)
        assert (np.count_nonzero(inputs, axis=1) <= 2).all()
        assert classes.sum(axis=1) == pytest.approx(1)
        assert classes * weight[:, None] == pytest.approx(inputs @ of_image)
        found = {round(float(max(row)), 5) for row in inputs} - {1.0}  # an image may meet itself
        assert len(found) == 1
        shares |= found
    assert len(shares) == 3
    assert all((one == two).all() for one, two in zip(mixed[1], mixed[1], strict=True))
    in_order = Batches(Marks(), targets, np.arange(TRAIN), weights, 16, 0, None, mixup=0.7)
    assert (in_order[1][0] == np.eye(TRAIN)[16:32]).all()


def test_where_the_memory_does_not_suffice_it_goes_on_in_parts(tmp_path, monkeypatch, capsys):
    plain, _ = trained(tmp_path, net=network(dropout=0))
    fits, original = 4, fine_tuning._tune

    def small_device(*arguments):
        if arguments[-1] < fits:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return original(*arguments)

    monkeypatch.setattr(fine_tuning, "_tune", small_device)
    points, asked = Points(), []
    read = points.read
    monkeypatch.setattr(points, "read", lambda rows, number: asked.append(rows) or read(rows, number))
    parted, _ = trained(tmp_path, points, net=network(dropout=0))
    of_val = [len(rows) for rows in asked if rows.min() >= TRAIN]
    assert max(of_val) == 4  # of a batch of 16, in 4 parts
    printed = capsys.readouterr().out
    assert "on in 2 parts" in printed
    assert "on in 4 parts" in printed
    assert values(parted) == pytest.approx(values(plain), abs=1e-3)
    fits = 100
    with pytest.raises(UserError, match="not one image fits"):
        trained(tmp_path)


def test_a_device_that_fills_up_on_the_way_changes_no_result(tmp_path, capsys):
    plain, expected = trained(tmp_path, net=network(0))
    full = iter([True])

    def tell(row: dict[str, float]) -> None:
        if row["epoch"] == 3 and next(full, False):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    parted, found = trained(tmp_path, net=network(0), tell=tell)
    assert "goes on after epoch 2 of 6" in capsys.readouterr().out
    assert values(parted) == pytest.approx(values(plain), abs=1e-3)
    for ours, theirs in zip(found.states.losses, expected.states.losses, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-2)


def test_the_loss_is_smoothed_and_weighted_cross_entropy():
    """The gradient of a linear network, by hand."""
    points, weights, smoothing = Points(), np.float32([1, 2, 5]), 0.2
    net = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES, kernel_initializer="zeros")])
    trainer = Trainer(net, smoothing, 1)
    trainer.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    train_set, _ = points.sets(weights, batch_size=TRAIN, views=0)
    trainer.fit(train_set, epochs=1, verbose=0)
    inputs, targets = points.read(np.arange(TRAIN), 0), points.targets[:TRAIN]
    aim = (1 - smoothing) * np.eye(CLASSES)[targets] + smoothing / CLASSES
    slope = (1 / CLASSES - aim) * weights[targets, None] / TRAIN
    assert net.layers[-1].kernel.numpy() == pytest.approx(-inputs.T @ slope, abs=1e-5)


def test_each_variable_has_its_own_rate():
    variables = [keras.Variable(np.zeros(3, np.float32)) for _ in range(3)]
    optimizer = LayerwiseAdamW(0.1)
    optimizer.scales = [1.0, 0.5, 0.0]
    optimizer.apply([np.ones(3, np.float32)] * 3, variables)
    moved = [float(-variable.numpy()[0]) for variable in variables]
    assert moved == pytest.approx([0.1, 0.05, 0.0], abs=1e-6)


def test_matrices_decay_at_their_own_rate_and_biases_do_not():
    variables = [keras.Variable(np.ones(shape, np.float32)) for shape in ((2, 2), (2, 2), (2,))]
    optimizer = LayerwiseAdamW(0.1)
    optimizer.scales, optimizer.decay = [1.0, 0.5, 1.0], 0.2
    optimizer.apply([np.zeros(variable.shape, np.float32) for variable in variables], variables)
    assert [float(variable.numpy().ravel()[0]) for variable in variables] == pytest.approx([0.98, 0.99, 1.0])


def test_the_average_of_the_weights_is_judged_and_kept(tmp_path):
    start = values(network())
    moved = {ema: np.abs(values(trained(tmp_path, ema=ema)[0]) - start).mean() for ema in (0, 0.99)}
    assert 0 < moved[0.99] < 0.8 * moved[0]


def test_an_epoch_is_the_same_whatever_came_before_it():
    points = Points()
    straight, jumped = points.sets(views=2)[0], points.sets(views=2)[0]
    seen = []
    for epoch in range(4):
        jumped.begin(epoch)
        for place in range(len(straight)):
            for ours, theirs in zip(straight[place], jumped[place], strict=True):
                assert (ours == theirs).all()
        inputs, targets, _ = straight[0]
        seen.append(inputs)
        assert inputs.shape == (16, FEATURES)
        assert targets.sum(axis=1) == pytest.approx(1)
        straight.begin(epoch + 1)
    # As they are, view 1, view 2, and again; in another order.
    order = np.random.default_rng([3, 3]).permutation(TRAIN)[:16]
    assert (seen[3] == points.read(order, 0)).all()
    assert (seen[0] != seen[3]).any()


TWO_DEVICES = """
import sys, keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path[:0] = ["tests"]
import test_fine_tuning as t
from pathlib import Path
found = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        net, tuned = t.trained(Path(sys.argv[1]), net=t.network(0), ema=0.9)
    print(strategy.num_replicas_in_sync)
    found.append(t.values(net))
print(float(np.abs(found[0] - found[1]).max()), file=sys.stderr)
print(float(np.abs(found[0] - found[1]).max()) < 1e-3)
"""


def test_two_devices_train_as_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert [line for line in done.stdout.splitlines() if line in ("1", "2", "True", "False")] == ["1", "2", "True"], (
        done.stderr[-2000:]
    )
