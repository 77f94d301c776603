"""Export the model to another runtime, after checking that it answers there as it does in Keras.

An export is a folder that is written whole or not at all: the network, classes.json, its class names in the order of
the outputs, and what else loading examples takes, see `Modality.export_files`: of images with more than 8 bits
reading.json, the `value_range` that becomes [0, 255]; of texts tokenizer.json, for the library `tokenizers`, and
reading.json: the `prefix` that stands before a text, and the token `pad` that fills up a batch.

The network returns probabilities (N, n_classes), float32. The saved_model takes examples as models/model.keras does,
e.g. RGB images of any size in [0, 255]. The other formats take them as the modality loads them, e.g. RGB images (N,
size, size, 3) in [0, 255], float32: none of them has the antialiased resize of the whole model. Stretch images to that
size first, see modalities/image/pixels.py. All take texts as tokens, (N, t) int32 for any t up to the `size` in
reading.json.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart import paths
from headstart.errors import UserError, one_line
from headstart.lockfile import describe_other_source
from headstart.modalities import modalities
from headstart.outputs import MAX_AGE_SECONDS
from headstart.serving.model_file import load_classifier, warn_of_other_model
from headstart.serving.runtimes import FORMATS

if TYPE_CHECKING:
    import keras

    from headstart.training.networks import Classifier

TOLERANCE = 1e-3  # of a probability: far above rounding in float32, far below the effect of wrong preprocessing
EXAMPLES = 64  # that both runtimes are compared on
CLASSES = "classes.json"


def export(format: str, output: Path | None = None, model: Path = paths.MODEL) -> None:
    """Write an export, and print how close its runtime comes to Keras.

    Args:
        format: one of FORMATS.
        output: a folder; None: exports/FORMAT. An earlier export there is replaced.

    Raises:
        UserError: if packages or the model are missing, the model cannot be converted, the answers differ, or the
            folder cannot be written; an earlier export stays then.
    """
    folder = output or Path("exports", format)
    if folder.name in ("", ".."):
        folder = folder.resolve()
    check_packages(format)
    check_folder(folder)
    warn_of_other_model(model, "export")
    try:
        _export(format, folder, model)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error


def check_packages(name: str) -> None:
    """Check that the packages of a format are installed.

    Raises:
        UserError: naming the missing ones, and the command that installs them.
    """
    missing = [pip for module, pip in FORMATS[name].packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        quoted = " ".join(f"'{pip}'" for pip in missing)
        raise UserError(f"--format {name} needs packages that are missing; run python -m pip install {quoted}")


def check_folder(folder: Path) -> None:
    """Check that `folder` may be written: it does not exist, is empty, or holds an export and nothing else.

    Raises:
        UserError: if something else would be lost.
    """
    if folder.suffix and not folder.is_dir() and any(folder.suffix == Path(f.file).suffix for f in FORMATS.values()):
        raise UserError(f"{folder}: an export is a folder, with the network and its class names; name a folder")
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another one for the export")
    if Path.cwd().is_relative_to(folder.resolve()):  # it is replaced, and the shell would be left in a deleted folder
        raise UserError(f"{folder} is the current folder or contains it; choose one below, such as exports/new")
    if not any(folder.iterdir()):
        return
    form = next((form for form in FORMATS.values() if (folder / form.main_file).is_file()), None)
    texts = {name for modality in modalities() for name in modality.exported}
    known = [CLASSES, *texts, *([form.main_file, *form.also_written] if form else [])]
    # Look into folders, too: `assets` may be of another program.
    entries = [entry for pattern in ("*", "assets/*", "variables/*") for entry in folder.glob(pattern)]
    names = sorted(entry.relative_to(folder).as_posix() for entry in entries)
    others = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in known)]
    if others:
        raise UserError(f"{folder} has files that are not of an export, such as {others[0]}; choose a new folder")
    if form is None or not (folder / CLASSES).is_file():
        missing = "network" if form is None else CLASSES
        raise UserError(f"{folder} is not an export: it has no {missing}; choose a new folder")


def _export(name: str, folder: Path, model_file: Path) -> None:
    """Write `folder` once its network has been run."""
    # OpenVINO's converter sends usage data to its makers unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    form, classifier = FORMATS[name], load_classifier(model_file)
    network = classifier.network if form.whole else classifier.inner
    if len(network.inputs) > 1:
        names = ", ".join(tensor.name for tensor in network.inputs)
        raise UserError(f"{model_file} has several inputs ({names}); only models with a single one can be exported")
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    partial = folder.with_name(f".{folder.name}.partial.{os.getpid()}")
    try:
        partial.mkdir()
        compared = _write_and_compare(name, classifier, network, partial)
        (partial / CLASSES).write_text(json.dumps(classifier.classes, ensure_ascii=False) + "\n", encoding="utf-8")
        for file, content in classifier.modality.export_files(classifier.size).items():
            (partial / file).write_text(content, encoding="utf-8")
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    (tensor,) = network.inputs
    shape = ", ".join(["N", *("any" if length is None else str(length) for length in tensor.shape[1:])])
    print(f"export: {folder / form.file}: {tensor.name} ({shape}), {tensor.dtype}\nexport: {compared}")


def _write_and_compare(name: str, classifier: Classifier, network: keras.Model, partial: Path) -> str:
    """Write the network into `partial`, run it, and return in words how close it comes to Keras."""
    form, (batch, what) = FORMATS[name], load_test_batch(classifier)
    examples = batch.astype(network.inputs[0].dtype)
    batches = [examples, *_other_lengths(classifier)]
    try:
        # First: Keras' exporter to ONNX wants a model that was called.
        expected = np.concatenate([network.predict(one, verbose=0) for one in batches])
        form.write(network, partial / form.file)
        answer = np.concatenate([form.run(partial / form.file, one) for one in batches])
    except Exception as error:  # converters and runtimes have errors of many kinds
        problem = f"{name}: this model cannot be converted and run ({one_line(error)})"
        raise UserError(f"{problem}; choose another format") from error
    difference, changed = compare(expected, answer)
    version = importlib.metadata.version(form.runtime)
    words = f"{len(examples)} {what}: {form.runtime} {version} and Keras differ by at most {difference:.1e}"
    if difference > TOLERANCE or changed:
        raise UserError(
            f"{name}: {words} in a probability, {TOLERANCE:g} is allowed, and in the class of {changed} examples; "
            "nothing was written: choose another format"
        )
    return words


def _other_lengths(classifier: Classifier) -> list[np.ndarray]:
    """Return further batches if examples differ in length: a converter may have taken one length for the only one."""
    modality, size = classifier.modality, classifier.size
    if not modality.length:
        return []
    probes = [modality.load(data, size) for data in modality.probes(size)]
    ends = min(probes, key=len), max(probes, key=len)
    return [next(iter(modality.batch([array]).values())) for array in ends]


def load_test_batch(classifier: Classifier) -> tuple[np.ndarray, str]:
    """Return at most EXAMPLES examples as the modality loads them, and what they are.

    They are of the test split, or known ones if there is none.
    """
    from headstart.config import load_params
    from headstart.data.layouts import open_examples
    from headstart.data.prepared import load_split
    from headstart.modalities.loading import read_batches

    modality, size = classifier.modality, classifier.size
    other = ""
    try:
        params, test = load_params(), load_split("test")
        other = describe_other_source(params.data.source)
        rows = test.iloc[np.unique(np.linspace(0, len(test) - 1, EXAMPLES).astype(int))]
        with open_examples(params.data, modality) as source:
            files = list(rows.path), list(rows.file_hash)
            (batch,) = read_batches(source, modality, *files, size, len(rows))
        what = "examples of the test split"
    except (UserError, AttributeError, OSError, LookupError, TypeError, ValueError) as error:  # missing or damaged
        batch = modality.batch([modality.load(data, size) for data in modality.probes(size)])
        what = f"generated examples, because the test split is not there ({other or one_line(error)})"
    return next(iter(batch.values())), what


def compare(expected: np.ndarray, answer: np.ndarray) -> tuple[float, int]:
    """Return the largest difference of a probability, and how many rows have another top class without a near tie.

    Args:
        expected, answer: (n, n_classes).
    """
    if expected.shape != answer.shape:
        return float("inf"), len(expected)
    difference = np.abs(expected - answer)
    first, second = np.sort(expected, axis=1)[:, ::-1][:, :2].T
    changed = (expected.argmax(axis=1) != answer.argmax(axis=1)) & (first - second > TOLERANCE)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf"), int(changed.sum())


def _move(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; if that fails, an earlier export is put back."""
    aside = folder.with_name(f".{folder.name}.partial.{os.getpid()}.before")
    try:
        if folder.exists():
            os.replace(folder, aside)
        os.replace(partial, folder)
    except BaseException:  # also if it is stopped between the two
        with contextlib.suppress(OSError):  # there was none before, or the new one is in its place already
            os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what runs that were killed have left beside `folder`."""
    for left in folder.parent.iterdir():
        ours = left.name.startswith(f".{folder.name}.partial.")
        only_copy = left.suffix == ".before" and not folder.exists()  # the export itself, put aside
        if ours and not only_copy and time.time() - left.lstat().st_mtime > MAX_AGE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
