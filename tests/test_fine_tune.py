"""The stage: what it chooses, what it ships, and that kept activations change no result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import SHORT, SMALL, write_params
from conftest import run_stages as run

from headstart import paths
from headstart.backbones import keras_applications
from headstart.config import load_params
from headstart.data.files import Folder
from headstart.errors import UserError
from headstart.features import activations
from headstart.modalities.image.augmentation import NONE, Augmentation
from headstart.modalities.image.decode import file_hash
from headstart.training import batches, calibration, defaults, heads, networks, plan
from headstart.training.examples import load_features
from headstart.training.verdict import States
from pipeline import fine_tune

QUICK = {
    **SMALL,
    **SHORT,
    "data.source": "photos",
    "train_head.learning_rate": 0.01,
    "train_head.epochs": 10,
    "fine_tune.epochs": 4,
    "fine_tune.confidence": 0.5,
    "fine_tune.crop": 0.8,
    "fine_tune.flip": True,
}


@pytest.fixture(scope="module")
def with_head(tmp_path_factory, extracted_short) -> Path:
    folder = tmp_path_factory.mktemp("head") / "here"
    shutil.copytree(extracted_short, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(Path("params.yaml"), **QUICK)
        run("train_head")
    return folder


@pytest.fixture
def here(tmp_path: Path, with_head, monkeypatch) -> Path:
    """Photos with features and a head that still has something to learn."""
    shutil.copytree(with_head, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tuned(**changes) -> dict:
    """Metrics of fine_tune with changed params."""
    write_params(Path("params.yaml"), **{**QUICK, **{f"fine_tune.{name}": value for name, value in changes.items()}})
    keras.backend.clear_session()  # a process of its own gives layers the same names each time
    run("fine_tune")
    return json.loads(paths.metrics("fine_tune").read_text()) | json.loads(paths.report("fine_tune").read_text())


def logits(model: keras.Model) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.float32)
    return np.log(np.asarray(model(images)))


def test_what_is_better_is_shipped_and_judged_as_it_is(here):
    found = tuned(batch_size=8)
    assert found["fine_tuned"] is True
    assert 0 < found["ema"] < 1
    assert found["val_loss"] == found["tuned_val_loss"] < found["head_val_loss"]
    assert found["tuned_confidence"] > 0.5
    assert found["tuned_brier_score"] < found["head_brier_score"]
    assert (found["last_epoch"], found["finished"]) == (4, True)
    run("evaluate")
    judged = json.loads(paths.metrics("evaluate").read_text())
    assert judged["log_loss"] < judged["head"]["log_loss"]
    # The shipped model is the one that was judged: its probabilities for val have the log loss of the metrics.
    model, classes = networks.load(paths.MODEL)
    manifest = pd.read_parquet(paths.MANIFEST)
    val = manifest[manifest.split == "val"]
    images = np.stack(
        [np.asarray(activations.Pixels(val, Folder(Path("photos")), 32, NONE).read([n], 0)[0]) for n in range(len(val))]
    )
    targets = val.label.map({name: number for number, name in enumerate(classes)}).to_numpy()
    loss = calibration.log_loss(np.log(np.asarray(model(images.astype(np.float32)))), targets).mean()
    assert loss == pytest.approx(found["val_loss"], rel=0.01)


def test_what_is_not_surely_better_is_not_shipped(here):
    found = tuned(learning_rate=1e-9, confidence=0.999999)
    assert found["fine_tuned"] is False
    assert found["val_loss"] == found["head_val_loss"]
    model, _ = networks.load(paths.MODEL)
    head, _ = networks.load(paths.HEAD)
    trunk = keras_applications.build_trunk("short", "none", 32, "avg", load_params().seed)
    expected = networks.join(trunk, head)
    assert logits(model) == pytest.approx(logits(expected), abs=1e-4)


def test_kept_activations_change_no_result(here):
    """The same views, drawn anew or kept, plain ones first: equal but for float16's rounding, if nothing is mixed."""
    same = {"layer_decay": 0.9, "views": 2, "crop": 0.8, "flip": True, "mixup": 0, "epochs": 3}
    same |= {"refit": True, "confidence": 0}
    results = [(tuned(trunk_cache=way, **same), logits(networks.load(paths.MODEL)[0])) for way in ("on", "off")]
    assert [metrics["trunk_cache"] for metrics, _ in results] == [True, False]
    assert [metrics["refitted"] for metrics, _ in results] == [True, True]
    assert results[0][0]["tuned_val_loss"] == pytest.approx(results[1][0]["tuned_val_loss"], rel=0.05)
    assert results[0][1] == pytest.approx(results[1][1], abs=0.1)


