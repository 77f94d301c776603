"""Engines: equal to plain Keras, the same bits in any batch, on every device."""

from __future__ import annotations

import functools
import inspect
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

from headstart import machine
from headstart.backbones import get_backbone
from headstart.errors import UserError
from headstart.features.engines import Engine, OutOfMemoryError, graphs, open_engine, openvino_engine
from headstart.features.engines.openvino_engine import OpenVINOEngine
from headstart.features.engines.tensorflow_engine import TensorFlowEngine
from headstart.modalities import get_modality

SPEC = get_modality("image").spec(32)
SLOW = FAMILIES[1:]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)


def has_bfloat16() -> bool:
    return "BF16" in openvino_engine._import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def build(backbone: str = "tiny", weights: str = "pretrained") -> keras.Model:
    return get_backbone(backbone).build(weights, 32, "avg", 0)


def build_small() -> keras.Model:
    """An encoder that compiles quickly."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(image / 127.5 - 1)
    return keras.Model({"image": image}, keras.layers.GlobalAveragePooling2D()(x))


@functools.cache
def engine(kind: type[Engine], precision: str, batch_size: int) -> Engine:
    return kind(build, SPEC, precision, batch_size)


def features(one: Engine, images: np.ndarray) -> np.ndarray:
    """Of all images, in batches of the engine's size."""
    size = one.batch_size
    batches = ({"image": images[start : start + size]} for start in range(0, len(images), size))
    return np.concatenate(list(one.map(batches)))


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
def test_features_are_those_of_plain_keras(backbone, images):
    """To a relative error of 1e-4, for every way of preprocessing."""
    encoder = build(backbone, "pretrained" if backbone == "tiny" else "none")
    expected = encoder({"image": images.astype(np.float32)}, training=False).numpy()
    for kind in (OpenVINOEngine, TensorFlowEngine):
        found = features(kind(lambda: encoder, SPEC, "float32", 4), images)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [OpenVINOEngine, TensorFlowEngine])
def test_an_image_has_the_same_features_in_any_batch(kind, precision, images):
    if precision == "bfloat16" and kind is OpenVINOEngine and not has_bfloat16():
        pytest.skip("this processor does not support bfloat16")
    one, four = engine(kind, precision, 1), engine(kind, precision, 4)
    alone, together = features(one, images), features(four, images)
    assert np.abs(alone).max() > 0.1
    if kind is OpenVINOEngine:
        assert (together == alone).all()
    else:  # on some processors its kernels depend on the batch size, which is part of the features' fingerprint
        assert np.abs(together - alone).max() <= (1e-5 if precision == "float32" else 0.05) * np.abs(alone).max()
    assert (features(four, images[::-1])[::-1] == together).all()
    assert (four({"image": images[4:5]})[0] == together[4]).all()


def test_the_precision_is_that_of_the_setting(images):
    exact = features(TensorFlowEngine(build_small, SPEC, "float32", 4), images)
    for kind in (OpenVINOEngine, TensorFlowEngine):
        for precision, least, most in (("float32", 0, 1e-4), ("bfloat16", 1e-4, 0.1)):
            if precision == "float32" or kind is TensorFlowEngine or has_bfloat16():
                found = features(kind(build_small, SPEC, precision, 4), images)
                assert least <= np.abs(found - exact).max() / np.abs(exact).max() < most


def test_float32_is_float32_on_gpus():
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_a_precision_that_the_processor_lacks_is_reported(monkeypatch):
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(UserError, match=r"params\.yaml: extract\.precision bfloat16: this processor"):
        open_engine("auto", build, SPEC, "bfloat16", 4, "extract")


def test_many_threads_may_call_an_engine(images):
    one = engine(OpenVINOEngine, "float32", 4)
    batch = {"image": images[:4]}
    expected = one(batch)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append((one(batch) == expected).all())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 16


def test_auto_is_openvino_on_cpus_and_tensorflow_if_that_fails(monkeypatch, capsys):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    encoder = build_small()

    def opened(kind: str) -> str:
        return open_engine(kind, lambda: encoder, SPEC, "float32", None, "fine_tune").name

    assert opened("auto") == "openvino"
    assert opened("tensorflow") == "tensorflow"

    def no_wheel() -> None:
        raise ImportError("no wheel for this machine")

    monkeypatch.setattr(openvino_engine, "_import_openvino", no_wheel)
    assert opened("auto") == "tensorflow"
    assert "fine_tune: using TensorFlow, since OpenVINO cannot run this backbone here" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"extract\.engine openvino cannot run this backbone here \(no wheel"):
        opened("openvino")


