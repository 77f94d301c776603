"""Give the model to another runtime, and see there that it answers as Keras does.

Command: python -m headstart.serving.export --format onnx|openvino|litert|saved_model [--output FOLDER] [--model FILE]

Writes a folder, whole or not at all: the network, and classes.json, its class names in the order of the outputs.
The network takes RGB in [0, 255], float32, and gives probabilities (N, n_classes), float32.
- saved_model: images (N, height, width, 3) of any size; it resizes them itself.
- onnx, openvino, litert: images (N, size, size, 3), size being the network's own: none of them has the antialiased
  resize of the whole model. Stretch the images to that size before, see pixels.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headstart import paths
from headstart.errors import UserError
from headstart.outputs import MAX_AGE_SECONDS

if TYPE_CHECKING:
    import keras

TOLERANCE = 1e-3  # of a probability: far above rounding in float32, far below what a wrong preprocessing makes
IMAGES = 64  # that both are asked about
CLASSES = "classes.json"


class Format(NamedTuple):
    """How a format is written and run.

    Attributes:
        file: the network's name within the folder; `.`: the folder itself.
        write: (model, file) writes it.
        run: (file, images) has its own runtime answer: (n, height, width, 3) float32 -> (n, n_classes).
        runtime: the package that runs it.
        packages: what is needed beside the pipeline's own, as pip takes it, by the name of the module.
        any_size: whether it takes images of any size.
        made: names of what is written, beside `file`; patterns of those in a folder.
        sign: the name that tells a folder of this format.
    """

    file: str
    write: Callable[[keras.Model, Path], None]
    run: Callable[[Path, np.ndarray], np.ndarray]
    runtime: str
    packages: dict[str, str] = {}  # noqa: RUF012  a named tuple's default, never changed
    any_size: bool = False
    made: tuple[str, ...] = ()

    @property
    def sign(self) -> str:
        return self.file if self.file != "." else "saved_model.pb"


def _write_saved_model(model: keras.Model, folder: Path) -> None:
    model.export(folder, format="tf_saved_model", verbose=False)


def _run_saved_model(folder: Path, images: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))  # under a name: its weights live as long as it does
    return loaded.serve(images).numpy()


def _write_onnx(model: keras.Model, file: Path) -> None:
    import logging

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own, about NumPy 2
        model.export(file, format="onnx", verbose=False)


def _run_onnx(file: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def _write_openvino(model: keras.Model, file: Path) -> None:
    model.export(str(file), format="openvino", verbose=False)


def _run_openvino(file: Path, images: np.ndarray) -> np.ndarray:
    import openvino

    # Else it computes in bfloat16 where the processor has it.
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(images)[0])


def _write_litert(model: keras.Model, file: Path) -> None:
    model.export(str(file), format="litert", verbose=False)


def _run_litert(file: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place, images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


FORMATS = {
    "onnx": Format(
        *("model.onnx", _write_onnx, _run_onnx, "onnxruntime"),
        packages={"onnx": "onnx>=1.17", "tf2onnx": "tf2onnx>=1.17", "onnxruntime": "onnxruntime>=1.20"},
    ),
    "openvino": Format("model.xml", _write_openvino, _run_openvino, "openvino", made=("model.bin",)),
    "litert": Format(
        *("model.tflite", _write_litert, _run_litert, "ai-edge-litert"),
        packages={"ai_edge_litert": "ai-edge-litert>=2.0"},
    ),
    "saved_model": Format(
        *(".", _write_saved_model, _run_saved_model, "tensorflow"),
        any_size=True,
        made=("assets", "fingerprint.pb", "saved_model.pb", "variables", "variables/variables.*"),
    ),
}


def check_packages(name: str) -> None:
    """See that the packages of a format are here.

    Raises:
        UserError: naming them with the command that installs them.
    """
    missing = [pip for module, pip in FORMATS[name].packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        quoted = " ".join(f"'{pip}'" for pip in missing)
        raise UserError(f"--format {name} needs packages that are not here; run python -m pip install {quoted}")


def check_folder(folder: Path) -> None:
    """See that `folder` may be written: it is not there, empty, or holds an export and nothing else.

    Raises:
        UserError: where something else would be lost.
    """
    if folder.suffix and not folder.is_dir() and any(folder.suffix == Path(f.file).suffix for f in FORMATS.values()):
        raise UserError(f"{folder}: an export is a folder, with the class names beside the network; name a folder")
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder} is no folder; name another one for the export")
    if Path.cwd().is_relative_to(folder.resolve()):  # it is replaced, and a shell would stand in one that is gone
        raise UserError(f"{folder} is the folder that you are in, or holds it; name one below, such as exports/new")
    if not any(folder.iterdir()):
        return
    form = next((form for form in FORMATS.values() if (folder / form.sign).is_file()), None)
    known = [CLASSES, form.sign, *form.made] if form else [CLASSES]
    # Folders are looked into: `assets` may be of another program.
    found = [entry for inside in ("*", "assets/*", "variables/*") for entry in folder.glob(inside)]
    names = sorted(entry.relative_to(folder).as_posix() for entry in found)
    others = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in known)]
    if others:
        raise UserError(f"{folder} holds what is no export, such as {others[0]}; name a new folder")
    if form is None or not (folder / CLASSES).is_file():
        missing = "a network" if form is None else CLASSES
        raise UserError(f"{folder} holds no export, for {missing} is not there; name a new folder")


def at_fixed_size(model: keras.Model, size: int) -> keras.Model:
    """The classifier without its resize: (N, size, size, 3) -> (N, n_classes), of the same layers."""
    import keras

    from headstart.training.networks import RESIZE_LAYER

    names = [layer.name for layer in model.layers]
    image = x = keras.Input((size, size, 3), name="image")
    for layer in model.layers[names.index(RESIZE_LAYER) + 1 :]:
        x = layer(x, training=False)
    fixed = keras.Model(image, x, name=model.name)
    fixed(np.zeros((1, size, size, 3), np.float32))  # Keras' exporter to ONNX asks for a model that was called
    return fixed


def some_images(size: int) -> tuple[np.ndarray, str]:
    """(n, size, size, 3) uint8, n <= IMAGES, and what they are: of the test split where that is here, else made up."""
    from headstart.config import load_params
    from headstart.data.manifest import load_split
    from headstart.data.sources import open_source
    from headstart.modalities.image.pixels import read_images

    try:
        params, test = load_params(), load_split("test")
        chosen = test.iloc[np.unique(np.linspace(0, len(test) - 1, IMAGES).astype(int))]
        with open_source(params.data.source, params.data.root) as source:
            (images,) = read_images(source, list(chosen.path), list(chosen.file_hash), size, len(chosen))
        return images, "images of the test split"
    except (UserError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
        return images, f"images of noise, since no test split is here ({reason})"


def disagreement(expected: np.ndarray, found: np.ndarray) -> tuple[float, int]:
    """The largest difference of a probability, and how many rows have another top class that was no near tie.

    Args:
        expected, found: (n, n_classes).
    """
    if expected.shape != found.shape:
        return float("inf"), len(expected)
    difference = np.abs(expected - found)
    first, second = np.sort(expected, axis=1)[:, ::-1][:, :2].T
    turned = (expected.argmax(axis=1) != found.argmax(axis=1)) & (first - second > TOLERANCE)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf"), int(turned.sum())


def export(model_file: Path, name: str, folder: Path) -> str:
    """Write `folder`, after its network has answered as Keras does; returns what to tell.

    Raises:
        UserError: where there is no model, it cannot be converted, or the answers differ: nothing is left then.
    """
    # OpenVINO's converter reports to its makers unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    from headstart.training import networks

    form = FORMATS[name]
    model, classes = networks.load(model_file)
    size = networks.image_size(model)
    shown = model if form.any_size else at_fixed_size(model, size)
    images, what = some_images(size)
    asked = [images.astype(np.float32)]
    if form.any_size:
        asked.append(np.repeat(asked[0], 2, axis=1))  # of another size, and not square
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(folder)
    partial = folder.with_name(f".{folder.name}.partial.{os.getpid()}")
    try:
        partial.mkdir()
        try:
            form.write(shown, partial / form.file)
            pairs = [(model.predict(x, verbose=0), form.run(partial / form.file, x)) for x in asked]
        except Exception as error:  # converters and runtimes have errors of many kinds
            line = (" ".join(str(error).split()) or type(error).__name__)[:300]
            raise UserError(f"{name}: this model cannot be converted and run ({line}); take another format") from error
        found = [disagreement(expected, answer) for expected, answer in pairs]
        difference, turned = max(pair[0] for pair in found), sum(pair[1] for pair in found)
        version = importlib.metadata.version(form.runtime)
        compared = f"{len(images)} {what}: {form.runtime} {version} and Keras differ by {difference:.1e} at most"
        if difference > TOLERANCE or turned:
            raise UserError(
                f"{name}: {compared} in a probability, where {TOLERANCE:g} is allowed, and name {turned} images "
                "otherwise; nothing was written: take another format"
            )
        (partial / CLASSES).write_text(json.dumps(classes, ensure_ascii=False) + "\n", encoding="utf-8")
        _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shape = "(N, height, width, 3), any size" if form.any_size else f"(N, {size}, {size}, 3)"
    return f"export: {folder / form.file}: images {shape}, float32, RGB in [0, 255]\nexport: {compared}"


def _put(partial: Path, folder: Path) -> None:
    """Give `partial` its name; an earlier export is back in its place where that fails."""
    aside = folder.with_name(f".{folder.name}.partial.{os.getpid()}.before")
    try:
        if folder.exists():
            os.replace(folder, aside)
        os.replace(partial, folder)
    except BaseException:  # also where it is stopped between the two
        with contextlib.suppress(OSError):  # there was none before, or the new one is in its place already
            os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove_left(folder: Path) -> None:
    """Remove what runs that were killed have left beside `folder`."""
    for left in folder.parent.iterdir():
        ours = left.name.startswith(f".{folder.name}.partial.")
        only = left.suffix == ".before" and not folder.exists()  # the export itself, put aside
        if ours and not only and time.time() - left.lstat().st_mtime > MAX_AGE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    text: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m headstart.serving.export", description=__doc__, **text)
    parser.add_argument("--format", choices=list(FORMATS), required=True)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: exports/FORMAT")
    parser.add_argument("--model", type=Path, default=paths.MODEL, metavar="FILE", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    folder = arguments.output or Path("exports", arguments.format)
    if folder.name in ("", ".."):
        folder = folder.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else what is half written would stay
    try:
        check_packages(arguments.format)
        check_folder(folder)
        print(export(arguments.model, arguments.format, folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{folder}: cannot be written ({error.strerror or error}); name another folder", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