def test_activations_that_are_kept_are_not_computed_again(here, monkeypatch):
    computed = []
    original = activations.Extraction.compute
    monkeypatch.setattr(
        activations.Extraction,
        "compute",
        lambda self, chosen, known: (computed.append(len(chosen)), original(self, chosen, known))[1],
    )
    tuned(trunk_cache="on", views=2, epochs=1)
    tuned(trunk_cache="on", views=2, epochs=1, learning_rate=0.001)
    train, val = (int((pd.read_parquet(paths.MANIFEST).split == split).sum()) for split in ("train", "val"))
    assert computed == [3 * train + val, 0]


@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16", "class_weight": "balanced"}, {"unfreeze": "all"}], ids=str
)
def test_the_ways_to_train_all_ship_a_float32_model(here, changes):
    found = tuned(learning_rate=0.001, **changes)
    assert np.isfinite(found["tuned_val_loss"])
    model, _ = networks.load(paths.MODEL)
    assert {layer.dtype_policy.compute_dtype for layer in model.layers} == {"float32"}
    if changes.get("unfreeze") == "all":
        assert found["trunk_cache"] is False


def test_a_killed_stage_goes_on_to_the_same_file(here, monkeypatch):
    tuned()
    whole = paths.MODEL.read_bytes()

    class Kill:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __call__(self, row):
            if row["epoch"] == 3:
                raise SystemExit

    with monkeypatch.context() as killed:
        killed.setattr(fine_tune.recording, "Live", Kill)
        with pytest.raises(SystemExit):
            tuned()
    seen = []
    monkeypatch.setattr(Kill, "__call__", lambda self, row: seen.append(row["epoch"]))
    monkeypatch.setattr(fine_tune.recording, "Live", Kill)
    tuned()
    assert seen == [2, 3, 4]
    assert paths.MODEL.read_bytes() == whole


def test_a_training_by_other_kernels_is_not_gone_on_with(here, monkeypatch):
    """Its last digits are others."""
    found = set()
    for value in ("0", "1"):
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
        found.add(plan.fingerprint(load_params(), {}, {}, []))
    assert len(found) == 2