def test_a_network_is_converted_once_and_has_the_same_bits(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    built = []

    def open_small(network: str | None, precision: str = "float32") -> Engine:
        def build() -> keras.Model:
            built.append(network)
            return build_small()

        return open_engine("openvino", build, SPEC, precision, 4, "extract", network)

    plain, first, again = open_small(None), open_small("a"), open_small("a")
    assert built == [None, "a"]
    expected = features(plain, images)
    for one in (first, again):
        assert (features(one, images) == expected).all()
        assert (one.feature_dim, one.weights_sha256) == (plain.feature_dim, plain.weights_sha256)
    open_small("b")
    assert built == [None, "a", "b"]
    for file in graphs.folder().iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert (features(open_small("a"), images) == expected).all()
    assert built == [None, "a", "b", "a"]
    assert capsys.readouterr().err.count("damaged") == 1
    open_small("a")
    assert built == [None, "a", "b", "a"]
    monkeypatch.setattr(graphs, "tensorflow_version", lambda: "another")
    open_small("a")
    assert built[4:] == ["a"]


def test_a_kept_network_that_openvino_does_not_take_is_converted_again(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    first = open_engine("auto", build_small, SPEC, "float32", 4, "extract", "a")
    monkeypatch.setattr(graphs, "read", lambda file: graphs.Graph(graphs.NetworkInfo(1, "", {}), b"<net/>", b""))
    again = open_engine("auto", build_small, SPEC, "float32", 4, "extract", "a")
    assert (again.name, again.feature_dim) == ("openvino", first.feature_dim)
    assert (features(again, images) == features(first, images)).all()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "removed; the network is converted again" in printed.err


def test_few_converted_networks_are_kept_those_used_last(tmp_path, monkeypatch):
    import openvino

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    one = openvino.opset13.parameter([1])
    model = openvino.Model([one], [one], "one")
    files = [graphs.find_file(str(number), SPEC) for number in range(graphs.MAX_FILES + 2)]
    assert len(set(files)) == len(files)
    for number, file in enumerate(files):
        graphs.write(file, graphs.NetworkInfo(1, "", {}), model)
        os.utime(file, (number, number))
        if number == graphs.MAX_FILES - 1:
            assert graphs.read(files[0])
    assert {file.name for file in graphs.folder().iterdir()} == {file.name for file in [files[0], *files[3:]]}


def test_a_network_that_cannot_be_kept_is_used_all_the_same(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    graphs.folder().parent.mkdir(parents=True)
    graphs.folder().write_text("a file where the folder belongs")
    one = open_engine("openvino", build_small, SPEC, "float32", 4, "extract", "a")
    assert features(one, images).any()
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("may_have", [True, False])
def test_tensorflow_is_asked_for_gpus_only_if_there_may_be_one(monkeypatch, may_have):
    asked = []
    monkeypatch.setattr(machine, "GPU_FILES", ("null",) if may_have else ())
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: asked.append(kind) or [])
    one = open_engine("auto", build_small, SPEC, "float32", 4, "extract")
    assert asked == ["GPU"] * may_have
    assert (one.name, one.device_name) == ("openvino", f"CPU, {machine.cores()} cores")


def test_a_plugin_of_tensorflow_may_be_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "GPU_FILES", ())
    assert not machine.may_have_gpu()
    (tmp_path / "tensorflow-plugins").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.may_have_gpu()


def test_out_of_memory_is_reported_with_the_batch_size(images):
    one = TensorFlowEngine(build_small, SPEC, "float32", 4)

    def exhausted(_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\nmore")

    one.pool.get()
    one.pool.put(exhausted)
    with pytest.raises(OutOfMemoryError, match="OOM when allocating tensor") as raised:
        one({"image": images[:4]})
    assert raised.value.batch_size == 4


PROGRAM = f"""
from headstart.features.engines.openvino_engine import OpenVINOEngine
from headstart.features.engines.tensorflow_engine import TensorFlowEngine
from headstart.framework import keras
SPEC = {SPEC}
{inspect.getsource(build_small)}
"""


def run(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it after PROGRAM in another process."""
    command, env = [sys.executable, "-c", PROGRAM + program], {**os.environ, **env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_every_device_takes_batches():
    """Two devices made of one CPU stand for two GPUs."""
    program = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
made = []
def build_here():
    encoder = build_small()
    made.append({variable.value.device[-5:] for variable in encoder.weights})
    return encoder
engine = TensorFlowEngine(build_here, SPEC, "float32", 4, ["/CPU:0", "/CPU:1"])
graphs = [engine.pool.get() for _ in range(2)]
images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
print(made, [graph({"image": images[:4]}).device[-5:] for graph in graphs], engine.parallel)
for graph in graphs:
    engine.pool.put(graph)
batches = [{"image": images[start:start + 4]} for start in range(0, 24, 4)]
one = TensorFlowEngine(build_small, SPEC, "float32", 4)
print((np.concatenate(list(engine.map(batches))) == np.concatenate(list(one.map(batches)))).all())
"""
    done = run(program)
    assert done.stdout.splitlines() == ["[{'CPU:0'}, {'CPU:1'}] ['CPU:0', 'CPU:1'] 2", "True"], done.stderr


@pytest.mark.slow
def test_conversion_sends_no_reports(tmp_path):
    """OpenVINO's converter sends telemetry unless it is prevented."""
    program = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket.connect = socket.getaddrinfo = refuse
OpenVINOEngine(build_small, SPEC, "float32", 4)
print(sys.modules["openvino_telemetry"])
"""
    done = run(program, HOME=str(tmp_path))
    assert done.stdout == "None\n", done.stderr
    assert not (tmp_path / "intel").exists()
