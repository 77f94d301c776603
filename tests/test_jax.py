"""The engine `jax`: features as TensorFlow's, the same bits, one message for what it cannot do.

What Keras runs on is chosen once in a process, so JAX runs in processes of its own here; without it they are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_params
from test_backbone_networks import FAMILIES, build

from headstart import keras_backend
from headstart.config import load_params
from headstart.errors import UserError

needs_jax = pytest.mark.skipif(
    not importlib.util.find_spec("jax"), reason="JAX is not installed: make setup EXTRAS=jax"
)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
START = """
import sys
import numpy as np
from headstart import keras_backend
keras_backend.name = "jax"
import jax
from headstart.backbones import get_backbone
from headstart.features.engines import OutOfMemoryError, open_engine
from headstart.features.engines.jax_engine import JaxEngine
from headstart.framework import device_name, keras, make_repeatable, take_gpus
from headstart.modalities import get_modality
make_repeatable(0)
SPEC = get_modality("image").spec(32)
images = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
def build(backbone="tiny", weights="pretrained"):
    return get_backbone(backbone).build(weights, 32, "avg", 0)
def features(engine, images):
    batches = [{"image": images[start:start + engine.batch_size]} for start in range(0, len(images), engine.batch_size)]
    return np.concatenate(list(engine.map(batches)))
"""


def run(program: str, *arguments: object, **env: str) -> str:
    """Run it after START in another process; returns what it printed."""
    command = [sys.executable, "-c", START + program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def close(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> dict[str, np.ndarray]:
    """Features of `tiny` by name, from one process."""
    file = tmp_path_factory.mktemp("jax") / "features.npz"
    program = """
four, two = (JaxEngine(build, SPEC, "float32", size) for size in (4, 2))
cpus = jax.local_devices()
half = open_engine("jax", build, SPEC, "bfloat16", 4, "extract")
np.savez(
    sys.argv[1], four=features(four, images), again=features(four, images), two=features(two, images),
    backwards=features(four, images[::-1])[::-1], alone=four({"image": images[4:5]}), half=features(half, images),
    both=features(JaxEngine(build, SPEC, "float32", 4, cpus), images),
    first=features(JaxEngine(build, SPEC, "float32", 4, cpus[:1]), images),
)
engine = JaxEngine(build, SPEC, "float32", 4, cpus)
used = {engine.pool.get()({"image": images[:4]}).devices().pop().id for _ in range(engine.parallel)}
print(sorted(used), "tensorflow" in sys.modules, keras.backend.backend(), *engine.arithmetic)
"""
    # Two devices made of one CPU stand for two GPUs.
    printed = run(program, file, XLA_FLAGS="--xla_force_host_platform_device_count=2", KERAS_BACKEND="torch")
    assert printed == "[0, 1] False jax jax jaxlib batch_size devices\n"
    return dict(np.load(file))


@needs_jax
def test_features_are_those_of_tensorflow(computed):
    expected = build("tiny", "pretrained")({"image": IMAGES.astype(np.float32)}, training=False).numpy()
    assert computed["four"].dtype == np.float32
    assert close(computed["four"], expected) <= 1e-4
    assert 1e-4 < close(computed["half"], expected) < 0.1


@needs_jax
def test_an_image_has_the_same_features_in_every_run_and_in_any_batch(computed):
    for name in ("again", "backwards", "both", "first"):
        assert (computed[name] == computed["four"]).all(), name
    assert (computed["alone"][0] == computed["four"][4]).all()
    assert close(computed["two"], computed["four"]) <= 1e-5  # the batch size is part of the features' fingerprint


@needs_jax
@pytest.mark.slow
def test_features_are_those_of_tensorflow_for_every_way_of_preprocessing(tmp_path):
    names = FAMILIES[1:]
    expected = {}
    for name in names:
        encoder = build(name)
        encoder.get_layer("backbone").save_weights(tmp_path / f"{name}.weights.h5")
        expected[name] = encoder({"image": IMAGES.astype(np.float32)}, training=False).numpy()
    program = """
folder, *names = sys.argv[1:]
for name in names:
    engine = JaxEngine(lambda: build(name, f"{folder}/{name}.weights.h5"), SPEC, "float32", 4)
    np.save(f"{folder}/{name}.npy", features(engine, images))
"""
    run(program, tmp_path, *names)
    for name in names:
        assert close(np.load(tmp_path / f"{name}.npy"), expected[name]) <= 1e-4, name


@needs_jax
def test_out_of_memory_is_reported_with_the_batch_size():
    program = """
def build_huge():  # 2^45 features each
    image = keras.Input((32, 32, 3), name="image")
    return keras.Model({"image": image}, keras.ops.repeat(keras.layers.Flatten()(image)[:, :1], 2**45, axis=1))
