"""The model outside of this project: in plain Keras, and in the formats of other runtimes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHIPPED_CLASSES, SMALL, run_stages, write_params
from modality_cases import CASES

from headstart.backbones import get_backbone
from headstart.errors import UserError
from headstart.modalities import get_modality
from headstart.serving import export, runtimes
from headstart.training import networks
from headstart.training.linear import Linear


@pytest.fixture
def here(shipped, tmp_path, monkeypatch) -> Path:
    """The current folder, with a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "models").mkdir()
    shutil.copy(shipped, tmp_path / "models")
    return tmp_path


PLAIN = """
import importlib, sys
import keras, numpy as np
for argument in sys.argv[1:]:
    folder, library = argument.split("=")
    importlib.import_module(library)
    model = keras.models.load_model(f"{folder}/model.keras", safe_mode=True)
    np.save(f"{folder}/probabilities.npy", model.predict(np.load(f"{folder}/inputs.npy"), verbose=0))
    print(sorted({name.split(".")[0] for name in sys.modules} & {"headstart", "keras_hub"}))
"""


def predict_elsewhere(folder: Path, models: dict[str, tuple[str, Path, np.ndarray]]) -> list[np.ndarray]:
    """What models, each with the library that loads it, answer to inputs, in a process that has none of our code."""
    for name, (_, file, inputs) in models.items():
        (folder / name).mkdir()
        shutil.copy(file, folder / name / "model.keras")
        np.save(folder / name / "inputs.npy", inputs)
    # -I: neither this folder nor PYTHONPATH is on its path
    libraries = {name: library for name, (library, *_) in models.items()}
    command = [sys.executable, "-I", "-c", PLAIN, *map("=".join, libraries.items())]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = [str([library] if library == "keras_hub" else []) for library in libraries.values()]
    assert done.stdout.splitlines() == loaded
    return [np.load(folder / name / "probabilities.npy") for name in models]


def test_models_load_with_their_library_alone(request, tmp_path):
    """And with safe_mode: no code travels in the file."""
    models, expected = {}, []
    for case in CASES.values():
        classifier = networks.load_classifier(file := request.getfixturevalue(case.model))
        files = case.examples(tmp_path / f"{case.name}-examples")
        loaded = [classifier.modality.load(one, classifier.size) for one in files]
        (inputs,) = classifier.modality.batch(loaded).values()
        models[case.name] = case.plain, file, inputs
        expected.append(classifier.predict(classifier.modality.batch(loaded)))
    for found, probabilities in zip(predict_elsewhere(tmp_path, models), expected, strict=True):
        assert found == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        pytest.param(case, form, id=f"{case.name}-{form}", marks=pytest.mark.slow if form in case.slow_formats else ())
        for case in CASES.values()
        for form in runtimes.FORMATS
    ],
)
def test_an_export_answers_as_keras_does(case, form, empty_workspace, request, capsys):
    for module in export.FORMATS[form].packages:
        pytest.importorskip(module)
    file = request.getfixturevalue(case.model)
    export.export(form, model=file)
    printed = capsys.readouterr().out
    assert "generated examples, because the test split is not there" in printed
    folder, classifier = Path("exports", form), networks.load_classifier(file)
    assert json.loads((folder / "classes.json").read_text(encoding="utf-8")) == classifier.classes
    assert case.beside <= {entry.name for entry in folder.iterdir()}
    assert [entry.name for entry in folder.parent.iterdir()] == [form]
    export.check_folder(folder)  # another export may take its place

    # What the file itself takes, with other examples and another number of them than it was compared on.
    examples, network = case.examples(Path("examples")), export.FORMATS[form]
    for files in (examples[:1], examples[-3:], examples[:3]):
        inputs = case.outside(folder, files, classifier.size)
        assert network.run(folder / network.file, inputs) == pytest.approx(answer(classifier, inputs), abs=1e-5)
    if "image (N, any, any, 3), float32" in printed:
        wide = np.repeat(inputs, 3, axis=2)
        assert network.run(folder, wide) == pytest.approx(answer(classifier, wide), abs=1e-5)
    else:
        assert case.tensor in printed


def answer(classifier: networks.Classifier, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(classifier.network(inputs, training=False))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino", "litert"])
def test_a_backbone_with_a_head_on_several_depths_is_exported(form, here):
    """With as many depths as MobileNetV2 gives."""
    for module in export.FORMATS[form].packages:
        pytest.importorskip(module)
    encoder = get_backbone("tiny").build("pretrained", 32, "avg", 0, "half")
    random, dim = np.random.default_rng(0), encoder.output_shape[1]
    head = networks.from_layers([Linear(random.normal(0, 0.1, (dim, 3)), np.zeros(3))])
    file = here / "models/model.keras"
    network = networks.join(get_modality("image").front(32), encoder, head)
    networks.save(network, file, SHIPPED_CLASSES, modality="image", size=32)
    export.export(form)
    images = random.integers(0, 256, (5, 32, 32, 3)).astype(np.float32)
    found = export.FORMATS[form].run(here / "exports" / form / export.FORMATS[form].file, images)
    expected = networks.predict(networks.load(file)[0], images, 5)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected) > 0.1


def off_by(error: float):
    """A runtime whose answers are off by that much in the last row."""

    def run(_: object, images: np.ndarray) -> np.ndarray:
        answers = np.tile(np.float32([0.5, 0.3, 0.2]), (len(images), 1))
        answers[-1] += [-error, error, 0]
        return answers

    return run