def test_batch_norm_of_network_and_head_stays_as_it_was(here):
    write_params(Path("params.yaml"), **{**QUICK, "train_head.batch_norm": True, "train_head.learning_rate": 1e-5})
    run("train_head")
    before, _ = networks.load(paths.HEAD)
    found = tuned(learning_rate=0.003, mixup=0, confidence=0)
    assert found["fine_tuned"] is True
    model, _ = networks.load(paths.MODEL)
    trunk = keras_applications.build_trunk("short", "none", 32, "avg", load_params().seed).get_layer("backbone")
    shipped = model.get_layer("trunk").get_layer("backbone")
    for layer in trunk.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for old, new in zip(layer.get_weights(), shipped.get_layer(layer.name).get_weights(), strict=True):
                assert (old == new).all()
    names = [layer.name for layer in before.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert names == ["batch_norm_1"]
    for old, new in zip(
        before.get_layer(names[0]).get_weights(), model.get_layer("head").get_layer(names[0]).get_weights(), strict=True
    ):
        assert (old == new).all()


def broken_after(epoch: int, monkeypatch) -> None:
    """Have no numbers in any batch of a later epoch."""
    read = batches.Batches.__getitem__

    def no_numbers(self, index: int):
        inputs, targets, weights = read(self, index)
        late = self._seed is not None and self._epoch >= epoch
        return np.full(inputs.shape, np.nan, np.float32) if late else inputs, targets, weights

    monkeypatch.setattr(batches.Batches, "__getitem__", no_numbers)


def test_what_breaks_off_at_once_is_not_shipped(here, monkeypatch, capsys):
    broken_after(0, monkeypatch)
    found = tuned()
    assert (found["fine_tuned"], found["last_epoch"], found["finished"]) == (False, 0, False)
    assert "is shipped: training broke off after epoch 0, its loss being no number" in capsys.readouterr().out
    assert pd.read_csv(paths.curves("fine_tune")).empty


def test_what_breaks_off_later_is_judged_as_it_was_before(here, monkeypatch, capsys):
    broken_after(3, monkeypatch)
    found = tuned(batch_size=8)
    assert (found["fine_tuned"], found["last_epoch"], found["finished"]) == (True, 3, False)
    said = capsys.readouterr().out.splitlines()[-1]
    assert "is shipped: epoch 3 has val loss" in said
    assert said.endswith("; training broke off after epoch 3, its loss being no number")


# --- trained again on train and val


@pytest.fixture
def trainings(monkeypatch) -> list[tuple[int, float]]:
    """How many images each training of the upper part sees, and a sum over the weights that it starts from."""
    seen, original = [], plan.tune

    def watched(job):
        seen.append((len(job.train_set.targets), sum(float(np.abs(v).sum()) for v in networks.values(job.network))))
        return original(job)

    monkeypatch.setattr(plan, "tune", watched)
    return seen


def counts() -> tuple[int, int]:
    splits = pd.read_parquet(paths.MANIFEST).split
    return int((splits == "train").sum()), int((splits == "val").sum())


def test_what_earned_its_place_is_trained_on_val_too_and_judged_without(here, trainings):
    alone = tuned(confidence=0)
    model = paths.MODEL.read_bytes()
    found = tuned(confidence=0, refit=True)
    train, val = counts()
    assert trainings == [(count, trainings[0][1]) for count in (train, train, train + val)]
    assert (alone.pop("refitted"), found.pop("refitted"), found["fine_tuned"]) == (False, True, True)
    assert (alone.pop("refit"), found.pop("refit")) == (False, True)
    assert found == alone
    assert paths.MODEL.read_bytes() != model
    assert not list(paths.cache_path("fine_tune").iterdir())


def test_what_did_not_earn_it_is_not_trained_again(here, trainings):
    found = tuned(learning_rate=1e-9, confidence=0.999999, refit=True)
    assert [count for count, _ in trainings] == [counts()[0]]
    assert (found["refitted"], found["fine_tuned"]) == (False, False)


def test_a_stage_killed_while_it_trains_again_goes_on_to_the_same_file(here, monkeypatch, capsys):
    tuned(confidence=0, refit=True)
    whole = paths.MODEL.read_bytes()
    save = plan.Checkpoint.save

    def killed(self, variables, epochs, states) -> None:
        save(self, variables, epochs, states)
        if self.file.stem.endswith("-all") and epochs.rows[-1]["epoch"] == 2:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(plan.Checkpoint, "save", killed)
        with pytest.raises(SystemExit):
            tuned(confidence=0, refit=True)
    capsys.readouterr()
    tuned(confidence=0, refit=True)
    said = capsys.readouterr().out
    assert "had ended when it was stopped after epoch 4 of 4" in said
    assert "goes on after epoch 2 of 4" in said
    assert paths.MODEL.read_bytes() == whole


@pytest.mark.parametrize("way", ["breaks off", "goes astray"])
def test_training_again_that_fails_leaves_what_was_judged(here, monkeypatch, capsys, way):
    def spoil() -> None:
        if way == "breaks off":
            broken_after(2, monkeypatch)
        else:  # each image is said to be of the next class, and learned too fast
            read, train = batches.Batches.__getitem__, plan.tune

            def next_class(self, index: int):
                inputs, targets, weights = read(self, index)
                return inputs, np.roll(targets, 1, axis=1), weights

            fast = {"learning_rate": 0.01}
            monkeypatch.setattr(batches.Batches, "__getitem__", next_class)
            monkeypatch.setattr(
                plan, "tune", lambda job: train(replace(job, choice=job.choice.model_copy(update=fast)))
            )

    tuned(confidence=0, batch_size=8)
    judged = paths.MODEL.read_bytes()
    refit = plan.Plan.refit
    monkeypatch.setattr(plan.Plan, "refit", lambda self, before: (spoil(), refit(self, before))[1])
    found = tuned(confidence=0, batch_size=8, refit=True)
    assert (found["refitted"], found["fine_tuned"]) == (False, True)
    assert "what was trained on train alone is kept" in capsys.readouterr().out
    assert paths.MODEL.read_bytes() == judged


@pytest.mark.parametrize(
    ("asked", "count", "given", "refits"),
    [
        (None, 5000, False, True),
        (None, 5001, False, False),
        (None, 100, True, False),
        (True, 5001, True, True),
        (False, 100, False, False),
    ],
)
def test_few_images_are_all_trained_on_but_a_val_that_was_brought(asked, count, given, refits):
    choice = load_params(Path(__file__).parent.parent / "params.yaml").fine_tune
    splits = np.where(np.arange(count) < 10, "val", "train")
    images = pd.DataFrame({"split": splits, "given": given & (splits == "val")})
    assert defaults.refit(choice.model_copy(update={"refit": asked}), images) == refits


# --- what is better


def states(targets: np.ndarray, *logits: np.ndarray) -> States:
    found = States.of(targets, 0)
    for one in logits:
        found.add(one)
    return found


def test_better_is_what_a_paired_test_says():
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 200).astype(np.int32)
    head = random.normal(0, 1, (200, 3)) + 2 * np.eye(3)[targets]
    better = head + 0.7 * np.eye(3)[targets]
    assert states(targets, head, better).verdict(0.99) == (True, pytest.approx(1, abs=0.01))
    assert states(targets, better, head).verdict(0.5)[0] is False
    # Confidence alone is no difference, nor is the same network.
    assert states(targets, head, 5 * head).verdict(0.99)[0] is False
    assert states(targets, head, head).verdict(0.0) == (False, 0.0)


