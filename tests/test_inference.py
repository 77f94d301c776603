"""What runs the trunk: equal to plain Keras, the same bits in any batch, on every device."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from test_backbone_networks import FAMILIES

from headstart.backbones import keras_applications
from headstart.backbones.table import BACKBONES
from headstart.errors import UserError
from headstart.features import engines
from headstart.features.engines import OpenVINOEngine, TensorFlowEngine, open_engine


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)


def has_bfloat16() -> bool:
    return "BF16" in engines._import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def build(backbone: str = "tiny", weights: str = "pretrained") -> keras.Model:
    return keras_applications.build_trunk(backbone, weights, 32, "avg", 0)


@functools.cache
def opened(engine: type[engines.Engine], precision: str, size: int) -> engines.Engine:
    return engine(build, precision, size)


def all_of(engine: engines.Engine, images: np.ndarray) -> np.ndarray:
    size = engine.batch_size
    return np.concatenate(list(engine.map(images[start : start + size] for start in range(0, len(images), size))))


@pytest.mark.parametrize("backbone", FAMILIES)
def test_features_are_those_of_plain_keras(backbone, images):
    """To a relative error of 1e-4, by the preprocessing of each family."""
    row = BACKBONES[backbone]
    trunk = build(backbone, "pretrained" if backbone == "tiny" else "none")
    by_hand = getattr(keras.applications, row.module).preprocess_input(images.astype("float32"))
    expected = trunk.get_layer("backbone")(by_hand, training=False).numpy().mean(axis=(1, 2))
    for engine in (OpenVINOEngine, TensorFlowEngine):
        found = all_of(engine(lambda: trunk, "float32", 4), images)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", [OpenVINOEngine, TensorFlowEngine])
def test_an_image_has_the_same_features_in_any_batch(engine, precision, images):
    if precision == "bfloat16" and engine is OpenVINOEngine and not has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    one, four = opened(engine, precision, 1), opened(engine, precision, 4)
    alone, together = all_of(one, images), all_of(four, images)
    assert np.abs(alone).max() > 0.1
    if engine is OpenVINOEngine:
        assert (together == alone).all()
    else:  # whose kernels go by the size of the batch on some processors: the fingerprint of features has it
        assert np.abs(together - alone).max() <= (1e-5 if precision == "float32" else 0.05) * np.abs(alone).max()
    assert (all_of(four, images[::-1])[::-1] == together).all()
    assert (four(images[4:5])[0] == together[4]).all()


def test_precision_is_that_which_is_asked_for(images):
    exact = all_of(opened(TensorFlowEngine, "float32", 4), images)
    assert np.abs(all_of(opened(OpenVINOEngine, "float32", 4), images) - exact).max() < 1e-4 * np.abs(exact).max()
    for engine in (OpenVINOEngine, TensorFlowEngine) if has_bfloat16() else (TensorFlowEngine,):
        low = all_of(opened(engine, "bfloat16", 4), images)
        error = np.abs(low - exact).max() / np.abs(exact).max()
        assert 1e-4 < error < 0.1


def test_float32_is_float32_on_gpus():
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_a_precision_that_the_processor_lacks_is_told(monkeypatch):
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(UserError, match=r"params\.yaml: extract\.precision bfloat16: this processor"):
        open_engine("auto", build, "bfloat16", 4)


def test_calls_may_come_from_many_threads(images):
    engine = opened(OpenVINOEngine, "float32", 4)
    expected = engine(images[:4])
    results, threads = [], []
    for _ in range(16):
        threads.append(threading.Thread(target=lambda: results.append((engine(images[:4]) == expected).all())))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert results == [True] * 16


def test_auto_is_openvino_on_cpus_and_tensorflow_where_that_cannot(monkeypatch, capsys):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a GPU is here")
    assert open_engine("auto", build, "float32", None).name == "openvino"
    assert open_engine("tensorflow", build, "float32", None).name == "tensorflow"

    def no_wheel() -> None:
        raise ImportError("no wheel for this machine")

    monkeypatch.setattr(engines, "_import_openvino", no_wheel)
    assert open_engine("auto", build, "float32", None).name == "tensorflow"
    assert "TensorFlow takes the place of OpenVINO" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"extract\.engine openvino: it cannot run this backbone here \(no wheel"):
        open_engine("openvino", build, "float32", None)


def test_a_batch_beyond_the_memory_is_told_with_its_size(images):
    engine = TensorFlowEngine(build, "float32", 4)

    def exhausted(_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\nmore")

    engine._graphs.get()
    engine._graphs.put(exhausted)
    with pytest.raises(engines.OutOfMemoryError, match="OOM when allocating tensor") as raised:
        engine(images[:4])
    assert raised.value.batch_size == 4


def test_every_device_takes_batches():
    """Two devices made of one CPU stand for two GPUs."""
    program = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from headstart.features import engines
from headstart.backbones import keras_applications
made = []
def build():
    trunk = keras_applications.build_trunk("tiny", "pretrained", 32, "avg", 0)
    made.append({variable.value.device[-5:] for variable in trunk.weights})
    return trunk
engine = engines.TensorFlowEngine(build, "float32", 4, ["/CPU:0", "/CPU:1"])
graphs = [engine._graphs.get() for _ in range(2)]
images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
print(made, [graph(images[:4]).device[-5:] for graph in graphs], engine.parallel)
for graph in graphs:
    engine._graphs.put(graph)
both = np.concatenate(list(engine.map(images[start:start + 4] for start in range(0, 24, 4))))
one = engines.TensorFlowEngine(build, "float32", 4)
print((both == np.concatenate(list(one.map(images[start:start + 4] for start in range(0, 24, 4))))).all())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[{'CPU:0'}, {'CPU:1'}] ['CPU:0', 'CPU:1'] 2", "True"], done.stderr


def test_nobody_is_told_what_is_converted(tmp_path):
    """OpenVINO's converter sends reports, unless it is kept from that."""
    program = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket.connect = socket.getaddrinfo = refuse
from headstart.features import engines
from headstart.backbones import keras_applications
engines.OpenVINOEngine(lambda: keras_applications.build_trunk("tiny", "pretrained", 32, "avg", 0), "float32", 4)
print(sys.modules["openvino_telemetry"])
"""
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "None\n", done.stderr
    assert not (tmp_path / "intel").exists()
