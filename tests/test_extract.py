"""The stage: nothing is computed twice, the bits do not depend on the store, and whatever stops it loses nothing."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL, paint, run_stages, write_params
from modality_cases import CASES, each_modality, examples_of
from PIL import Image

from headstart import costs, paths
from headstart.backbones import get_backbone
from headstart.backbones.keras_applications import KerasApplication
from headstart.config import load_params
from headstart.errors import UserError
from headstart.features import encoders, extraction, store
from headstart.features.engines import Engine, OutOfMemoryError, graphs
from headstart.features.engines.openvino_engine import OpenVINOEngine
from headstart.features.engines.tensorflow_engine import TensorFlowEngine
from headstart.features.executors import LocalExecutor
from headstart.features_meta import read_meta
from headstart.framework import device_name
from headstart.machine import may_have_gpu
from headstart.modalities import get_modality
from headstart.modalities.image.augmentation import ImageAugmentation, view
from headstart.modalities.image.pixels import pixels

IMAGES = get_modality("image")


@pytest.fixture(autouse=True, scope="module")
def _engines_are_opened_once() -> Iterator[None]:
    """Building and converting a network takes seconds, and each test needs it several times."""
    built: dict[tuple, keras.Model] = {}
    opened: dict[tuple, tuple[keras.Model, Engine]] = {}
    real_build, real_open = KerasApplication.build, encoders.open_engine

    def build(self: KerasApplication, *arguments: object) -> keras.Model:
        key = (keras.config.dtype_policy().name, self.name, *arguments)
        if key not in built:
            built[key] = real_build(self, *arguments)
        return built[key]

    def open_engine(kind: str, make: Callable[[], keras.Model], spec: dict, *arguments: object) -> Engine:
        if kind == "tensorflow":  # builds the network in a policy of its own
            return real_open(kind, make, spec, *arguments)
        encoder = make()
        key = (kind, id(encoder), *arguments)
        if key not in opened:
            opened[key] = encoder, real_open(kind, lambda: encoder, spec, *arguments)  # kept: its id must stay its own
        return opened[key][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KerasApplication, "build", build)
        patch.setattr(encoders, "open_engine", open_engine)
        yield


FILES = (*paths.FEATURES.values(), paths.TRAIN_VIEWS, paths.FEATURES_META)


@pytest.fixture
def here(tmp_path: Path, photos, monkeypatch) -> Path:
    """A folder with photos."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    photos()
    write_params(Path("start.yaml"), **SMALL, **{"data.source": "photos"})
    return tmp_path


@pytest.fixture
def known(tmp_path: Path, request, monkeypatch) -> Path:
    """A folder with photos, their features by the backbone `short`, and the store of these; or with texts."""
    shutil.copytree(examples_of(request), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def run(**changes: object) -> dict:
    """Run prepare and extract, with changes of what `known` or `here` begin with; returns what that cost."""
    write_params(Path("params.yaml"), Path("start.yaml"), **changes)
    run_stages("prepare", "extract")
    return costs.read("extract")


def contents() -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in FILES}


def delete_stores() -> None:
    shutil.rmtree(store.folder())


def stores() -> list[Path]:
    return sorted(store.folder().glob("*.sqlite"))


def test_nothing_is_computed_twice_and_the_bits_are_the_same(here):
    first = run()
    assert (first["computed"], first["from_store"]) == (48, 0)
    assert first["examples_per_second"] == pytest.approx(48 / first["seconds"], rel=1e-3)
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

    # A new image and a changed one: only these. Then the same without a store.
    paint(Path("photos/green/new.png"), (40, 180, 40), 99)
    paint(Path("photos/green/001.png"), (40, 180, 40), 98)
    grown = run(seed=7)
    assert (grown["computed"], grown["from_store"]) == (2, 47)
    kept = contents()
    delete_stores()
    assert run(seed=7)["computed"] == 49
    assert contents() == kept


