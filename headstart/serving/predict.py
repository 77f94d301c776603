"""Predict the classes of new examples with the trained model.

An input is a file; a folder, for the examples below it; a pattern in quotes, as 'photos/**/*.jpg'; an http(s)://, s3://
or gs:// address of a file; COCO annotations (.json), for a row per box; or -, for a list of files and addresses on
standard input, one per line. If examples are texts: --text, a table for a text per row, and - for a text per line.
After `headstart ood`, examples that are unlike the training data are flagged.
"""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from tqdm import tqdm

from headstart import paths
from headstart.errors import ItemError, UserError
from headstart.machine import cores
from headstart.outputs import Outputs
from headstart.serving import ood
from headstart.serving.cells import check_options
from headstart.serving.formats import FLAG, FORMATS, Prediction, printable
from headstart.serving.inputs import InputReader, find_inputs
from headstart.serving.model_file import load_classifier, read_model_info, warn_of_other_model

if TYPE_CHECKING:
    from headstart.modalities import Modality
    from headstart.training.networks import Classifier

MAX_SHOWN = 5  # names of ignored files, and reasons


def predict(
    inputs: Sequence[str],
    format: str = "text",
    output: Path | None = None,
    model: Path = paths.MODEL,
    text: Sequence[str] | None = None,
    column: str | None = None,
) -> int:
    """Print predictions, or write them to a file; return 1 if an input could not be read, else 0.

    Args:
        inputs: as `find_inputs` takes them.
        format: one of FORMATS.
        output: a file, which appears whole; None: standard output, as batches are done.
        text: examples themselves; None: none.
        column: of tables; None: found by its name.

    Raises:
        UserError: if an input does not exist, there is no model, or the output cannot be written.
        BrokenPipeError: if nobody reads standard output any more.
    """
    info = read_model_info(model)
    warn_of_other_model(model, "predict")
    check_options(text or (), column, info.modality)
    names, refused, ignored, cells = find_inputs(inputs, info.modality, text or (), column)
    if ignored:
        counts = Counter(reason for _, reason in ignored).most_common(MAX_SHOWN)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
        shown = ", ".join(printable(name) for name, _ in ignored[:MAX_SHOWN])
        more = f" and {len(ignored) - MAX_SHOWN} more" if len(ignored) > MAX_SHOWN else ""
        print(f"predict: {len(ignored)} files are ignored ({reasons}): {shown}{more}", file=sys.stderr)
    outputs = Outputs()
    remarks: dict[str, list[str]] = {}
    flags, problems = [], [f"{printable(name)}: {reason}" for name, reason in refused]
    try:
        file = outputs.path(output) if output else None
        classifier, detector = _load_model(model)
        hidden = True if not file and sys.stdout.isatty() else None  # lines and a progress bar would mix
        bar = tqdm(total=len(names), desc="predict", unit=" examples", disable=hidden)

        def readable() -> Iterator[Prediction]:
            for prediction in predictions(names, classifier, detector, bar, info.margin, cells):
                if prediction.problem:
                    problems.append(f"{printable(prediction.name)}: {prediction.problem}")
                else:
                    flags.append(prediction.is_flagged)
                    if prediction.remark:
                        remarks.setdefault(prediction.remark, []).append(prediction.name)
                    yield prediction

        try:
            with _open(file) as stream:
                FORMATS[format](stream, classifier.classes, readable())
            outputs.commit()
        except BrokenPipeError:
            raise
        except OSError as error:
            problem = f"{output or 'standard output'}: cannot be written: {error.strerror or error}"
            raise UserError(f"{problem}; choose another file, or free some space") from error
    finally:
        outputs.discard()
    if problems:
        print("\n".join(problems), file=sys.stderr)
    for remark, about in remarks.items():
        noun = info.modality.noun
        print(
            f"predict: {len(about)} of {len(flags)} {noun}s {remark} The first: {printable(about[0])}", file=sys.stderr
        )
    if any(flags) and detector:
        print(
            f"predict: {sum(flags)} of {len(flags)} examples are {FLAG}, so their labels may mean nothing; of the test "
            f"split {detector.share_flagged:.1%} are flagged",
            file=sys.stderr,
        )
    return int(bool(problems))


def _load_model(file: Path) -> tuple[Classifier, ood.Detector | None]:
    return load_classifier(file), _load_detector(file)  # TensorFlow: what is wrong so far is reported before that


def _load_detector(model_file: Path) -> ood.Detector | None:
    """The out-of-distribution detector beside the model, or None, which is reported."""
    try:
        return ood.load(model_file)
    except UserError as error:
        print(f"predict: examples {FLAG} are not flagged: {error}", file=sys.stderr)
        return None


@contextmanager
def _open(file: Path | None) -> Iterator[TextIO]:
    """A file to write to, or standard output if it is None."""
    if file:
        with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8
    try:
        yield sys.stdout
        sys.stdout.flush()
    except OSError:
        # Python would flush it once more when it exits, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def predictions(
    names: list[str],
    classifier: Classifier,
    detector: ood.Detector | None,
    bar: tqdm,
    margin: float,
    cells: Mapping[str, str] | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each input, in order, as batches are done.

    Args:
        margin: with which boxes are cut out.
        cells: examples that are no files, by their names.
    """
    scorer = ood.Scorer(classifier)
    batch_size = min(scorer.batch_size, len(names))
    reader = InputReader(classifier.modality, margin, cells)
    load = partial(_load, reader=reader, modality=classifier.modality, size=classifier.size)
    with ThreadPoolExecutor(cores()) as pool, bar:
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            loaded = list(pool.map(load, batch))
            arrays = [array for array, _ in loaded if isinstance(array, np.ndarray)]
            scored: Iterator[tuple[np.ndarray, float | None]] = iter(())
            if arrays:
                features, probabilities = scorer(classifier.modality.batch(arrays), batch_size)
                distances = detector.distances(features).tolist() if detector else [None] * len(arrays)
                scored = zip(probabilities, distances, strict=True)
            for name, (array, remark) in zip(batch, loaded, strict=True):
                if isinstance(array, np.ndarray):
                    yield Prediction(name, *next(scored), remark=remark)
                else:
                    yield Prediction(name, np.empty(0), problem=array)
            bar.update(len(batch))


def _load(name: str, reader: InputReader, modality: Modality, size: int) -> tuple[np.ndarray | str, str]:
    """The example as the network takes it, or why it cannot be read; and what is odd about it."""
    try:
        return modality.load_with_remark(reader.read(name), size)
    except ItemError as error:
        return str(error), ""
