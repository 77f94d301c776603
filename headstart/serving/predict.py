"""Predict the classes of new images with the trained model.

An input is a file; a folder, for the images below it; a pattern in quotes, as 'photos/**/*.jpg'; an http(s)://, s3://
or gs:// address of a file; or -, for a list of files and addresses on standard input, one per line. After `headstart
ood`, images that are unlike the training images are flagged.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from headstart import paths
from headstart.errors import ItemError, UserError
from headstart.machine import cores
from headstart.outputs import Outputs
from headstart.serving import ood
from headstart.serving.formats import FLAG, FORMATS, Prediction, Tally, printable
from headstart.serving.inputs import find_inputs, load_input


class Classifier:
    """The model, and the out-of-distribution detector beside it if there is one.

    Raises:
        UserError: if there is no model.
    """

    def __init__(self, model_file: Path) -> None:
        from headstart.training import networks  # TensorFlow: a wrong path is reported before it is loaded

        self._model, self.classes = networks.load(model_file)
        self.image_size, self.batch_size = networks.image_size(self._model), networks.PREDICTION_BATCH
        self._predict = networks.predict
        self.detector: ood.Detector | None = None
        try:
            self.detector = ood.load(model_file)
            self._model = ood.with_features(self._model)
        except UserError as error:
            print(f"predict: images {FLAG} are not flagged: {error}", file=sys.stderr)

    def __call__(self, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, Sequence[float | None]]:
        """Return probabilities (b, n_classes) and distances of (b, size, size, 3) uint8 images, b <= batch_size."""
        if self.detector is None:
            return self._predict(self._model, images, batch_size), [None] * len(images)
        features, probabilities = ood.predict(self._model, images, batch_size)
        return probabilities, self.detector.distances(features).tolist()


def predict(
    inputs: Sequence[str], output_format: str = "text", output: Path | None = None, model_file: Path = paths.MODEL
) -> int:
    """Print predictions, or write them to a file; return how many inputs could not be read.

    Args:
        inputs: as `find_inputs` takes them.
        output_format: one of FORMATS.
        output: a file, which appears whole; None: standard output, as batches are done.

    Raises:
        UserError: if an input does not exist, there is no model, or the output cannot be written.
    """
    names = find_inputs(inputs)
    outputs = Outputs()
    try:
        file = outputs.path(output) if output else None
        classifier = Classifier(model_file)
        hidden = True if not file and sys.stdout.isatty() else None  # lines and a progress bar would mix
        bar = tqdm(total=len(names), desc="predict", unit=" images", disable=hidden)
        tally = Tally(predictions(names, classifier, bar))
        try:
            with _open(file) as stream:
                FORMATS[output_format](stream, classifier.classes, tally)
            outputs.commit()
        except BrokenPipeError:  # the reader has seen enough, as `head` does
            return 0
        except OSError as error:
            raise UserError(
                f"{output or 'standard output'}: cannot be written: {error.strerror or error}; choose another file, or "
                "free some space"
            ) from error
    finally:
        outputs.discard()
    for name, problem in tally.problems:
        print(f"{printable(name)}: {problem}", file=sys.stderr)
    if tally.flagged and classifier.detector:
        print(
            f"predict: {tally.flagged} of {tally.read} images are {FLAG}, so their labels may mean nothing; of the "
            f"test split {classifier.detector.share_flagged:.1%} are flagged",
            file=sys.stderr,
        )
    return len(tally.problems)


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


def predictions(names: list[str], classifier: Classifier, bar: tqdm) -> Iterator[Prediction]:
    """Yield a prediction for each input, in order, as batches are done."""
    batch_size = min(classifier.batch_size, len(names))
    with ThreadPoolExecutor(cores()) as pool, bar:
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            loaded = list(pool.map(partial(_load, size=classifier.image_size), batch))
            images = [image for image in loaded if isinstance(image, np.ndarray)]
            scored = iter(zip(*classifier(np.stack(images), batch_size), strict=True) if images else ())
            for name, image in zip(batch, loaded, strict=True):
                if isinstance(image, np.ndarray):
                    yield Prediction(name, *next(scored))
                else:
                    yield Prediction(name, np.empty(0), problem=image)
            bar.update(len(batch))


def _load(name: str, size: int) -> np.ndarray | str:
    """The image, or why it cannot be read."""
    try:
        return load_input(name, size)
    except ItemError as error:
        return str(error)
