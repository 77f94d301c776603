from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
from conftest import ROOT
from PIL import Image

from headstart.backbones import get_backbone
from pretraining import formula_images, train
from pretraining.descriptors import build_describer
from pretraining.formula_images import draw, sheet
from pretraining.formulas import FAMILIES, SIGNS


@pytest.mark.parametrize("category", range(2 * len(FAMILIES)))
def test_an_image_depends_on_its_numbers_only(category):
    image = draw(category, 3, 48, seed=5)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert (image == draw(category, 3, 48, seed=5)).all()
    assert (image != draw(category, 4, 48, seed=5)).any()
    assert (image != draw(category, 3, 48, seed=6)).any()


def test_most_images_show_something():
    spread = [draw(category, 0, 48, seed=5).std() for category in range(60)]
    assert np.mean(np.array(spread) > 5) > 0.9


def test_a_sheet_has_a_row_per_category():
    found = np.asarray(sheet(4, 3, 32, seed=1))
    assert found.shape == (4 * 32, 3 * 32, 3)
    assert (found[64:96, 32:64] == draw(2, 1, 32, seed=1)).all()


def test_no_digit_is_among_the_signs():
    """Digits are what the network is evaluated on."""
    assert not set(SIGNS) & set("0123456789")


@pytest.fixture(scope="module")
def describer() -> keras.Model:
    return build_describer(32)


def described(describer: keras.Model, *images: np.ndarray) -> np.ndarray:
    return describer.predict_on_batch(np.stack(images))


def bars(upright: bool, colours: tuple[int, ...] = (255, 255, 255)) -> np.ndarray:
    """A few thick bars, (32, 32, 3) uint8."""
    image = np.zeros((32, 32, 3), np.uint8)
    stripes = (np.arange(32) // 4) % 2 == 1
    image[:, stripes] = colours
    return image if upright else image.transpose(1, 0, 2)


def test_descriptors_depend_on_direction_colour_and_place(describer):
    half = np.zeros((32, 32, 3), np.uint8)
    half[:16] = 255
    pairs = [
        (bars(True), bars(False)),
        (bars(True), bars(True, (255, 0, 0))),
        (half, half[::-1]),
    ]
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for one, other in pairs:
        first, second, *_ = described(describer, one, other, *noise)
        assert np.abs(first - second).max() > 1


def test_descriptors_are_standardised_over_the_batch(describer):
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    found = described(describer, *noise)
    assert found.shape == (64, describer.output_shape[1])
    assert np.abs(found.mean(axis=0)).max() < 0.01
    assert found.std() == pytest.approx(1, abs=0.05)
    assert np.isfinite(described(describer, *np.zeros((3, 32, 32, 3), np.uint8))).all()


@pytest.fixture
def small(monkeypatch):
    """A network that compiles in a second instead of the real one."""

    def build(settings: train.Settings) -> keras.Model:
        keras.utils.set_random_seed(settings.seed)
        image = keras.Input((settings.size, settings.size, 3))
        base = keras.Sequential([keras.layers.Conv2D(4, 5, strides=4)], name="backbone")
        features = keras.layers.GlobalAveragePooling2D()(base(image))
        lengths = settings.classes, build_describer(settings.size).output_shape[1]
        model = keras.Model(image, [keras.layers.Dense(length)(features) for length in lengths])
        model.compile("adam", [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mean_squared_error"])
        return model

    monkeypatch.setattr(train, "build", build)
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 2)
    was = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, was)


def words(folder: Path, name: str, *more: str) -> list[str]:
    few = "--steps 5 --batch-size 4 --classes 4 --size 32"
    return [*few.split(), "--out", str(folder / name), "--checkpoints", str(folder), *more]


def run(folder: Path, name: str) -> Path:
    assert train.main(words(folder, name)) == 0
    return folder / name


def kernels(file: Path) -> list[np.ndarray]:
    base = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 5, strides=4)])
    base.load_weights(file)
    return base.get_weights()


