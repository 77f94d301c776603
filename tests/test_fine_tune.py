"""The stage fine_tune: what it selects and writes, that cached activations change no result, resuming, the refit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import run_stages as run
from conftest import write_params
from scipy.special import softmax

from headstart import paths
from headstart.backbones import get_backbone
from headstart.backbones.base import BACKBONE_LAYER
from headstart.config import load_params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_split
from headstart.errors import UserError
from headstart.features import extraction
from headstart.features.engines import openvino_engine
from headstart.features_meta import read_meta
from headstart.modalities import get_modality
from headstart.modalities.loading import read_batches
from headstart.training import batches, heads, networks, plan, planning
from headstart.training.examples import load_features

QUICK = {"train_head.learning_rate": 0.01, "train_head.epochs": 10, "fine_tune.epochs": 4, "fine_tune.confidence": 0.5}
QUICK |= {"fine_tune.crop": 0.8, "fine_tune.flip": True}
START = Path("start.yaml")  # what the params of a test begin with


def add_head(folder: Path, source: Path, changes: dict[str, object]) -> Path:
    """Make `folder`: `source`, a head that still has something to learn, and the params that it was trained by."""
    shutil.copytree(source, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(START, START, **changes)
        shutil.copy(START, "params.yaml")
        run("train_head")
    return folder


@pytest.fixture(scope="module")
def photos_with_head(tmp_path_factory, extracted_short) -> Path:
    return add_head(tmp_path_factory.mktemp("head") / "here", extracted_short, QUICK)


@pytest.fixture(scope="module")
def texts_with_head(tmp_path_factory, extracted_texts) -> Path:
    from text_models import TUNED

    return add_head(tmp_path_factory.mktemp("head") / "here", extracted_texts, TUNED)


@pytest.fixture
def here(tmp_path: Path, request, monkeypatch) -> Path:
    """Examples with features and a head: photos, or texts if `request` says so."""
    shutil.copytree(
        request.getfixturevalue(getattr(request, "param", "photos_with_head")), tmp_path, dirs_exist_ok=True
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fine_tune(**changes: object) -> dict:
    """Run the stage with changed params; return its report."""
    write_params(Path("params.yaml"), START, **{f"fine_tune.{name}": value for name, value in changes.items()})
    keras.backend.clear_session()  # so that layers have the same names each time, as in a process of their own
    run("fine_tune")
    return json.loads(paths.report("fine_tune").read_text())


def predict_val(model: networks.Classifier) -> np.ndarray:
    examples = load_split("val")
    with open_examples(load_params().data, model.modality) as source:
        rows = list(examples.path), list(examples.file_hash)
        read = read_batches(source, model.modality, *rows, model.size, 32)
        return np.concatenate([model.predict(batch) for batch in read])


def val_predictions() -> np.ndarray:
    """Return the probabilities of predictions/val.csv."""
    table = pd.read_csv(paths.VAL_PREDICTIONS)
    examples = load_split("val")
    assert table[["path", "item_id", "label"]].equals(examples[["path", "item_id", "label"]].reset_index(drop=True))
    probabilities = table[[name for name in table if name.startswith("p_")]].to_numpy()
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    return probabilities


def test_a_better_network_is_selected_and_shipped_as_it_was_scored(here):
    report = fine_tune(batch_size=8)
    assert report["selected"] == "fine_tuned"
    assert 0 < report["settings"]["ema"] < 1
    assert report["val_loss"] == report["tuned_val_loss"] < report["head_val_loss"]
    assert report["tuned_confidence"] > 0.5
    assert report["tuned_brier_score"] < report["head_brier_score"]
    assert (report["last_epoch"], report["finished"]) == (4, True)
    metrics = json.loads(paths.metrics("fine_tune").read_text())
    assert metrics == {"val_loss": pytest.approx(report["val_loss"], abs=1e-6)}
    probabilities = val_predictions()
    assert predict_val(networks.load_classifier(paths.MODEL)) == pytest.approx(probabilities, abs=0.01)
    loss = -np.log(probabilities[np.arange(len(probabilities)), load_split("val").target]).mean()
    assert loss == pytest.approx(report["val_loss"], rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 1e-9, "confidence": 0.999999}, {"learning_rate": 1, "warm_up": 0, "unfreeze": "all"}],
    ids=["no better", "harmful"],
)
def test_otherwise_the_head_is_shipped_without_a_refit(here, changes):
    report = fine_tune(refit=True, **changes)
    assert (report["selected"], report["refitted"]) == ("head", False)
    assert report["val_loss"] == report["head_val_loss"]
    head, _ = networks.load(paths.HEAD)
    encoder = get_backbone("short").build("none", 32, "avg", load_params().seed)
    expected = networks.join(get_modality("image").front(32), encoder, head)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.float32)
    shipped = networks.load_classifier(paths.MODEL).network
    assert np.asarray(shipped(images)) == pytest.approx(np.asarray(expected(images)), abs=1e-5)
    assert val_predictions() == pytest.approx(
        softmax(heads.logits(head, load_features("val").prefix(128)), axis=1), abs=1e-5
    )


@pytest.mark.parametrize(
    ("here", "changes"),
    [
        pytest.param("photos_with_head", {"mixup": 0, "refit": True}, marks=pytest.mark.slow, id="image"),
        pytest.param("texts_with_head", {"word_dropout": 0.2}, id="text"),
    ],
    indirect=["here"],
)
def test_cached_activations_change_no_result(here, changes):
    """The same views, computed each time or once, differ by the rounding to float16 only, without mixup."""
    same = {"layer_decay": 0.9, "views": 2, "epochs": 2, "confidence": 0, **changes}
    reports, probabilities = [], []
    for cache in ("on", "off"):
        reports.append(fine_tune(trunk_cache=cache, **same))
        probabilities.append(predict_val(networks.load_classifier(paths.MODEL)))
    assert [report["settings"]["trunk_cache"] for report in reports] == [True, False]
    assert [report["refitted"] for report in reports] == 2 * [changes.get("refit", False)]
    assert reports[0]["tuned_val_loss"] == pytest.approx(reports[1]["tuned_val_loss"], rel=0.05)
    assert probabilities[0] == pytest.approx(probabilities[1], abs=0.02)


@pytest.mark.slow
def test_cached_activations_are_not_computed_again(here, monkeypatch):
    computed, original = [], extraction.Extraction.compute

    def compute(self, chosen, known):
        computed.append(len(chosen))
        return original(self, chosen, known)

    converted, convert = [], openvino_engine.convert
    monkeypatch.setattr(extraction.Extraction, "compute", compute)
    monkeypatch.setattr(openvino_engine, "convert", lambda *of: converted.append(1) or convert(*of))
    fine_tune(trunk_cache="on", views=2, epochs=1)
    fine_tune(trunk_cache="on", views=2, epochs=1, learning_rate=0.001)
    assert computed == [3 * len(load_split("train")) + len(load_split("val")), 0]
    assert converted == [1]  # the frozen blocks are not converted again either
    fine_tune(trunk_cache="on", views=2, epochs=1, unfreeze=3)
    assert converted == [1, 1]  # these are others


@pytest.mark.slow
def test_the_model_has_the_same_bytes_if_a_converted_network_was_kept(here):
    shutil.rmtree(paths.cache_path("graphs"), ignore_errors=True)
    found = []
    for _ in range(2):
        fine_tune(trunk_cache="on", views=1, epochs=1, confidence=0)
        found.append(paths.MODEL.read_bytes())
    assert found[0] == found[1]


BFLOAT16, ALL = {"precision": "bfloat16", "class_weight": "balanced"}, {"unfreeze": "all", "trunk_cache": "auto"}


@pytest.mark.parametrize("changes", [BFLOAT16, pytest.param(ALL, marks=pytest.mark.slow)])
def test_a_float32_model_is_shipped_however_it_was_trained(here, changes):
    report = fine_tune(learning_rate=0.001, **changes)
    assert np.isfinite(report["tuned_val_loss"])
    assert report["settings"]["trunk_cache"] is False  # nothing is frozen, or not worth it
    model, _ = networks.load(paths.MODEL)
    assert {layer.dtype_policy.compute_dtype for layer in model.layers} == {"float32"}


def test_batch_norm_of_backbone_and_head_stays_frozen(here):
    write_params(Path("params.yaml"), START, **{"train_head.batch_norm": True, "train_head.learning_rate": 1e-5})
    run("train_head")
    head, _ = networks.load(paths.HEAD)
    assert fine_tune(learning_rate=0.003, mixup=0, confidence=0)["selected"] == "fine_tuned"
    model, _ = networks.load(paths.MODEL)
    backbone = get_backbone("short").build("none", 32, "avg", load_params().seed).get_layer(BACKBONE_LAYER)
    shipped = model.get_layer("encoder").get_layer(BACKBONE_LAYER)
    pairs = [
        (layer.get_weights(), after.get_layer(layer.name).get_weights())
        for before, after in ((backbone, shipped), (head, model.get_layer("head")))
        for layer in before.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(pairs) == 5
    assert all((old == new).all() for pair in pairs for old, new in zip(*pair, strict=True))


def test_weights_that_changed_since_extraction_are_refused(here):
    paths.FEATURES_META.write_text(read_meta().model_copy(update={"weights_sha256": "0"}).model_dump_json())
    with pytest.raises(UserError, match="weights of short are not those that the features were extracted with"):
        fine_tune()


# --- NaN and resuming


def nan_from_epoch(epoch: int, monkeypatch) -> None:
    """Make the inputs of all later training batches NaN."""
    read = batches.Batches.__getitem__

    def broken(self, index: int):
        inputs, *rest = read(self, index)
        if self._seed is not None and self._epoch >= epoch:
            inputs = {name: np.full(array.shape, np.nan, np.float32) for name, array in inputs.items()}
        return inputs, *rest

    monkeypatch.setattr(batches.Batches, "__getitem__", broken)


@pytest.mark.slow
def test_a_training_that_is_nan_at_once_is_not_selected(here, monkeypatch, capsys):
    nan_from_epoch(0, monkeypatch)
    report = fine_tune()
    assert (report["selected"], report["last_epoch"], report["finished"]) == ("head", 0, False)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "fine_tune: the head is selected: training stopped after epoch 0, since its loss was NaN"
    assert pd.read_csv(paths.curves("fine_tune")).empty


def test_a_training_that_becomes_nan_is_compared_as_it_was_before(here, monkeypatch, capsys):
    nan_from_epoch(3, monkeypatch)
    report = fine_tune(batch_size=8)
    assert (report["selected"], report["last_epoch"], report["finished"]) == ("fine_tuned", 3, False)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("fine_tune: the fine-tuned network is selected: on val the fine-tuned network has log loss")
    assert line.endswith("; training stopped after epoch 3, since its loss was NaN")


@pytest.mark.parametrize(
    ("here", "refit", "printed"),
    [
        ("photos_with_head", False, ["training resumes after epoch 1 of 3"]),
        ("texts_with_head", False, ["training resumes after epoch 1 of 3"]),
        pytest.param(
            *("photos_with_head", True, ["training had finished", "training resumes after epoch 1 of 2"]),
            marks=pytest.mark.slow,
        ),
    ],
    indirect=["here"],
)
def test_a_killed_stage_resumes_to_the_same_file(here, monkeypatch, capsys, refit, printed):
    changes = {"confidence": 0, "refit": refit, "epochs": 3}
    fine_tune(**changes)
    whole, save = paths.MODEL.read_bytes(), plan.Checkpoint.save

    def killed(self, variables, history, scores) -> None:
        save(self, variables, history, scores)
        if self.file.stem.endswith("-refit") == refit and history.rows[-1]["epoch"] == 1:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(plan.Checkpoint, "save", killed)
        with pytest.raises(SystemExit):
            fine_tune(**changes)
    capsys.readouterr()
    fine_tune(**changes)
    output = capsys.readouterr().out
    assert all(line in output for line in printed)
    assert paths.MODEL.read_bytes() == whole


def test_a_training_with_other_kernels_does_not_resume(here, monkeypatch):
    """Their last digits differ."""
    params, meta = load_params(), read_meta()
    encoder, head = planning.build_encoder(params, meta, "float32"), networks.load(paths.HEAD)[0]
    logits, found = np.load(paths.HELD_OUT), []
    for kernels in ("0", "0", "1"):
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", kernels)
        with planning.build_plan(params, encoder, head, logits, meta, [], None) as plan:
            found.append(plan.checkpoints)
    assert found[0] == found[1] != found[2]


# --- the refit on train and val


@pytest.fixture
def trainings(monkeypatch) -> list[tuple[int, float, float]]:
    """How many examples each training sees, and sums over the weights that it starts from and ends with."""
    seen, original = [], plan.train

    def train(job):
        before = sum(float(np.abs(value).sum()) for value in job.trainer.network.get_weights())
        result = original(job)
        after = sum(float(np.abs(value).sum()) for value in job.trainer.network.get_weights())
        seen.append((len(job.train_set.targets), before, after))
        return result

    monkeypatch.setattr(plan, "train", train)
    return seen


def test_a_better_network_is_refitted_and_scored_without_val(here, trainings):
    alone = fine_tune(confidence=0)
    model, probabilities = paths.MODEL.read_bytes(), val_predictions()
    report = fine_tune(confidence=0, refit=True)
    n_train, n_val = len(load_split("train")), len(load_split("val"))
    assert trainings[0] == trainings[1] == (n_train, *trainings[0][1:])
    assert trainings[2][:2] == (n_train + n_val, trainings[1][2])  # it goes on from the trained weights
    assert trainings[2][2] != trainings[2][1] != trainings[1][1]
    assert (alone.pop("refitted"), report.pop("refitted"), report["selected"]) == (False, True, "fine_tuned")
    assert (alone["settings"].pop("refit"), report["settings"].pop("refit")) == (False, True)
    assert (alone["settings"].pop("refit_epochs"), report["settings"].pop("refit_epochs")) == (0, 1)
    assert report.pop("reason") == f"{alone.pop('reason')}; refitted on train + val"
    assert report == alone
    assert paths.MODEL.read_bytes() != model
    assert (val_predictions() == probabilities).all()  # of the network that has not seen val
    assert predict_val(networks.load_classifier(paths.MODEL)) != pytest.approx(probabilities, abs=1e-3)
    assert not list(paths.cache_path("fine_tune").iterdir())


@pytest.mark.slow
def test_with_thorough_effort_the_refit_starts_from_the_beginning(here, trainings):
    report = fine_tune(confidence=0, refit=True, effort="thorough")
    n_train, n_val = len(load_split("train")), len(load_split("val"))
    assert [count for count, *_ in trainings] == [n_train, n_train + n_val]
    assert trainings[0][1] == trainings[1][1]
    assert report["settings"]["refit_epochs"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["NaN", "worse"])
def test_a_refit_that_fails_is_discarded(here, monkeypatch, capsys, failure):
    refit, read, train, kept = plan.Plan.refit, batches.Batches.__getitem__, plan.train, []

    def next_class(self, index: int):
        inputs, targets, weights = read(self, index)
        return inputs, np.roll(targets, 1, axis=1), weights

    def fast(job):
        return train(replace(job, settings=job.settings.model_copy(update={"learning_rate": 0.01})))

    def failing(self, before):
        kept.append([array.copy() for array in networks.get_state(self.network)])
        if failure == "NaN":
            nan_from_epoch(2, monkeypatch)
        else:  # wrong labels, learned fast
            monkeypatch.setattr(batches.Batches, "__getitem__", next_class)
            monkeypatch.setattr(plan, "train", fast)
        refitted = refit(self, before)
        kept.append(networks.get_state(self.network))
        return refitted

    monkeypatch.setattr(plan.Plan, "refit", failing)
    report = fine_tune(confidence=0, batch_size=8, refit=True, effort="thorough")
    assert (report["refitted"], report["selected"]) == (False, "fine_tuned")
    assert "the network trained on train alone is kept" in capsys.readouterr().out
    assert all((before == after).all() for before, after in zip(*kept, strict=True))
    assert predict_val(networks.load_classifier(paths.MODEL)) == pytest.approx(val_predictions(), abs=0.01)
