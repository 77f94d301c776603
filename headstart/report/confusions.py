"""Which classes are mistaken for which: the confusion matrix as a table or a picture, and its most frequent cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from headstart.modalities.pictures import data_url

SIDE = 1000  # pixels of the picture at most; with more classes, neighbours share a pixel
CORRECT, WRONG = (59, 125, 221), (217, 83, 79)  # --train and --warn of the page
TABLE_CLASSES = 25  # up to here the matrix is a table of counts, beyond it a picture
NAMED_CLASSES = 60  # up to here the names stand beside the picture
PAIRS = 15  # confusions that are listed
HOVERS = 400  # cells of the picture with a tooltip


def confusion(table: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """Return what the template shows: `rows` of counts for few classes, else a `picture`, its `cells` with tooltips.

    Args:
        table: a row per example: label, predicted, and target and answer, the places of both among the classes.
    """
    count, pairs = len(classes), frequent_confusions(table)
    shown: dict[str, Any] = {"pairs": pairs, "first": pairs.head(PAIRS).to_dict("records"), "rows": None}
    target, answer = table.target.to_numpy(), table.answer.to_numpy()
    if count <= TABLE_CLASSES:
        rows = []
        for label, cells in zip(classes, matrix(target, answer, count), strict=True):
            shares = cells / max(cells.sum(), 1)
            strengths = (100 * np.sqrt(shares)).round(1)  # as in the picture
            rows.append({"label": label, "cells": [*zip(cells.tolist(), shares.tolist(), strengths, strict=True)]})
        return shown | {"rows": rows, "classes": classes, "longest": max(map(len, classes))}
    order = np.arange(count)
    if count <= SIDE:
        order = similarity_order(matrix(target, answer, count))
    places = np.empty(count, int)
    places[order] = np.arange(count)
    place_of = dict(zip(classes, places.tolist(), strict=True))
    return shown | {
        "picture": data_url(picture(places[target], places[answer], count), "PNG"),
        "count": count,
        "sorted": count <= SIDE,
        "names": [classes[place] for place in order] if count <= NAMED_CLASSES else [],
        "cells": [(place_of[row.predicted], place_of[row.label], row) for row in pairs.head(HOVERS).itertuples()],
    }


def matrix(target: np.ndarray, answer: np.ndarray, side: int) -> np.ndarray:
    """Return (side, side) counts of examples, a row per label, a column per answer, both (N,) int below `side`."""
    return np.bincount(target * side + answer, minlength=side**2).reshape(side, side)


def similarity_order(counts: np.ndarray) -> np.ndarray:
    """Order the classes of a matrix so that those that are confused stand together; unchanged if none are."""
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    similarity = (rates + rates.T) / 2
    np.fill_diagonal(similarity, 0)
    if len(counts) < 3 or not similarity.any():
        return np.arange(len(counts))
    distances = 1 - similarity
    np.fill_diagonal(distances, 0)
    return leaves_list(linkage(squareform(distances, checks=False), "average"))


def frequent_confusions(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per confused pair, most frequent first: label, predicted, examples, share of those of the label.

    Args:
        table: a row per example: label, predicted.
    """
    wrong = table[table.label != table.predicted]
    pairs = wrong.groupby(["label", "predicted"]).size().rename("examples").reset_index()
    pairs["share"] = pairs.examples / table.label.value_counts().reindex(pairs.label).to_numpy()
    return pairs.sort_values(["examples", "share"], ascending=False, kind="stable", ignore_index=True)


def picture(target: np.ndarray, answer: np.ndarray, n_classes: int) -> Image.Image:
    """Draw a pixel per cell, a row per label: the larger its share of the row, the more opaque.

    Args:
        target, answer: (N,) int: places of label and answer, in the order that is shown.
    """
    group = -(-n_classes // SIDE)
    side = -(-n_classes // group)
    counts = matrix(target // group, answer // group, side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., :3] = WRONG
    pixels[np.arange(side), np.arange(side), :3] = CORRECT
    pixels[..., 3] = np.round(255 * np.sqrt(shares))  # the root makes the few percent off the diagonal visible
    return Image.fromarray(pixels, "RGBA")
