"""What every peer of benchmarks/frontier.py is given, and what it has to write."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all peers have."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("folder", type=Path, help="holds train, val, train_val and test, each with a folder per class")
    parser.add_argument("predictions", type=Path, help="the .csv file to write")
    parser.add_argument("--network", required=True, help="FAMILY.CONSTRUCTOR, as keras.applications names them")
    parser.add_argument("--size", type=int, required=True, help="width and height of the network's images, pixels")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def write(file: Path, images: list[str], classes: list[str], probabilities: np.ndarray) -> None:
    """Write a row per image: CLASS/NAME, then the probability of each class.

    Args:
        images: paths of N test images, each in the folder of its class.
        probabilities: (N, n_classes).
    """
    names = [f"{path.parent.name}/{path.name}" for path in map(Path, images)]
    pd.DataFrame(probabilities, index=names, columns=classes).to_csv(file)
