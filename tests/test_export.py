"""The model outside of this project: in plain Keras, and in the formats of other runtimes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT

from headstart.backbones import keras_applications
from headstart.errors import UserError
from headstart.serving import export
from headstart.training import networks

CLASSES = ["blue", "green", "rosé"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A model as fine_tune writes it, of few layers: converters take a minute for all of a backbone's."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(
        keras_applications.preprocess("tiny", image)
    )
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, padding="valid")(keras.layers.ZeroPadding2D(1)(x))
    trunk = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x), name="trunk")
    file = tmp_path_factory.mktemp("models") / "model.keras"
    networks.save(networks.join(trunk, networks.build_head(8, 3, [8], dropout=0.5)), file, CLASSES)
    return file


@pytest.fixture
def here(shipped, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copy(shipped, tmp_path / "models")
    return tmp_path


PLAIN = """
import json, sys, zipfile
import keras, numpy as np
model = keras.models.load_model("model.keras", safe_mode=True)
classes = json.loads(zipfile.ZipFile("model.keras").read("classes.json"))
assert not [name for name in sys.modules if name.split(".")[0] == "pipeline"]
np.save("probabilities.npy", model.predict(np.load("images.npy"), verbose=0))
print(json.dumps(classes))
"""


def test_the_model_is_plain_keras(shipped, tmp_path):
    """In a process that has none of our code, and with safe_mode: no code travels in the file."""
    shutil.copy(shipped, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (4, 50, 70, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-I", "-c", PLAIN]  # -I: neither this folder nor PYTHONPATH is on its path
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == CLASSES
    expected = networks.predict(networks.load(shipped)[0], images, 4)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-6)


@pytest.mark.parametrize("form", export.FORMATS)
def test_an_export_answers_as_keras_does(form, here, capsys):
    for module in export.FORMATS[form].packages:
        pytest.importorskip(module)
    assert export.main(["--format", form]) == 0
    told = capsys.readouterr().out
    assert "64 images of noise, since no test split is here" in told
    folder = here / "exports" / form
    assert json.loads((folder / "classes.json").read_text(encoding="utf-8")) == CLASSES
    assert [entry.name for entry in folder.parent.iterdir()] == [form]
    export.check_folder(folder)  # another one may take its place

    # What the file itself takes, of other images and in another number than those that it was judged by.
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3)).astype(np.float32)
    model, _ = networks.load(here / "models/model.keras")
    found = export.FORMATS[form].run(folder / export.FORMATS[form].file, images)
    np.testing.assert_allclose(found, networks.predict(model, images, 5), atol=1e-5)
    if form == "saved_model":
        assert "any size" in told
        wide = np.repeat(images, 3, axis=2)
        found = export.FORMATS[form].run(folder, wide)
        np.testing.assert_allclose(found, networks.predict(model, wide, 5), atol=1e-5)
    else:
        assert "(N, 32, 32, 3)" in told


def off_by(error: float):
    """A runtime that answers with that error."""

    def run(_: Path, images: np.ndarray) -> np.ndarray:
        answers = np.tile(np.float32([0.5, 0.3, 0.2]), (len(images), 1))
        answers[-1] += [-error, error, 0]
        return answers

    return run


def write(_: object, file: Path) -> None:
    file.write_text("a network")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (off_by(0.002), "differ by 2.0e-03 at most in a probability, where 0.001 is allowed"),
        (off_by(0.15), "and name 1 images otherwise"),
        (off_by(float("nan")), "differ by inf at most"),
        (lambda *_: 1 / 0, "this model cannot be converted and run (division by zero)"),
        (off_by(0.0005), ""),
    ],
)
def test_answers_that_differ_leave_the_export_before(run, message, here, monkeypatch, capsys):
    form = export.FORMATS["openvino"]._replace(write=write, run=run)
    monkeypatch.setitem(export.FORMATS, "openvino", form)
    model, classes = networks.load(here / "models/model.keras")
    monkeypatch.setattr(model, "predict", lambda images, verbose: off_by(0)(Path(), images))
    monkeypatch.setattr(networks, "load", lambda _: (model, classes))
    before = here / "exports/openvino"
    before.mkdir(parents=True)
    for name in ("model.xml", "classes.json"):
        (before / name).write_text("of before")
    assert export.main(["--format", "openvino"]) == (1 if message else 0)
    assert message in capsys.readouterr().err
    assert [entry.name for entry in before.parent.iterdir()] == ["openvino"]
    assert (before / "model.xml").read_text() == ("of before" if message else "a network")


def test_what_was_compared_is_the_test_split_where_it_is_here(here, monkeypatch, photos):
    from conftest import SMALL, write_params

    from headstart.config import load_params
    from headstart.modalities.image.pixels import load
    from headstart.outputs import Outputs
    from pipeline import prepare

    photos()
    write_params(here / "params.yaml", **{**SMALL, "data.source": "photos"})
    outputs = Outputs()
    prepare.main(load_params(), outputs)
    outputs.commit()
    images, what = export.some_images(32)
    assert what == "images of the test split"
    some = [load(file, 32) for file in sorted((here / "photos").rglob("*.png"))]
    assert all(any((image == one).all() for one in some) for image in images)

    (here / "photos").rename(here / "elsewhere")
    assert "images of noise" in export.some_images(32)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "model.xml"], "model.xml: an export is a folder"),
        (["--output", "models"], "models holds what is no export, such as model.keras"),
        (["--output", "some.file"], "some.file is no folder"),
        (["--model", "nowhere.keras"], "nowhere.keras does not exist"),
        (["--model", "some.file"], "some.file is not a model of this pipeline"),
        (["--output", "some.file/below"], "some.file/below: cannot be written"),
    ],
)
def test_wrong_arguments(arguments, message, here, capsys):
    (here / "some.file").write_text("text")
    before = sorted(here.rglob("*"))
    assert export.main(["--format", "openvino", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["classes.json", "assets/logo.svg"], "such as assets"),
        (["classes.json", "model.onnx", "assets/logo.svg"], "such as assets"),
        (["classes.json", "saved_model.pb", "assets/logo.svg"], "such as assets/logo.svg"),
        (["classes.json", "saved_model.pb", "variables/mine.txt"], "such as variables/mine.txt"),
        (["classes.json", "model.bin"], "such as model.bin"),
        (["classes.json", "model.xml", "model.onnx"], "holds what is no export"),
        (["classes.json"], "a network is not there"),
        (["model.onnx"], "classes.json is not there"),
        (["classes.json", "model.onnx"], ""),
        (["classes.json", "model.xml", "model.bin"], ""),
        (["classes.json", "saved_model.pb", "fingerprint.pb", "variables/variables.index"], ""),
    ],
)
def test_only_what_is_an_export_is_replaced(names, message, tmp_path):
    folder = folder_of(tmp_path / "web", *names)
    if message:
        with pytest.raises(UserError, match=message):
            export.check_folder(folder)
    else:
        export.check_folder(folder)


def test_the_folder_one_is_in_is_not_replaced(here, capsys):
    (here / "empty").mkdir()
    os.chdir("empty")
    for name in (".", "..", "../empty"):
        assert export.main(["--format", "openvino", "--output", name, "--model", "../models/model.keras"]) == 1
        assert "is the folder that you are in, or holds it; name one below" in capsys.readouterr().err
    assert list((here / "empty").iterdir()) == []


STOPPED = """
import os, signal, sys
from pipeline import export
def stop(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    return 1 / 0
export.FORMATS["openvino"] = export.FORMATS["openvino"]._replace(write=stop)
sys.exit(export.main(["--format", "openvino"]))
"""


def test_a_run_that_is_stopped_leaves_nothing(here):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], cwd=here, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert list((here / "exports").iterdir()) == []


def test_what_killed_runs_left_is_removed_but_no_export(tmp_path):
    old, partial = time.time() - 2 * 86400, "partial.17"
    for name in (f".onnx.{partial}", f".onnx.{partial}.before", f".other.{partial}", ".onnx.partial.18"):
        folder_of(tmp_path / name, "model.onnx")
        if name != ".onnx.partial.18":  # of a run that goes on
            os.utime(tmp_path / name, (old, old))
    export._remove_left(tmp_path / "onnx")
    kept = {f".onnx.{partial}.before", f".other.{partial}", ".onnx.partial.18"}
    assert {entry.name for entry in tmp_path.iterdir()} == kept
    folder_of(tmp_path / "onnx", "model.onnx")
    export._remove_left(tmp_path / "onnx")
    assert {entry.name for entry in tmp_path.iterdir()} == kept - {f".onnx.{partial}.before"} | {"onnx"}


def test_packages_that_are_not_here_are_told_before_anything_is_loaded(here, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--format onnx needs .* run python -m pip install 'onnx>=\S+' 'tf2onnx>="):
        export.check_packages("onnx")
    export.check_packages("saved_model")
    command = [sys.executable, "-c", "import sys, headstart.serving.export; print('tensorflow' in sys.modules)"]
    root = Path(export.__file__).parents[1]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "False\n"
