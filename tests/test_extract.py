"""The stage: never twice, the same bits whatever was kept, and nothing lost by whatever stops it."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL, paint, write_params
from PIL import Image

from headstart import paths, stage
from headstart.backbones import keras_applications
from headstart.config import load_params
from headstart.errors import UserError
from headstart.features import engines, fingerprints, store
from headstart.modalities.image.augmentation import Augmentation, view
from headstart.modalities.image.pixels import load, pixels
from headstart.outputs import Outputs
from headstart.training import networks
from pipeline import extract, prepare


@pytest.fixture(autouse=True, scope="module")
def _networks_are_built_and_converted_once():
    real = keras_applications.build_trunk

    @functools.cache
    def build(_: str, *arguments: object) -> keras.Model:
        return real(*arguments)

    open_engine = engines.open_engine

    @functools.cache
    def opened(kind: str, trunk: keras.Model, *arguments: object) -> engines.Engine:
        return open_engine(kind, lambda: trunk, *arguments)

    def engine(kind: str, make: Callable[[], keras.Model], *arguments: object) -> engines.Engine:
        # TensorFlow's builds the network by a policy of its own.
        return open_engine(kind, make, *arguments) if kind == "tensorflow" else opened(kind, make(), *arguments)

    keras_applications.build_trunk = lambda *arguments: build(keras.config.dtype_policy().name, *arguments)
    engines.open_engine = engine
    yield
    keras_applications.build_trunk, engines.open_engine = real, open_engine


FILES = (*paths.FEATURES.values(), paths.TRAIN_VIEWS, paths.FEATURES_META)


@pytest.fixture
def here(tmp_path: Path, photos, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    photos()
    return tmp_path


@pytest.fixture
def known(tmp_path: Path, extracted, monkeypatch) -> Path:
    """The same photos, with their features and the store of these."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def run(**changes: object) -> dict:
    """Run prepare and extract; what metrics/extract.json says."""
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **changes})
    for module in (prepare, extract):
        outputs = Outputs()
        module.main(load_params(), outputs)
        outputs.commit()
    return json.loads(paths.metrics("extract").read_text())


def contents() -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in FILES}


def forget() -> None:
    shutil.rmtree(store.folder())


def stores() -> list[Path]:
    return sorted(store.folder().glob("*.sqlite"))


def test_nothing_is_computed_twice_and_the_bits_do_not_show_it(here):
    first = run()
    assert (first["computed"], first["from_store"]) == (48, 0)
    assert first["images_per_second"] == pytest.approx(48 / first["seconds"], rel=1e-3)
    fresh = contents()
    again = run()
    assert (again["computed"], again["from_store"]) == (0, 48)
    assert again["seconds_saved"] == pytest.approx(first["seconds"], rel=0.01)
    assert contents() == fresh

    # Other splits; another label; another name.
    assert run(seed=7)["computed"] == 0
    Path("photos/red").rename("photos/scarlet")
    Path("photos/blue/000.png").rename("photos/blue/a new name.png")
    assert run(seed=7)["computed"] == 0

    # More images, and one that changed: these alone. Then as if nothing had been kept.
    paint(Path("photos/green/new.png"), (40, 180, 40), 99)
    paint(Path("photos/green/001.png"), (40, 180, 40), 98)
    grown = run(seed=7)
    assert (grown["computed"], grown["from_store"]) == (2, 47)
    kept = contents()
    forget()
    assert run(seed=7)["computed"] == 49
    assert contents() == kept


def test_a_file_that_stands_under_two_labels_is_computed_once(here):
    shutil.copy("photos/red/000.png", "photos/blue/copy.png")
    values = run(**{"prepare.on_conflict": "keep"})
    assert (values["images"], values["computed"], values["from_store"]) == (49, 48, 1)


def test_a_row_is_an_image_of_the_manifest_whatever_engine_or_batch(here):
    run(**{"extract.batch_size": 5})
    manifest = pd.read_parquet(paths.MANIFEST)
    trunk = keras_applications.build_trunk("tiny", "pretrained", 32, "avg", 0)
    for split, file in paths.FEATURES.items():
        images = manifest[manifest.split == split]
        expected = networks.predict(trunk, np.stack([load(here / "photos" / p, 32) for p in images.path]), len(images))
        found = np.load(file)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    bits = contents()
    run(**{"extract.batch_size": 64})
    assert contents() == bits
    run(**{"extract.engine": "tensorflow"})
    assert json.loads(paths.FEATURES_META.read_text())["engine"] == "tensorflow"
    assert np.abs(np.load(file) - expected).max() <= 1e-6 * np.abs(expected).max()