def test_a_file_under_two_labels_is_computed_once(here):
    shutil.copy("photos/red/000.png", "photos/blue/copy.png")
    figures = run(**{"prepare.on_conflict": "keep"})
    assert (figures["examples"], figures["computed"], figures["from_store"]) == (49, 48, 1)


def test_a_row_is_an_example_of_the_manifest_with_any_engine_and_batch_size(here):
    run(**{"extract.batch_size": 5})
    manifest = pd.read_parquet(paths.MANIFEST)
    encoder = get_backbone("tiny").build("pretrained", 32, "avg", load_params().seed, "half")
    expected = {}
    for split, file in paths.FEATURES.items():
        examples = manifest[manifest.split == split]
        batch = np.stack([IMAGES.load((here / "photos" / path).read_bytes(), 32) for path in examples.path])
        expected[file] = encoder({"image": batch.astype(np.float32)}, training=False).numpy()
        found = np.load(file)
        assert found.dtype == np.float32
        assert np.abs(found - expected[file]).max() <= 1e-4 * np.abs(found).max()
    bits = contents()
    run(**{"extract.batch_size": 64})
    assert contents() == bits
    run(**{"extract.engine": "tensorflow"})
    assert json.loads(paths.FEATURES_META.read_text())["engine"] == "tensorflow"
    for file, features in expected.items():
        assert np.abs(np.load(file) - features).max() <= 1e-5 * np.abs(features).max()


CHANGES = [
    {"backbone": "tiny", "weights": "pretrained"},
    {"seed": 1},  # of random weights
    {"extract.size": 40},
    {"extract.pooling": "max"},
    {"extract.depth": "quarter"},
    {"extract.engine": "tensorflow"},
    {"extract.precision": "bfloat16", "extract.engine": "tensorflow"},
    {"extract.storage": "float16"},
]


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.LANCZOS))


def test_every_input_changes_the_fingerprint_and_nothing_else_does(known, monkeypatch):
    for count, changes in enumerate(CHANGES, 2):
        assert run(**changes)["computed"] == 48, changes
        assert len(stores()) == count

    # Code and libraries that load or compute differently.
    images, engine = type(IMAGES), OpenVINOEngine
    real = images.load
    for target, name, other in [
        (images, "load", lambda self, data, size: real(self, data, size) // 2 * 2),
        (images, "load", lambda self, data, size: resized(self.whole(data), size)),
        (engine, "_run", lambda self, batch: np.full((len(batch["image"]), 288), batch["image"].mean(), np.float32)),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, other)
            assert run()["computed"] == 48, name
        count += 1
        assert len(stores()) == count

    same = {"prepare.val_fraction": 0.3, "extract.batch_size": 7, "extract.views": 1, "extract.flip": False}
    assert run(**same)["from_store"] == 48
    assert run(**{"train_head.epochs": 9, "extract.engine": "openvino"})["computed"] == 0
    assert len(stores()) == count


def test_views_are_made_once_and_depend_on_the_image_only(here):
    recipe = {"extract.crop": 0.5, "extract.flip": True, "extract.jitter": 0.2}
    assert run(**recipe)["views"] == 0
    dim = read_meta().dim("half")
    assert np.load(paths.TRAIN_VIEWS).shape[1:] == (0, dim)
    two = run(**recipe, **{"extract.views": 2})
    manifest = pd.read_parquet(paths.MANIFEST)
    train = manifest[manifest.split == "train"]
    assert two["views"] == two["computed"] == 2 * len(train)
    views = np.load(paths.TRAIN_VIEWS)
    assert views.shape == (len(train), 2, dim)

    three = run(**recipe, **{"extract.views": 3})
    assert three["computed"] == len(train)
    assert (np.load(paths.TRAIN_VIEWS)[:, :2] == views).all()
    assert run(**{**recipe, "extract.jitter": 0.1, "extract.views": 1})["computed"] == len(train)

    row, augmentation = train.iloc[-1], ImageAugmentation(0.5, True, 0.2)
    whole = pixels((here / "photos" / row.path).read_bytes(), augmentation.min_side(32))
    image = view(whole, 32, augmentation, row.file_hash, 2)
    encoder = get_backbone("tiny").build("pretrained", 32, "avg", load_params().seed, "half")
    expected = encoder({"image": image[None].astype(np.float32)}, training=False).numpy()[0]
    assert np.abs(views[-1, 1] - expected).max() <= 1e-4 * np.abs(expected).max()
    kept = contents()
    delete_stores()
    run(**{**recipe, "extract.jitter": 0.1, "extract.views": 1})
    assert contents() == kept


class ShuffledExecutor(LocalExecutor):
    """Returns work in any order, as a cluster does."""

    def run(self, *arguments):
        results = list(super().run(*arguments))
        random.Random(0).shuffle(results)
        yield from results


@each_modality("known")
def test_an_executor_may_return_work_in_any_order(known, monkeypatch):
    run(**{"extract.views": 2, "extract.batch_size": 4})
    fresh = contents()
    delete_stores()
    monkeypatch.setattr(extraction, "LocalExecutor", ShuffledExecutor)
    assert run(**{"extract.views": 2, "extract.batch_size": 4})["from_store"] == 0
    assert contents() == fresh


@each_modality("known")
def test_what_was_computed_before_a_stop_is_not_computed_again(known, monkeypatch):
    fresh, plain, total = contents(), LocalExecutor.run, len(pd.read_parquet(paths.MANIFEST))
    delete_stores()

    def stopped(*arguments):
        yield from itertools.islice(plain(*arguments), 2)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "run", stopped)
        patch.setattr(extraction, "SECONDS_BETWEEN_PUTS", 0)
        with pytest.raises(SystemExit):
            run_stages("extract")
    figures = run()
    assert (figures["computed"], figures["from_store"]) == (total - 32, 32)
    assert contents() == fresh


