"""Name what is on images, with the model that the pipeline made.

Command: python -m pipeline.predict IMAGE_OR_FOLDER... [--json] [--model models/model.keras]
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline import paths
from pipeline.errors import UserError
from pipeline.files import Folder
from pipeline.images import SUFFIXES, ImageError
from pipeline.pixels import load


def find_images(given: list[Path]) -> list[Path]:
    """The files that are named, and those below the folders that are named, sorted, which are images by their name.

    Raises:
        UserError: where a name leads nowhere, or a folder holds no image.
    """
    found = []
    for path in given:
        if path.is_dir():
            below = [path / name for name in Folder(path).scan().files if Path(name).suffix.lower() in SUFFIXES]
            if not below:
                raise UserError(f"{path}: no image in this folder ({', '.join(sorted(SUFFIXES))})")
            found += sorted(below)
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; give images, or folders with images")
    return found


def predict(
    files: list[Path], model_file: Path
) -> tuple[list[str], list[tuple[Path, np.ndarray]], list[tuple[Path, str]]]:
    """Class names; the probabilities (n_classes,) of each file that is an image; name and reason of those that are not.

    Raises:
        UserError: where there is no model.
    """
    from pipeline import networks  # loads TensorFlow: a wrong path is told before that

    model, classes = networks.load(model_file)
    size, batch_size = networks.image_size(model), networks.PREDICTION_BATCH
    results, unreadable = [], []
    bar = tqdm(total=len(files), desc="predict", unit=" images", disable=None)
    for start in range(0, len(files), batch_size):
        images = []
        for file in files[start : start + batch_size]:
            try:
                images.append((file, load(file, size)))
            except ImageError as error:
                unreadable.append((file, str(error)))
        if images:
            probabilities = networks.predict(model, np.stack([pixels for _, pixels in images]), batch_size)
            results += zip([file for file, _ in images], probabilities, strict=True)
        bar.update(len(files[start : start + batch_size]))
    bar.close()
    return classes, results, unreadable


def main(argv: list[str] | None = None) -> int:
    """Print a line an image, or JSON; 1 where an image could not be read."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.predict", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--json", action="store_true", help="print JSON with the probability of every class")
    parser.add_argument("--model", type=Path, default=paths.MODEL, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8
    try:
        classes, results, unreadable = predict(find_images(arguments.paths), arguments.model)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        rows = [
            {
                "path": str(file),
                "label": classes[row.argmax()],
                "probability": round(float(row.max()), 6),
                "probabilities": {name: round(float(value), 6) for name, value in zip(classes, row, strict=True)},
            }
            for file, row in results
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif results:
        width = max(len(classes[row.argmax()]) for _, row in results)
        for file, row in results:
            print(f"{classes[row.argmax()]:<{width}}  {row.max():.4f}  {file}")
    for file, reason in unreadable:
        print(f"{file}: {reason}", file=sys.stderr)
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
