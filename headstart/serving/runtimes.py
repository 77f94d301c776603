"""The formats that a model is exported to: how Keras writes each one, and how its own runtime runs it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import keras


class Format(NamedTuple):
    """A format and its runtime.

    Attributes:
        file: the name of the network inside the folder of an export; `.`: the folder itself.
        write: (model, file) writes it.
        run: (file, examples) returns what the runtime answers: (n, ...) -> (n, n_classes).
        runtime: the package that runs it.
        packages: what is needed besides the pipeline's own packages: requirement by module name.
        whole: whether it can hold the whole model, with what stands before the backbone, e.g. a resize.
        also_written: names of what is written besides `file`; patterns of those inside folders.
    """

    file: str
    write: Callable[[keras.Model, Path], None]
    run: Callable[[Path, np.ndarray], np.ndarray]
    runtime: str
    packages: dict[str, str] = {}  # noqa: RUF012  a named tuple's default, never changed
    whole: bool = False
    also_written: tuple[str, ...] = ()

    @property
    def main_file(self) -> str:
        """The file by which a folder of this format is recognised."""
        return self.file if self.file != "." else "saved_model.pb"


def _write(keras_name: str, model: keras.Model, file: Path) -> None:
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it cannot convert, the runtime names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own, about NumPy 2
        model.export(str(file), format=keras_name, verbose=False)


def _write_onnx(model: keras.Model, file: Path) -> None:
    """Write it without Erfc, an operation that TensorFlow makes of GELU and ONNX does not have: 1 - Erf is the same."""
    import onnx

    _write("onnx", model, file)
    written = onnx.load(str(file))
    found = [node for node in written.graph.node if node.op_type == "Erfc"]
    for number, node in enumerate(found):
        place, inner = list(written.graph.node).index(node), f"erf_{number}"
        one = onnx.helper.make_node("Constant", [], [f"{inner}_one"], value_float=1.0)
        subtract = onnx.helper.make_node("Sub", [f"{inner}_one", inner], list(node.output))
        node.op_type, node.output[:] = "Erf", [inner]
        written.graph.node.insert(place, one)
        written.graph.node.insert(place + 2, subtract)
    if found:
        onnx.save(written, str(file))


def _run_saved_model(folder: Path, examples: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))  # a variable of its own: the weights live as long as it does
    return loaded.serve(examples).numpy()


def _run_onnx(file: Path, examples: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: examples})[0]


def _run_openvino(file: Path, examples: np.ndarray) -> np.ndarray:
    import openvino

    # By default it computes in bfloat16 if the processor can.
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(examples)[0])


def _run_litert(file: Path, examples: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, examples.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, examples)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


FORMATS = {
    "onnx": Format(
        *("model.onnx", _write_onnx, _run_onnx, "onnxruntime"),
        packages={"onnx": "onnx>=1.17", "tf2onnx": "tf2onnx>=1.17", "onnxruntime": "onnxruntime>=1.20"},
    ),
    "openvino": Format(
        *("model.xml", partial(_write, "openvino"), _run_openvino, "openvino"), also_written=("model.bin",)
    ),
    "litert": Format(
        *("model.tflite", partial(_write, "litert"), _run_litert, "ai-edge-litert"),
        packages={"ai_edge_litert": "ai-edge-litert>=2.0"},
    ),
    "saved_model": Format(
        *(".", partial(_write, "tf_saved_model"), _run_saved_model, "tensorflow"),
        whole=True,
        also_written=("assets", "fingerprint.pb", "saved_model.pb", "variables", "variables/variables.*"),
    ),
}
