"""A modality and a backbone of a few lines each go through all five stages: the proof that text and sound will fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, run_stages, write_params

from headstart import backbones, modalities, paths
from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Backbone
from headstart.errors import ItemError, UserError
from headstart.modalities import Modality
from headstart.training import networks

CENTERS = {"cold": -1.0, "mild": 0.0, "warm": 1.0}


class Numbers(Modality):
    """A line of numbers."""

    name, noun, suffixes = "numbers", "line", (".txt",)

    def decode(self, data: bytes) -> np.ndarray:
        try:
            return np.array(data.decode().split(","), np.float32)
        except ValueError as error:
            raise ItemError("not_numbers", f"not numbers: {error}") from error

    def spec(self, size: int) -> dict[str, Any]:
        return {"input": ((size,), "float32")}

    def probes(self, size: int) -> list[bytes]:
        return [",".join(map(str, range(size))).encode()]


class SmallDense(Backbone):
    """Three Dense layers."""

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        keras.utils.set_random_seed(seed)
        inner = x = keras.Input((size,))
        for units in (32, 32, self.feature_dim):
            x = keras.layers.Dense(units, "tanh")(x)
        base = keras.Model(inner, x, name=BACKBONE_LAYER)
        base.trainable = False
        inputs = {"input": keras.Input((size,), name="input")}
        features = keras.layers.Identity(name=POOL_LAYER)(base(inputs["input"], training=False))
        return keras.Model(inputs, features, name="encoder")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """A folder after all five stages on lines of numbers."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    for label, center in CENTERS.items():
        (folder / "lines" / label).mkdir(parents=True)
        for number in range(30):
            line = ",".join(f"{value:.4f}" for value in rng.normal(center, 0.4, 6))
            (folder / "lines" / label / f"{number:02}.txt").write_text(line)
    (folder / "lines" / "cold" / "broken.txt").write_text("1,two,3")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(modalities._MODALITIES, "numbers", Numbers())
        dense = SmallDense("small-dense", "numbers", 6, 16, 0.002, "none")
        patch.setitem(backbones.BACKBONES, "small-dense", dense)
        changes = {"data.kind": "numbers", "data.source": "lines", "backbone": "small-dense", "weights": "none"}
        changes |= {"extract.size": None, "fine_tune.trunk_cache": "on", "fine_tune.unfreeze": 1}
        changes |= {"fine_tune.epochs": 3, "train_head.epochs": 30, "prepare.max_bad_fraction": 0.05}
        write_params(Path("params.yaml"), **{**SMALL, **changes})
        run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")
        yield folder


def test_another_modality_goes_through_all_stages(finished):
    manifest = pd.read_parquet(paths.MANIFEST)
    assert len(manifest) == 90
    assert pd.read_csv(paths.QUARANTINE)[["path", "reason"]].values.tolist() == [["cold/broken.txt", "not_numbers"]]
    assert np.load(paths.FEATURES["train"]).shape == ((manifest.split == "train").sum(), 16)
    assert json.loads(paths.report("fine_tune").read_text())["settings"]["trunk_cache"] is True
    assert json.loads(paths.metrics("evaluate").read_text())["accuracy"] > 0.9


def test_the_shipped_model_takes_examples_of_its_modality(finished):
    model = networks.load_classifier(paths.MODEL)
    assert (model.modality.name, model.size, model.classes) == ("numbers", 6, list(CENTERS))
    lines = [b"1,1,1,1,1,1", b"-1,-1,-1,-1,-1,-1"]
    batch = model.modality.batch([model.modality.load(line, model.size) for line in lines])
    probabilities = model.predict(batch)
    assert [model.classes[place] for place in probabilities.argmax(axis=1)] == ["warm", "cold"]
    predictions = pd.read_csv(paths.PREDICTIONS)
    first = predictions.iloc[0]
    data = (finished / "lines" / first.path).read_bytes()
    expected = model.predict(model.modality.batch([model.modality.load(data, model.size)]))[0]
    assert first[[f"p_{name}" for name in CENTERS]].to_numpy(float) == pytest.approx(expected, abs=1e-5)


def test_what_a_backbone_remarks_is_printed(finished, capsys, monkeypatch):
    monkeypatch.setattr(SmallDense, "remarks", lambda self, settings: [f"layers are small at size {settings.size}"])
    run_stages("extract")
    assert "extract: layers are small at size None\n" in capsys.readouterr().out


def test_a_backbone_of_another_modality_is_refused(finished, capsys):
    write_params(finished / "params.yaml", **{**SMALL, "data.kind": "image", "backbone": "small-dense"})
    with pytest.raises(
        UserError, match=r"small-dense takes lines, but the data are images; choose a backbone for images"
    ):
        run_stages("extract")