@pytest.fixture
def stopped(tmp_path, small, monkeypatch, capsys) -> Path:
    """The checkpoint of a training that was stopped in its fourth batch."""
    real = train.batches

    def interrupted(start, stop, *arguments):
        for number, batch in enumerate(real(start, stop, *arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(train, "batches", interrupted)
        assert train.main(words(tmp_path, "resumed.weights.h5")) == 130
    assert "stopped; the same command resumes after batch 2" in capsys.readouterr().err
    (checkpoint,) = [file for file in tmp_path.iterdir() if "partial" not in file.name]
    return checkpoint


@pytest.mark.slow
def test_an_interrupted_training_resumes(tmp_path, stopped, capsys):
    settings, _, folder = train.parse(words(tmp_path, "other.weights.h5", "--learning-rate", "0.1"))
    assert settings.checkpoint(folder) != stopped  # of another training, which is not resumed
    resumed = run(tmp_path, "resumed.weights.h5")
    printed = capsys.readouterr().out
    assert "resuming after batch 2" in printed
    assert hashlib.sha256(resumed.read_bytes()).hexdigest() in printed
    whole = run(tmp_path, "whole.weights.h5")
    assert {file.name for file in tmp_path.iterdir()} == {"resumed.weights.h5", "whole.weights.h5"}
    for one, other in zip(kernels(whole), kernels(resumed), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("damage", [pytest.param("empty", marks=pytest.mark.slow), "another network"])
def test_a_useless_checkpoint_is_reported_and_replaced(tmp_path, stopped, capsys, damage):
    if damage == "empty":
        stopped.write_bytes(b"")
    else:
        other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        other.compile("adam", "mse")
        other.save(stopped)
    run(tmp_path, "new.weights.h5")
    assert "cannot resume from it" in capsys.readouterr().err
    assert not stopped.exists()


def test_a_loss_of_nan_leaves_no_weights(tmp_path, small, monkeypatch, capsys):
    real = train.build

    def build(settings: train.Settings) -> keras.Model:
        model = real(settings)
        model.layers[-1].set_weights([np.full_like(weight, np.nan) for weight in model.layers[-1].get_weights()])
        return model

    monkeypatch.setattr(train, "build", build)
    assert train.main(words(tmp_path, "none.weights.h5")) == 1
    assert "loss is NaN at batch 1; lower learning_rate" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "50"], "command line: size must be a multiple of 16 in [32, 128], got 50"),
        (["--learning-rate", "nan"], "command line: learning_rate must be in (0, 1], got 'nan'"),
        (["--steps", "0"], "command line: steps must be an integer in [1, 10000000], got 0"),
        (["--batch-size", "1"], "command line: batch_size must be an integer in [2, 65536], got 1"),
        (["--out", "weights.bin"], "--out weights.bin: the name must end in .weights.h5"),
        (["--checkpoints", "file"], "cannot be written"),
    ],
)
def test_mistakes_are_reported_before_the_work(tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert train.main(words(Path.cwd(), "x.weights.h5", *more)) == 1
    assert message in capsys.readouterr().err
    assert [file.name for file in Path.cwd().iterdir()] == ["file"]


def test_params_that_lack_a_key_or_have_another_are_refused(tmp_path, monkeypatch, capsys):
    file = tmp_path / "params.yaml"
    file.write_text(train.PARAMS.read_text().replace("seed: 1", "sed: 1"))
    monkeypatch.setattr(train, "PARAMS", file)
    assert train.main([]) == 1
    printed = capsys.readouterr().err
    assert f"{file}: seed is missing" in printed
    assert f"{file}: sed is not a known key; did you mean 'seed'?" in printed


def test_another_process_draws_the_same_images():
    (images, categories), *_ = train.batches(7, 8, 3, 10, 32, 5)
    here, known = train.make_batch(7, 3, 10, 32, 5)
    assert (images == here).all()
    assert (categories == known).all()


@pytest.mark.slow
def test_a_training_that_is_killed_leaves_no_process_behind():
    program = """
import multiprocessing, time
from pretraining.train import batches

if __name__ == "__main__":
    drawn = batches(0, 10**6, 2, 4, 32, 0)
    next(drawn)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_the_sheet_is_written(tmp_path, capsys):
    assert formula_images.main([str(tmp_path / "new folder" / "sheet.PNG")]) == 0
    (file,) = (tmp_path / "new folder").iterdir()
    assert Image.open(file).size == (14 * 64, 2 * len(FAMILIES) * 64)
    assert formula_images.main([str(tmp_path / "sheet.txt")]) == 1
    assert "must end in .png or .jpg" in capsys.readouterr().err


def test_the_network_is_the_one_of_the_table():
    settings = train.Settings(
        classes=3, size=32, batch_size=2, steps=10, learning_rate=0.001, weight_decay=0.0, describe=1.0, seed=0
    )
    model = train.build(settings)
    encoder = get_backbone("tiny").build("none", 32, "avg", 0)
    shapes = [[weight.shape for weight in network.get_layer("backbone").weights] for network in (model, encoder)]
    assert shapes[0] == shapes[1]
    assert [output.shape[1] for output in model.outputs] == [3, build_describer(32).output_shape[1]]