def test_a_lower_score_with_fewer_right_answers_is_not_better():
    """A head that is right but for one class as sure as not, against one that is wrong at times and else sure."""
    targets = (np.arange(300) % 3).astype(np.int32)
    sound = np.eye(3)[targets] * np.where(np.arange(300) % 2, 5, 0.05)[:, None]
    wrong = np.where((np.arange(300) % 10 == 0)[:, None], 1.2 * np.eye(3)[(targets + 1) % 3], 4 * np.eye(3)[targets])
    found = states(targets, sound, wrong)
    assert found.scores[1].mean() < found.scores[0].mean()
    assert found.verdict(0.5)[0] is False
    assert found.verdict(0.5)[1] > 0.9


def test_the_last_state_is_judged_not_the_best_one():
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 200).astype(np.int32)
    head = random.normal(0, 1, (200, 3)) + 2 * np.eye(3)[targets]
    better, worse = head + np.eye(3)[targets], head - np.eye(3)[targets]
    assert states(targets, head, better, worse).verdict(0.5) == (False, 0.0)
    assert states(targets, head, worse, better).verdict(0.5)[0] is True


def test_a_few_answers_that_are_surely_wrong_do_not_drown_the_others():
    """Of 120 answers ten more are right, and those that are wrong are surer than they were."""
    order, targets = np.random.default_rng(0).permutation(120), (np.arange(120) % 3).astype(np.int32)

    def answers(wrong: int, sure: float) -> np.ndarray:
        of_wrong = sure * np.eye(3)[(targets + 1) % 3]
        return np.where((order < wrong)[:, None], of_wrong, 3 * np.eye(3)[targets])

    found = states(targets, answers(20, 0.9), answers(10, 2.7))
    assert found.losses[1].mean() > found.losses[0].mean()
    assert found.verdict(0.75)[0] is True


def test_what_is_no_better_is_seldom_shipped():
    random, shipped = np.random.default_rng(0), 0
    for _ in range(100):
        targets = random.integers(0, 3, 60).astype(np.int32)
        right = 1.5 * np.eye(3)[targets]
        head, other = (random.normal(0, 1, (60, 3)) + right for _ in range(2))
        shipped += states(targets, head, other).verdict(0.9)[0]
    assert shipped <= 15


# --- what is chosen


@pytest.mark.parametrize(("images", "epochs", "views"), [(100, 30, 9), (1236, 19, 9), (2570, 9, 8), (100_000, 5, 4)])
def test_epochs_follow_from_the_number_of_images(images, epochs, views):
    write = load_params(Path(__file__).parent.parent / "params.yaml").fine_tune
    assert defaults.schedule(write, images) == (epochs, views)
    assert defaults.schedule(write.model_copy(update={"epochs": 3, "views": 7}), images) == (3, 7)