def test_float16_halves_the_files(known):
    exact = np.load(paths.FEATURES["train"])
    run(**{"extract.storage": "float16"})
    found = np.load(paths.FEATURES["train"])
    assert found.dtype == np.float16
    assert (found == exact.astype(np.float16)).all()
    assert json.loads(paths.FEATURES_META.read_text())["storage"] == "float16"


def test_features_that_are_not_finite_are_reported_with_the_example(known, monkeypatch):
    real = OpenVINOEngine._run
    monkeypatch.setattr(OpenVINOEngine, "_run", lambda self, batch: real(self, batch) * 1e6)
    with pytest.raises(UserError, match=r"blue/000\.png: its features are not finite numbers; use float32"):
        run(**{"extract.storage": "float16"})


def test_images_may_be_larger_than_the_probes_of_decoding(known):
    """Of 256 pixels; many backbones take 299 or more by default."""
    assert run(**{"extract.size": 299})["computed"] == 48


@each_modality("known")
def test_a_damaged_row_is_computed_again_with_a_warning(known, capsys):
    fresh = contents()
    with sqlite3.connect(stores()[0]) as db:
        db.execute("UPDATE features SET feature = zeroblob(length(feature)) WHERE rowid IN (3, 9)")
    capsys.readouterr()
    assert run()["computed"] == 2
    assert " damaged rows are computed again" in capsys.readouterr().err
    assert contents() == fresh
    assert run()["computed"] == 0


@pytest.mark.parametrize("page", [1, 2, 4])
def test_lost_pages_are_computed_again(known, page):
    fresh = contents()
    with stores()[0].open("r+b") as file:
        file.seek(page * 16384)
        file.write(bytes(16384))
    figures = run()
    assert contents() == fresh
    assert run()["computed"] == 0
    assert figures["computed"] > 0 or page * 16384 >= stores()[0].stat().st_size


def test_a_store_that_is_damaged_again_at_once_stops_the_stage(known, monkeypatch):
    def broken(*_):
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(store.FeatureStore, "get", broken)
    with pytest.raises(UserError, match="it was new: check the disk"):
        run()


