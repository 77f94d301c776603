"""From features to a shipped model where cross-validation chooses the head, and it takes features of several depths."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SHORT, SMALL, write_params
from conftest import run_stages as run
from test_export import predict_elsewhere

from headstart import paths
from headstart.backbones.depths import pooling_layers
from headstart.data.prepared import load_split
from headstart.errors import UserError
from headstart.features_meta import read_meta
from headstart.head_config import OPEN
from headstart.report.pages import make_pages
from headstart.serving import ood
from headstart.serving.predict import predict
from headstart.training import head_choice, networks
from headstart.training.head_choice import AVERAGE
from headstart.training.saved_head import load_head

CHANGES = {**SMALL, **SHORT, "data.source": "photos", **{f"train_head.{key}": value for key, value in OPEN.items()}}


def set_params(**changes: object) -> None:
    write_params(Path("params.yaml"), **{**CHANGES, **changes})


def report(name: str) -> dict:
    return json.loads(paths.report(name).read_text())


def average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the average of all depths the best, whatever their losses."""
    select = head_choice.select

    def choose(*arguments: object) -> head_choice.Selection:
        found = select(*arguments)
        return dataclasses.replace(found, best=found.found[AVERAGE])

    monkeypatch.setattr(head_choice, "select", choose)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, extracted_short) -> Path:
    """A folder after all stages, with a head on features of all depths."""
    folder = tmp_path_factory.mktemp("chosen") / "here"
    shutil.copytree(extracted_short, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        average(patch)
        set_params()
        run("train_head", "fine_tune", "evaluate")
    return folder


@pytest.fixture
def here(tmp_path: Path, finished, monkeypatch) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_the_report_says_what_was_chosen_and_why(here):
    found, meta = report("train_head"), read_meta()
    choice = found["choice"]
    assert (choice["head"], choice["depth"], choice["folds"]) == (AVERAGE, "half", 5)
    assert {*meta.depths, AVERAGE} <= set(choice["losses"])
    assert set(choice["decays"]) == set(meta.depths) == {"last", "quarter", "half"}
    assert found["refitted"] is True
    assert found["settings"]["hidden"] == []
    count = int((pd.read_parquet(paths.MANIFEST).split != "test").sum())
    logits = np.load(paths.HELD_OUT)
    assert (logits.shape, logits.dtype) == ((count, 3), np.float32)
    assert np.isfinite(logits).all()
    head, _ = networks.load(paths.HEAD)
    assert head.input_shape[1] == meta.dim("half") > meta.dim("last")
    assert len(pd.read_csv(paths.curves("train_head"))) == found["best_epoch"]
    assert pd.read_csv(paths.TRIALS).empty


def test_what_is_printed_names_the_head_and_the_losses(here, capsys):
    run("train_head")
    lines = capsys.readouterr().out.splitlines()
    chosen = next(line for line in lines if " is selected; log loss in 5 folds: " in line)
    losses = report("train_head")["choice"]["losses"]
    assert chosen.endswith(": " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    assert lines[-1].startswith("train_head: val loss ")
    assert "in cross-validation; temperature " in lines[-1]
    assert lines[-1].endswith("; refitted on train + val")


def test_the_shipped_model_gives_the_predictions_of_evaluate_and_of_the_head(here, capsys):
    """`headstart predict`, evaluate and the head on extracted features agree."""
    test = load_split("test")
    assert predict([f"photos/{path}" for path in test.path], "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    expected = pd.read_csv(paths.PREDICTIONS)
    names = [name for name in expected if name.startswith("p_")]
    found = np.array([[float(row[name]) for name in names] for row in rows])
    assert found == pytest.approx(expected[names].to_numpy(), abs=1e-4)
    evaluated = report("evaluate")
    for name, row in evaluated["head"]["metrics"].items():
        assert evaluated["final"]["metrics"][name]["value"] == pytest.approx(row["value"], abs=1e-3)
    assert evaluated["final"]["metrics"]["accuracy"]["value"] > 0.9


@pytest.mark.slow
def test_the_model_of_several_depths_is_plain_keras(here):
    model, _ = networks.load(paths.MODEL)
    assert len(pooling_layers(model.get_layer("encoder"))) == 3
    images = np.random.default_rng(0).integers(0, 256, (4, 50, 70, 3)).astype(np.float32)
    (found,) = predict_elsewhere(here, {"keras": (paths.MODEL, images)})
    assert found == pytest.approx(networks.predict(model, images, 4), abs=1e-6)


def test_it_is_explained_on_the_page(here):
    make_pages()
    page = paths.RESULTS_PAGE.read_text(encoding="utf-8")
    assert page.count('class="look"') > 0
    assert "NaN" not in page


def test_unlike_examples_are_found_by_features_of_the_last_layer(here, capsys):
    ood.fit_ood(0.2)
    detector = ood.load(paths.MODEL)
    assert detector.features.shape[1] == read_meta().dim("last")
    assert predict([f"photos/{path}" for path in load_split("train").path[:5]], "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out.split("\n", 2)[-1])))
    assert rows


def test_a_head_for_features_that_are_not_there_is_refused(here):
    keras.utils.set_random_seed(0)
    networks.save(networks.build_head(289, 3, []), paths.HEAD, ["blue", "green", "red"])
    with pytest.raises(UserError, match=r"head\.keras: must take at most 288 features, got the shape \(None, 289\)"):
        load_head(288)
    networks.save(networks.build_head(150, 3, []), paths.HEAD, ["blue", "green", "red"])
    with pytest.raises(UserError, match=r"has no depth with the 150 features that the head takes"):
        run("fine_tune")


def test_the_stage_loads_no_tensorflow_for_it(here):
    """That takes seconds."""
    set_params(backbone="tiny")  # which another process knows
    code = "import sys, pipeline.train_head as t; t.main(); print({'tensorflow', 'keras'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    assert networks.load(paths.HEAD)[0].output_shape == (None, 3)


# --- fine-tuning


def test_fine_tuning_is_skipped_where_nothing_is_to_gain(here, capsys):
    """Unless params.yaml asks for it, as the other tests do with epochs and folds."""
    set_params(**{"fine_tune.epochs": None, "fine_tune.folds": None})
    keras.backend.clear_session()
    run("fine_tune")
    found, line = report("fine_tune"), capsys.readouterr().out.splitlines()[-1]
    count = len(np.load(paths.HELD_OUT))
    assert line == (
        f"fine_tune: the head is selected: the head classifies {count} of {count} correctly in cross-validation; "
        "fine_tune.effort=thorough trains all the same"
    )
    assert (found["selected"], found["settings"]) == ("head", {})
    assert found["val_loss"] == found["head_val_loss"]
    assert pd.read_csv(paths.curves("fine_tune")).empty


@pytest.mark.parametrize("better", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_with_thorough_effort_it_trains_from_a_head_on_the_last_layer(here, monkeypatch, better):
    monkeypatch.setattr("headstart.training.verdict.PairedScores.verdict", lambda self, confidence: (better, 0.8))
    set_params(**{"fine_tune.effort": "thorough"})
    keras.backend.clear_session()
    before = np.asarray(networks.load(paths.MODEL)[0](np.full((1, 32, 32, 3), 99, np.float32)))
    run("fine_tune", "evaluate")
    found, model = report("fine_tune"), networks.load(paths.MODEL)[0]
    assert found["selected"] == ("fine_tuned" if better else "head")
    assert found["last_epoch"] == 1
    dim = read_meta().dim("last" if better else "half")
    assert model.get_layer("head").input_shape[1] == dim
    after = np.asarray(model(np.full((1, 32, 32, 3), 99, np.float32)))
    assert (after == pytest.approx(before, abs=1e-6)) is not better


def test_the_head_to_beat_is_the_chosen_one(here, monkeypatch):
    """Not the one on the last layer, which fine-tuning starts from."""
    set_params(**{"fine_tune.effort": "thorough"})
    keras.backend.clear_session()
    run("fine_tune")
    head = np.load(paths.HELD_OUT)[-len(load_split("val")) :]
    targets = load_split("val").target.to_numpy()
    expected = head_choice.calibration.log_loss(head, targets).mean()
    assert report("fine_tune")["head_val_loss"] == pytest.approx(expected, abs=1e-5)


# --- params


@pytest.mark.parametrize(("changes", "keys"), [({"epochs": 5}, "epochs"), ({"optimizer": "adam"}, "optimizer")])
def test_a_key_of_training_asks_for_a_head_on_the_last_layer(here, capsys, changes, keys):
    set_params(**{f"train_head.{name}": value for name, value in changes.items()})
    run("train_head")
    asked = f"train_head: trained as params.yaml asks, since it sets {keys}; without that, cross-validation chooses"
    assert asked in capsys.readouterr().out
    assert networks.load(paths.HEAD)[0].input_shape[1] == read_meta().dim("last")
    found = report("train_head")
    assert (found["choice"], found["refitted"], found["settings"]["hidden"]) == ({}, False, [128])
    logits, count = np.load(paths.HELD_OUT), len(load_split("val"))
    assert np.isnan(logits[:-count]).all()
    assert np.isfinite(logits[-count:]).all()


def test_val_that_came_with_the_data_is_kept_apart(here):
    manifest = pd.read_parquet(paths.MANIFEST)
    manifest.assign(given=manifest.split == "val").to_parquet(paths.MANIFEST)
    run("train_head")
    assert report("train_head")["refitted"] is False