@pytest.mark.parametrize(
    ("ema", "images", "momentum"), [(None, 320, 0.95), (None, 290, 0.95), (None, 8, 0.5), (0, 320, 0), (0.9, 8, 0.9)]
)
def test_the_average_of_the_weights_follows_from_the_number_of_steps(ema, images, momentum):
    choice = load_params(Path(__file__).parent.parent / "params.yaml").fine_tune
    choice = choice.model_copy(update={"ema": ema, "batch_size": 32})
    assert defaults.momentum(choice, 10, images) == pytest.approx(momentum)
    assert defaults.momentum(choice, 1, 8) == (ema or 0)


def side_network(margin: int) -> keras.Model:
    """Knows on which side of a 32 px image a bright stripe is, by its outermost `margin` pixels."""
    image = keras.Input((32, 32, 3))
    left, right = image[:, :, :margin], image[:, :, -margin:]
    both = [keras.ops.mean(side, axis=(1, 2, 3)) for side in (left, right)]
    return keras.Model(image, keras.ops.stack(both, axis=1))


def test_changes_are_as_strong_as_the_head_can_bear(tmp_path):
    """Classes are sides of the image: mirrored they are others; what shows at the border alone is lost in crops."""
    from PIL import Image

    rows = []
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3), np.uint8)
        side, label = (slice(0, 3), 0) if number % 2 else (slice(29, 32), 1)
        pixels[:, side] = 255
        file = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(file)
        rows.append({"path": file.name, "file_hash": file_hash(file.read_bytes()), "target": label})
    images = pd.DataFrame(rows)
    choice = load_params(Path(__file__).parent.parent / "params.yaml").fine_tune
    source = Folder(tmp_path)
    network = side_network(3)
    found = defaults.augmentation(choice, network, images, source, 32, 0)
    assert found.flip is False
    assert found.crop > 0.5
    alike = images.assign(target=0)
    blind = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(2, kernel_initializer="zeros")]
    )
    found = defaults.augmentation(choice, blind, alike, source, 32, 0)  # mirrored or cropped, it is all the same
    assert found == Augmentation(defaults.CROPS[0], True, choice.jitter)
    # Who knows nothing cannot tell what does harm.
    found = defaults.augmentation(choice, blind, images.assign(target=1), source, 32, 0)
    assert found == Augmentation(defaults.CROPS[-1], False, choice.jitter)
    given = choice.model_copy(update={"crop": 0.3, "flip": True})
    assert defaults.augmentation(given, network, images, source, 32, 0) == Augmentation(0.3, True, choice.jitter)


@pytest.mark.parametrize(
    ("arguments", "expected", "reason"),
    [
        (("auto", 1000, 100, 1000, True, 0.5), True, "100 views to be computed once (0.0002 GB), not 1,000"),
        (("auto", 1000, 100, 100, True, 0.5), True, "not 100 in all epochs"),
        (("auto", 1000, 100, 100, False, 0.5), False, "hardly fewer than the 100 of all epochs"),
        (("auto", 10**6, 10**6, 10**7, True, 0.5), False, "are more than the 20 GB"),
        (("auto", 1000, 100, 1000, True, 0.05), False, "only 5% of the work"),
        (("on", 10**9, 10**6, 10, True, 0.5), True, "as fine_tune.trunk_cache on says"),
        (("off", 1000, 100, 1000, True, 0.5), False, "as fine_tune.trunk_cache off says"),
        (("auto", None, 100, 1000, True, 0.0), False, "nothing of what is frozen can be computed apart"),
    ],
    ids=str,
)
def test_activations_are_kept_where_it_pays(arguments, expected, reason):
    found, why = activations.choose(*arguments)
    assert found is expected
    assert reason in why


def test_activations_that_cannot_be_kept_are_refused():
    with pytest.raises(UserError, match=r"fine_tune\.trunk_cache on: nothing of what is frozen"):
        activations.choose("on", None, 100, 1000, True, 0.0)


def test_a_temperature_is_part_of_the_head(here):
    head, _ = networks.load(paths.HEAD)
    val = load_features("val")
    metrics = json.loads(paths.metrics("train_head").read_text())
    found = heads.logits(head, val)
    assert calibration.metrics(found, val.targets)["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-4)
    assert metrics["val_loss"] <= metrics["unscaled_val_loss"]