def write(_: object, file: Path) -> None:
    file.write_text("a network")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (off_by(0.002), "differ by at most 2.0e-03 in a probability, 0.001 is allowed"),
        (off_by(0.15), "and in the class of 1 examples; nothing was written"),
        (off_by(float("nan")), "differ by at most inf"),
        (lambda *_: 1 / 0, "this model cannot be converted and run (division by zero)"),
        (off_by(0.0005), ""),
    ],
)
def test_different_answers_leave_the_earlier_export(run, message, here, monkeypatch):
    form = export.FORMATS["openvino"]._replace(write=write, run=run)
    monkeypatch.setitem(export.FORMATS, "openvino", form)
    classifier = networks.load_classifier(here / "models/model.keras")
    monkeypatch.setattr(classifier.inner, "predict", lambda images, verbose: off_by(0)(None, images))
    monkeypatch.setattr(networks, "load_classifier", lambda _: classifier)
    earlier = folder_with(here / "exports/openvino", "model.xml", "classes.json")
    if message:
        with pytest.raises(UserError) as raised:
            export.export("openvino")
        assert message in str(raised.value)
    else:
        export.export("openvino")
    assert [entry.name for entry in earlier.parent.iterdir()] == ["openvino"]
    assert (earlier / "model.xml").read_text() == ("text" if message else "a network")


def test_a_stopped_run_leaves_nothing(here, monkeypatch):
    def stop(*_: object) -> None:
        raise SystemExit(143)  # as the command does at SIGTERM

    monkeypatch.setitem(export.FORMATS, "openvino", export.FORMATS["openvino"]._replace(write=stop))
    with pytest.raises(SystemExit):
        export.export("openvino")
    assert list((here / "exports").iterdir()) == []


def test_the_test_split_is_compared_if_there_is_one(here, photos):
    photos()
    write_params(here / "params.yaml", **{**SMALL, "data.source": "photos"})
    run_stages("prepare")
    classifier = networks.load_classifier(here / "models/model.keras")
    images, what = export.load_test_batch(classifier)
    assert what == "examples of the test split"
    load = get_modality("image").load
    known = [load(file.read_bytes(), 32) for file in sorted((here / "photos").rglob("*.png"))]
    assert all(any((image == one).all() for one in known) for image in images)

    (here / "photos").rename(here / "elsewhere")
    what = export.load_test_batch(classifier)[1]
    assert what.startswith(
        "generated examples, because the test split is not there (params.yaml: data.source 'photos' d"
    )
    write_params(here / "params.yaml", **{**SMALL, "data.source": "elsewhere/red"})
    lock = {"stages": {"prepare": {"params": {"params.yaml": {"data": {"source": "photos"}}}}}}
    (here / "dvc.lock").write_text(json.dumps(lock))
    assert (
        "is 'elsewhere/red', but dvc.lock says that the model was trained on 'photos')"
        in export.load_test_batch(classifier)[1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "model.xml"}, "model.xml: an export is a folder"),
        ({"output": "models"}, "models has files that are not of an export, such as model.keras"),
        ({"output": "some.file"}, "some.file is not a folder"),
        ({"model": "nowhere.keras"}, "nowhere.keras does not exist"),
        ({"model": "some.file"}, "some.file is not a model of this pipeline"),
        ({"output": "some.file/below"}, "some.file/below: cannot be written"),
    ],
)
def test_wrong_arguments(arguments, message, here):
    (here / "some.file").write_text("text")
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError) as raised:
        export.export("openvino", **{name: Path(value) for name, value in arguments.items()})
    assert message in str(raised.value)
    assert sorted(here.rglob("*")) == before


def folder_with(folder: Path, *names: str) -> Path:
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
        (["classes.json", "model.xml", "model.onnx"], "has files that are not of an export"),
        (["classes.json"], "is not an export: it has no network"),
        (["model.onnx"], "is not an export: it has no classes.json"),
        (["classes.json", "model.onnx"], ""),
        (["classes.json", "model.xml", "model.bin"], ""),
        (["classes.json", "saved_model.pb", "fingerprint.pb", "variables/variables.index"], ""),
    ],
)
def test_only_exports_are_replaced(names, message, tmp_path):
    folder = folder_with(tmp_path / "web", *names)
    if message:
        with pytest.raises(UserError, match=message):
            export.check_folder(folder)
    else:
        export.check_folder(folder)


def test_the_current_folder_is_not_replaced(here, monkeypatch):
    (here / "empty").mkdir()
    monkeypatch.chdir("empty")
    for name in (".", "..", "../empty"):
        with pytest.raises(UserError, match="is the current folder or contains it; choose one below"):
            export.export("openvino", Path(name), Path("../models/model.keras"))
    assert list((here / "empty").iterdir()) == []


def test_leftovers_of_killed_runs_are_removed_but_no_export(tmp_path):
    old, partial = time.time() - 2 * 86400, "partial.17"
    for name in (f".onnx.{partial}", f".onnx.{partial}.before", f".other.{partial}", ".onnx.partial.18"):
        folder_with(tmp_path / name, "model.onnx")
        if name != ".onnx.partial.18":  # of a run that goes on
            os.utime(tmp_path / name, (old, old))
    export.remove_leftovers(tmp_path / "onnx")
    kept = {f".onnx.{partial}.before", f".other.{partial}", ".onnx.partial.18"}
    assert {entry.name for entry in tmp_path.iterdir()} == kept
    folder_with(tmp_path / "onnx", "model.onnx")
    export.remove_leftovers(tmp_path / "onnx")
    assert {entry.name for entry in tmp_path.iterdir()} == kept - {f".onnx.{partial}.before"} | {"onnx"}


def test_missing_packages_are_reported_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--format onnx needs .* run python -m pip install 'onnx>=\S+' 'tf2onnx>="):
        export.check_packages("onnx")
    export.check_packages("saved_model")
    command = [sys.executable, "-c", "import sys, headstart.serving.export; print('tensorflow' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"
