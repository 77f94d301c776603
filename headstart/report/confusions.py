"""Which classes are taken for which: the matrix, the order to show it in, its picture, its most frequent cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

SIDE = 1000  # pixels of the picture at most; of more classes, neighbours share a pixel
RIGHT, WRONG = (59, 125, 221), (217, 83, 79)  # --train and --warn of the page


def matrix(actual: np.ndarray, predicted: np.ndarray, side: int) -> np.ndarray:
    """(side, side) counts of images, a row a label, a column an answer, both (N,) int below `side`."""
    return np.bincount(actual * side + predicted, minlength=side**2).reshape(side, side)


def order(counts: np.ndarray) -> np.ndarray:
    """The classes of a matrix, those that are taken for each other side by side; as they are where none is."""
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    alike = (rates + rates.T) / 2
    np.fill_diagonal(alike, 0)
    if len(counts) < 3 or not alike.any():
        return np.arange(len(counts))
    distances = 1 - alike
    np.fill_diagonal(distances, 0)
    return leaves_list(linkage(squareform(distances, checks=False), "average"))


def frequent(table: pd.DataFrame) -> pd.DataFrame:
    """A row a pair that is confused, the most frequent first: label, predicted, images, share of those of the label.

    Args:
        table: a row an image: label, predicted.
    """
    wrong = table[table.label != table.predicted]
    found = wrong.groupby(["label", "predicted"]).size().rename("images").reset_index()
    found["share"] = found.images / table.label.value_counts().reindex(found.label).to_numpy()
    return found.sort_values(["images", "share"], ascending=False, kind="stable", ignore_index=True)


def picture(actual: np.ndarray, predicted: np.ndarray, n_classes: int) -> Image.Image:
    """A pixel a cell, a row a label: the more opaque, the larger its share of the images of its row.

    Args:
        actual, predicted: (N,) int: the places of label and answer, in the order that is shown.
    """
    group = -(-n_classes // SIDE)
    side = -(-n_classes // group)
    counts = matrix(actual // group, predicted // group, side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., :3] = WRONG
    pixels[np.arange(side), np.arange(side), :3] = RIGHT
    pixels[..., 3] = np.round(255 * np.sqrt(shares))  # the root shows the few percent that matter off the diagonal
    return Image.fromarray(pixels, "RGBA")
