"""The network of speech-embedding with random weights, as its package has it, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