try:
    JaxEngine(build_huge, SPEC, "float32", 4)({"image": images[:4]})
except OutOfMemoryError as error:
    print(error.batch_size, error)
"""
    assert re.match("4 .*Out of memory allocating", run(program))


@needs_jax
def test_a_run_takes_the_gpus_that_it_claims(tmp_path):
    """Three GPUs, which are not there."""
    program = """
import importlib.util
importlib.util.find_spec = lambda name: name  # the plugin for CUDA is installed
take_gpus("extract")
print(jax.config.values["jax_cuda_visible_devices"])
"""
    limit = {"HEADSTART_GPUS": "2", "DVC_ROOT": str(tmp_path)}
    assert run(program, CUDA_VISIBLE_DEVICES="0,1,2", **limit) == "0,1\n"
    assert run(program, CUDA_VISIBLE_DEVICES="-1", **limit) == "all\n"


def test_params_decide_what_keras_runs_on(tmp_path):
    write_params(tmp_path / "params.yaml")
    program = "import pipeline.extract; from headstart.framework import keras; print(keras.backend.backend())"
    env = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "tensorflow\n", done.stderr


def jax_params(folder: Path, **changes: object) -> Path:
    write_params(folder / "params.yaml", **{"extract.engine": "jax", **changes})
    return folder / "params.yaml"


def test_missing_jax_ends_in_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_backend, "_is_installed", lambda: False)
    params = jax_params(tmp_path)
    keras_backend.choose(params)
    assert keras_backend.name == "tensorflow"
    with pytest.raises(UserError, match=r"extract\.engine jax: JAX is not installed; .* make setup EXTRAS=jax"):
        keras_backend.check_jax(load_params(params))
    keras_backend.check_jax(load_params(ROOT / "params.yaml"))


def test_random_weights_are_refused(tmp_path, monkeypatch):
    """Later stages build them again, by TensorFlow, which draws others."""
    monkeypatch.setattr(keras_backend, "_is_installed", lambda: True)
    with pytest.raises(UserError, match=r"extract\.engine jax draws other random weights .* use weights pretrained"):
        keras_backend.check_jax(load_params(jax_params(tmp_path, weights="none")))


@pytest.mark.parametrize("text", ["extract: 3", "[", "- extract"])
def test_params_that_cannot_be_read_are_left_to_the_stage(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    keras_backend.choose(tmp_path / "params.yaml")
    assert keras_backend.name == "tensorflow"


@needs_jax
def test_the_stage_runs_without_tensorflow_and_computes_nothing_twice(project):
    (project.root / "block").mkdir()
    (project.root / "block/tensorflow.py").write_text("raise AssertionError('TensorFlow is loaded')")
    project.set(**{"extract.engine": "jax"})
    project.env |= {"HEADSTART_TRACKING": "off"}
    project.run("python -m pipeline prepare")
    printed = project.run("python -m pipeline extract", PYTHONPATH="block")
    assert "48 computed" in printed
    assert "images/s by jax in float32 on CPU" in printed
    meta = json.loads((project.root / "features/meta.json").read_text())
    assert (meta["engine"], meta["keras_backend"]) == ("jax", "jax")
    assert {"jax", "jaxlib", "keras"} <= set(meta["versions"])
    assert "0 computed; 48 from the feature store" in project.run("python -m pipeline extract", PYTHONPATH="block")


@needs_jax
@pytest.mark.slow
def test_the_benchmark_runs_with_few_packages(tmp_path):
    """Those that a machine with a GPU has."""
    missing = (
        "blake3",
        "dvc",
        "filelock",
        "mlflow",
        "openvino",
        "pandas",
        "psutil",
        "pydantic",
        "sklearn",
        "tensorflow",
    )
    for name in (*missing, "tqdm", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}')")
    options = "--images 4 --batch 2 --rounds 2 --width 64 --networks mobilenetv2 --precisions float32"
    command = [sys.executable, "benchmarks/gpu.py", *options.split()]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heading, _, columns, _, row = done.stdout.splitlines()
    assert "photographs of 64 x 48 pixels" in heading
    cells = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (columns, row)), strict=True))
    assert (cells["network"], cells["precision"]) == ("mobilenetv2", "float32")
    assert float(cells["extract / raw"]) > 0


@needs_jax
@pytest.mark.slow
def test_all_stages_run_on_its_features(project):
    project.set(**{"extract.engine": "jax", "fine_tune.trunk_cache": "on"})
    project.run("dvc repro")
    metrics = json.loads((project.root / "metrics/evaluate.json").read_text())
    assert metrics["accuracy"] > 0.5
