"""Images go through all stages with small vision transformers, and the shipped model answers as the pipeline does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, paint_classes, run_stages, write_params

pytest.importorskip("keras_hub", exc_type=ImportError)
from reference_models import write_model

from headstart import paths
from headstart.config import load_params
from headstart.report import results_page
from headstart.serving.export import export
from headstart.serving.predict import predict
from headstart.training import networks

FAMILIES = ("clip", "deit", "dinov2", "dinov2-registers", "dinov3", "siglip", "resnet")


def finish(folder: Path, model: Path, size: int, **changes: object) -> None:
    """Run all five stages in `folder`, which is the current one."""
    paint_classes(folder / "photos")
    changes = {
        "data.source": "photos",
        "backbone": str(model),
        "extract.size": size,
        "extract.batch_size": None,
    } | changes
    write_params(Path("params.yaml"), **{**SMALL, "fine_tune.trunk_cache": "auto", "fine_tune.unfreeze": 1, **changes})
    run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """A folder after all five stages with a small ViT, at another size than it was trained at."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finish(folder, write_model("vit", folder / "vit"), 48)
        yield folder


def test_a_vit_goes_through_all_stages(finished):
    meta = json.loads(paths.FEATURES_META.read_text())
    assert (meta["kind"], meta["size"], meta["feature_dim"], meta["depths"]) == (
        "image", 48, 64, {"last": [32], "half": [32]},
    )  # fmt: skip
    assert "keras-hub" in meta["versions"]
    assert json.loads(paths.metrics("evaluate").read_text())["accuracy"] > 0.5
    assert json.loads(paths.report("evaluate").read_text())["whole_images"]["max_difference"] < 0.01
    assert json.loads(paths.report("fine_tune").read_text())["settings"]["trunk_cache"]  # of the frozen blocks


@pytest.mark.slow
def test_the_model_loads_with_keras_and_keras_hub_alone(finished, tmp_path):
    model = networks.load_classifier(paths.MODEL)
    files = sorted(Path("photos").glob("*/*.png"))[::8]
    images = np.stack([model.modality.load(file.read_bytes(), model.size) for file in files])
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
import numpy as np, keras, keras_hub
model = keras.models.load_model(sys.argv[1], safe_mode=True)
assert not any(name.startswith("headstart") for name in sys.modules)
np.save(sys.argv[2], model.predict_on_batch(np.load(sys.argv[2]).astype("float32")))
"""
    command = [sys.executable, "-c", code, str(paths.MODEL), str(tmp_path / "images.npy")]
    subprocess.run(command, check=True, cwd=finished)
    assert np.allclose(np.load(tmp_path / "images.npy"), model.predict({"image": images}), atol=1e-6)


def test_exports_answer_as_the_model_does(finished, capsys, monkeypatch):
    export("openvino")
    assert "exports/openvino" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("format", ["litert", "onnx", "saved_model"])
def test_further_exports_answer_as_the_model_does(finished, format):
    export(format)


def test_the_page_shows_where_the_network_looks(finished):
    page = results_page.render_results_page(load_params(), [], "0")
    assert "where the backbone looks for a class, by attention rollout, here 3 x 3" in page


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_goes_through_all_stages(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = 42 if "dinov2" in family else 64
    finish(tmp_path, write_model(family, tmp_path / "model"), size)
    meta = json.loads(paths.FEATURES_META.read_text())
    assert meta["feature_dim"] == sum(map(sum, meta["depths"].values())) > meta["depths"]["last"][0]
    assert json.loads(paths.report("evaluate").read_text())["whole_images"]["max_difference"] < 0.02
    assert predict([str(next(Path("photos").glob("*/*.png")))]) == 0
    networks.load(paths.MODEL)
    page = results_page.render_results_page(load_params(), [], "0")
    assert ("by attention rollout, here" in page) == (family != "resnet")