CHANGES = [
    {"backbone": "mobilenetv3small", "weights": "none"},
    {"weights": "none"},
    {"weights": "own.weights.h5"},
    {"extract.size": 40},
    {"extract.pooling": "max"},
    {"extract.engine": "tensorflow"},
    {"extract.precision": "bfloat16", "extract.engine": "tensorflow"},
    {"extract.storage": "float16"},
]


def test_each_ingredient_changes_the_fingerprint_and_nothing_else_does(known, monkeypatch):
    trunk = keras_applications.build_trunk("tiny", "pretrained", 32, "avg", 1)  # for this test alone: it is changed
    variables = trunk.get_layer("backbone").weights
    variables[0].assign(variables[0].numpy() * 1.001)
    trunk.get_layer("backbone").save_weights("own.weights.h5")
    for made, changes in enumerate(CHANGES, 2):
        assert run(**changes)["computed"] == 48, changes
        assert len(stores()) == made

    # Code and libraries that decode, resize or compute otherwise.
    real = fingerprints.pixels
    for target, name, other in [
        (fingerprints, "pixels", lambda data, size: real(data, size) // 2 * 2),
        (fingerprints, "resize", lambda image, size: np.asarray(Image.fromarray(image).resize((size, size)))),
        (engines.OpenVINOEngine, "_run", lambda self, images: np.full((len(images), 1280), images.mean())),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, other)
            assert run()["computed"] == 48, name
    made += 3
    assert len(stores()) == made

    same = {"seed": 3, "prepare.val_fraction": 0.3, "extract.batch_size": 7, "extract.views": 1, "extract.flip": False}
    assert run(**same)["from_store"] == 48
    assert run(**{"train_head.epochs": 9, "extract.engine": "openvino"})["computed"] == 0
    assert len(stores()) == made


def test_views_are_made_once_and_drawn_from_the_image_alone(here):
    recipe = {"extract.crop": 0.5, "extract.flip": True, "extract.jitter": 0.2}
    assert run(**recipe)["views"] == 0
    assert np.load(paths.TRAIN_VIEWS).shape[1:] == (0, 1280)
    two = run(**recipe, **{"extract.views": 2})
    manifest = pd.read_parquet(paths.MANIFEST)
    train = manifest[manifest.split == "train"]
    assert two["views"] == two["computed"] == 2 * len(train)
    views = np.load(paths.TRAIN_VIEWS)
    assert views.shape == (len(train), 2, 1280)

    three = run(**recipe, **{"extract.views": 3})
    assert three["computed"] == len(train)
    assert (np.load(paths.TRAIN_VIEWS)[:, :2] == views).all()
    assert run(**{**recipe, "extract.jitter": 0.1, "extract.views": 1})["computed"] == len(train)

    row = train.iloc[-1]
    whole = pixels((here / "photos" / row.path).read_bytes(), Augmentation(0.5, True, 0.2).least(32))
    image = view(whole, 32, Augmentation(0.5, True, 0.2), row.file_hash, 2)
    trunk = keras_applications.build_trunk("tiny", "pretrained", 32, "avg", 0)
    expected = networks.predict(trunk, image[None], 2)[0]
    assert np.abs(views[-1, 1] - expected).max() <= 1e-4 * np.abs(expected).max()
    kept = contents()
    forget()
    run(**{**recipe, "extract.jitter": 0.1, "extract.views": 1})
    assert contents() == kept


def test_float16_halves_the_files(known):
    exact = np.load(paths.FEATURES["train"])
    run(**{"extract.storage": "float16"})
    found = np.load(paths.FEATURES["train"])
    assert found.dtype == np.float16
    assert (found == exact.astype(np.float16)).all()
    assert json.loads(paths.FEATURES_META.read_text())["storage"] == "float16"


def test_features_that_are_no_numbers_are_told_with_the_image(here, monkeypatch):
    real = engines.OpenVINOEngine._run
    monkeypatch.setattr(engines.OpenVINOEngine, "_run", lambda self, images: real(self, images) * 1e6)
    with pytest.raises(UserError, match=r"blue/000\.png: its features are no finite numbers; use float32"):
        run(**{"extract.storage": "float16"})


def test_a_damaged_row_is_computed_anew_with_a_warning(known, capsys):
    fresh = contents()
    with sqlite3.connect(stores()[0]) as db:
        db.execute("UPDATE features SET feature = zeroblob(5120) WHERE rowid IN (3, 9)")
    capsys.readouterr()
    assert run()["computed"] == 2
    assert "damaged rows, 2 here, are computed anew" in capsys.readouterr().err
    assert contents() == fresh
    assert run()["computed"] == 0


@pytest.mark.parametrize("page", [1, 2, 3, 4, 8, 12])
def test_pages_that_are_lost_are_computed_anew(known, page):
    fresh = contents()
    with stores()[0].open("r+b") as file:
        file.seek(page * 16384)
        file.write(bytes(16384))
    assert run()["computed"] > 0
    assert contents() == fresh
    assert run()["computed"] == 0


def test_a_store_that_is_damaged_again_at_once_stops(here, monkeypatch):
    def broken(*_):
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(store.FeatureStore, "get", broken)
    with pytest.raises(UserError, match="it was made anew just before: is the disk sound"):
        run()


def test_an_image_that_changed_after_prepare_is_not_taken(known):
    paint(Path("photos/red/003.png"), (1, 2, 3), 5)
    forget()
    with pytest.raises(UserError, match=r"red/003\.png has changed since prepare ran"):
        extract.main(load_params(), Outputs())


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(here, monkeypatch, capsys):
    run(**{"extract.engine": "tensorflow"})
    fresh = {file: file.read_bytes() for file in paths.FEATURES.values()}
    forget()
    real, sizes = engines.TensorFlowEngine._run, []

    def small(self, images):
        sizes.append(len(images))
        if len(images) > 6 and len(sizes) > 2:
            raise engines.OutOfMemoryError(len(images), "OOM")
        return real(self, images)

    monkeypatch.setattr(engines.TensorFlowEngine, "_run", small)
    values = run(**{"extract.engine": "tensorflow", "extract.batch_size": 24})
    assert sizes[0] == 24
    assert sizes[-1] == 6
    assert "a batch of 24 does not fit into the memory; on with 12" in capsys.readouterr().out
    assert values["images"] == 48
    assert {file: file.read_bytes() for file in fresh} == fresh


def test_two_images_that_do_not_fit_stop_with_a_message(here, monkeypatch):
    def none_fits(self, images):
        raise engines.OutOfMemoryError(self.batch_size, "OOM")

    monkeypatch.setattr(engines.TensorFlowEngine, "_run", none_fits)
    with pytest.raises(UserError, match="two images do not fit into the memory of the device"):
        run(**{"extract.engine": "tensorflow"})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_after_a_kill_only_the_rest_is_computed(here):
    """At most 55 % where it was killed at 50 %."""
    for number in range(900):
        paint(Path(f"photos/red/more-{number}.png"), (200, 40, 40), 5000 + number)
    total = run(**{"extract.size": 160})["images"]
    fresh = contents()
    forget()
    program = "import sys; from pipeline import extract, stage; sys.argv = ['x']; stage.run('extract', extract.main)"
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    os.symlink(ROOT / "pipeline", "pipeline")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, env=plain_environment())
    while process.poll() is None and (not stores() or kept(stores()[0]) < total / 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert process.returncode == -signal.SIGKILL
    values = run(**{"extract.size": 160})
    assert 0 < values["computed"] <= 0.55 * total
    assert contents() == fresh


def kept(file: Path) -> int:
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM features").fetchone()[0]
    except sqlite3.Error:  # just being made
        return 0


def plain_environment() -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != "DVC_ROOT"}, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (sqlite3.OperationalError("database or disk is full"), "the disk is full .* what was computed is kept"),
        (sqlite3.OperationalError("database is locked"), "another process holds the database for too long"),
    ],
)
def test_what_the_store_cannot_do_is_told(error, message):
    assert re.search(message, stage.explain("extract", error))