def test_features_that_are_known_need_no_tensorflow(here):
    """Once the network was converted. What is kept of it has the same bits, else another store would be used."""
    if may_have_gpu():
        pytest.skip("TensorFlow is asked whether there is a GPU")
    run()
    shutil.rmtree(graphs.folder(), ignore_errors=True)
    fresh, (found,) = contents(), stores()
    program = """
import sys, runpy
sys.argv = ["pipeline", "extract"]
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
print(sorted({"tensorflow", "keras"} & set(sys.modules)))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HEADSTART_TRACKING": "off"}
    for loaded in (["keras", "tensorflow"], []):
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == str(loaded)
        assert "extract: 0 computed; 48 from the feature store" in done.stdout
    assert contents() == fresh
    assert stores() == [found]
    assert costs.read("extract")["device"] == device_name()


@pytest.mark.parametrize(
    ("known", "case"), [(case.extracted, case) for case in CASES.values()], ids=CASES, indirect=["known"]
)
def test_an_example_that_changed_after_prepare_is_not_used(known, case):
    case.change()
    delete_stores()
    with pytest.raises(UserError, match=rf"{re.escape(case.changed)}\d* has changed since prepare ran"):
        run_stages("extract")


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(known, monkeypatch, capsys):
    run(**{"extract.engine": "tensorflow"})
    fresh = {file: file.read_bytes() for file in paths.FEATURES.values()}
    delete_stores()
    real, sizes = TensorFlowEngine._run, []

    def small(self, batch):
        size = len(batch["image"])
        sizes.append(size)
        if size > 6 and len(sizes) > 2:
            raise OutOfMemoryError(size, "OOM")
        return real(self, batch)

    monkeypatch.setattr(TensorFlowEngine, "_run", small)
    figures = run(**{"extract.engine": "tensorflow", "extract.batch_size": 24})
    assert sizes[0] == 24
    assert sizes[-1] == 6
    assert "extract: out of memory with a batch of 24; trying 12" in capsys.readouterr().out
    assert figures["examples"] == 48
    assert {file: file.read_bytes() for file in fresh} == fresh


def test_two_examples_that_do_not_fit_stop_the_stage(known, monkeypatch):
    def none_fits(self, batch):
        raise OutOfMemoryError(self.batch_size, "OOM")

    monkeypatch.setattr(TensorFlowEngine, "_run", none_fits)
    with pytest.raises(UserError, match=r"out of memory with a batch of two \(OOM\); lower extract\.size"):
        run(**{"extract.engine": "tensorflow"})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("database or disk is full", "extract: the disk is full .* what was computed is kept"),
        ("database is locked", "extract: another process has locked the database for too long"),
    ],
)
def test_what_the_store_cannot_do_is_reported(known, monkeypatch, capsys, error, message):
    def fails(*_):
        raise sqlite3.OperationalError(error)

    monkeypatch.setattr(store.FeatureStore, "put", fails)
    with pytest.raises(sqlite3.OperationalError):
        run(**{"extract.pooling": "max"})
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_after_a_kill_only_the_rest_is_computed(here):
    """At most 55 % if it was killed at 50 %."""
    for number in range(130):
        paint(Path(f"photos/red/more-{number}.png"), (200, 40, 40), 5000 + number)
    total = run(**{"extract.size": 320})["examples"]
    fresh = contents()
    delete_stores()
    environment = {**{name: value for name, value in os.environ.items() if name != "DVC_ROOT"}, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "extract"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    while process.poll() is None and (not stores() or stored(stores()[0]) < total / 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert process.returncode == -signal.SIGKILL
    figures = run(**{"extract.size": 320})
    assert 0 < figures["computed"] <= 0.55 * total
    assert contents() == fresh


def stored(file: Path) -> int:
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM features").fetchone()[0]
    except sqlite3.Error:  # it is just being made
        return 0
