"""Name what is on images, with the model that the pipeline made.

Command: python -m headstart.serving.predict IMAGE... [--format text|csv|json] [--output FILE] [--model models/model.keras]

An IMAGE is a file; a folder, for the images below it; a pattern in quotes, as 'photos/**/*.jpg'; an http(s)://, s3://
or gs:// address of a file; or -, for a list of files and addresses on standard input, one a line. Where
`python -m headstart.serving.ood` has learnt what the training images look like, those that are unlike them are flagged.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from headstart import paths
from headstart.errors import ItemError, UserError
from headstart.machine import cores
from headstart.outputs import Outputs
from headstart.serving import ood
from headstart.serving.formats import FORMATS, MARK, Answer, Counted, shown
from headstart.serving.inputs import find_images, load_given


class Network:
    """The model, with what tells images unlike the training images where that is there.

    Raises:
        UserError: where there is no model.
    """

    def __init__(self, model_file: Path) -> None:
        from headstart.training import networks  # loads TensorFlow: a wrong path is told before that

        self._model, self.classes = networks.load(model_file)
        self.size, self.most = networks.image_size(self._model), networks.PREDICTION_BATCH
        self._predict = networks.predict
        self.unlike: ood.Unlike | None = None
        try:
            self.unlike = ood.load(model_file)
            self._model = ood.with_features(self._model)
        except UserError as error:
            print(f"predict: images {MARK} are not flagged: {error}", file=sys.stderr)

    def __call__(self, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, list[float | None]]:
        """Probabilities (b, n_classes) and distances of (b, size, size, 3) uint8, b <= batch_size."""
        if self.unlike is None:
            return self._predict(self._model, images, batch_size), [None] * len(images)
        features, probabilities = ood.ask(self._model, images, batch_size)
        return probabilities, self.unlike.distances(features).tolist()


def predict(names: list[str], network: Network, show_progress: bool | None = None) -> Iterator[Answer]:
    """An answer for each image, in order, as batches of them are done.

    Args:
        show_progress: False for no bar; None for one where stderr is a terminal.
    """
    batch_size = min(network.most, len(names))
    bar = tqdm(total=len(names), desc="predict", unit=" images", disable=None if show_progress is None else True)
    with ThreadPoolExecutor(cores()) as pool, bar:
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            loaded = list(pool.map(partial(_load, size=network.size), batch))
            images = [image for image in loaded if isinstance(image, np.ndarray)]
            probabilities, distances = network(np.stack(images), batch_size) if images else (np.empty(0), [])
            found = zip(probabilities, distances, strict=True)
            for name, image in zip(batch, loaded, strict=True):
                yield (
                    Answer(name, *next(found))
                    if isinstance(image, np.ndarray)
                    else Answer(name, np.empty(0), problem=image)
                )
            bar.update(len(batch))


def _load(name: str, size: int) -> np.ndarray | str:
    """The image, or why it cannot be read."""
    try:
        return load_given(name, size)
    except ItemError as error:
        return str(error)


def _close_stdout() -> None:
    """Keep Python from flushing it once more at its end, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str] | None = None) -> int:
    """Write what is found; 1 where an image could not be read."""
    text: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m headstart.serving.predict", description=__doc__, **text)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, folder, 'pattern', address, or -")
    parser.add_argument("--format", choices=list(FORMATS), default="text", help="default: %(default)s")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="as --format json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a file to write instead of printing")
    parser.add_argument("--model", type=Path, default=paths.MODEL, metavar="FILE", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    outputs = Outputs()
    try:
        names = find_images(arguments.images)
        file = outputs.path(arguments.output) if arguments.output else None
        network = Network(arguments.model)
        quiet = True if not arguments.output and sys.stdout.isatty() else None  # lines and a bar would mix
        given = Counted(predict(names, network, quiet))
        try:
            if file:
                with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                    FORMATS[arguments.format](stream, network.classes, given)
                outputs.commit()
            else:
                if isinstance(sys.stdout, io.TextIOWrapper):
                    sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8
                FORMATS[arguments.format](sys.stdout, network.classes, given)
                sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough, as `head` does
            _close_stdout()
            return 0
        except OSError as error:
            if not file:
                _close_stdout()
            raise UserError(
                f"{arguments.output or 'standard output'}: cannot be written: {error.strerror or error}; "
                "take another file, or free some space"
            ) from error
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        outputs.discard()
    for name, problem in given.problems:
        print(f"{shown(name)}: {problem}", file=sys.stderr)
    if given.flagged and network.unlike:
        known = network.unlike
        print(
            f"predict: {given.flagged} of {given.read} images are {MARK}: their labels may mean nothing; of the test "
            f"split {known.alarms / known.tested:.1%} are flagged",
            file=sys.stderr,
        )
    return 1 if given.problems else 0


if __name__ == "__main__":
    sys.exit(main())
