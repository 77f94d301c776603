"""What the page of results draws: curves, reliability, the confusion matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart.report import confusions
from headstart.report.charts import Chart
from headstart.report.page import data_address

TABLE_CLASSES = 25  # whose matrix is a table of counts; of more it is a picture
NAMED_CLASSES = 60  # whose names stand beside the picture
PAIRS = 15  # confusions that are listed
HOVERS = 400  # cells of the picture that say what they are


def training(title: str, file: Path, best: int | None) -> list[Chart]:
    """Loss and accuracy by epoch, on train and val; none where nothing was trained."""
    table = pd.read_csv(file)
    if table.empty:
        return []
    first, last = int(table.epoch.min()), int(table.epoch.max())
    across = (first, last) if last > first else (first - 1, last + 1)
    losses = table[["loss", "val_loss"]].to_numpy(float)
    highest = np.nanmax(np.where(np.isfinite(losses), losses, np.nan), initial=1e-6)
    shares = table[["accuracy", "val_accuracy"]].to_numpy(float)
    lowest = np.nanmin(np.where(np.isfinite(shares), shares, np.nan), initial=0.95)
    drawn = []
    for name, y in (("loss", (0.0, 1.05 * highest)), ("accuracy", (np.floor(10 * lowest) / 10, 1.0))):
        chart = Chart(f"{title}, {name}", "epoch", name, across, y, whole=True)
        chart.best = chart.across(best) if best else None
        chart.line("train", table.epoch, table[name])
        chart.line("val", table.epoch, table[f"val_{name}"])
        drawn.append(chart)
    return drawn


def reliability(table: pd.DataFrame) -> Chart:
    """Accuracy at each confidence, with intervals, and the line that they lie on where probabilities are true."""
    chart = Chart("Reliability", "confidence", "share that is right", (0, 1), (0, 1))
    chart.line("ideal", [0, 1], [0, 1])
    for row in table.itertuples():
        said = f"{row.images:,} images: {100 * row.confidence:.1f} % sure, {100 * row.accuracy:.1f} % right"
        chart.mark("test", row.confidence, row.accuracy, row.low, row.high, said)
    return chart


def precision_recall(table: pd.DataFrame) -> Chart:
    """Precision by recall, over all pairs of image and class."""
    chart = Chart("Precision and recall, over all classes", "recall", "precision", (0, 1), (0, 1))
    chart.line("test", table.recall, table.precision)
    return chart


def confusion(table: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """The confusion matrix: `rows` of counts for few classes, else a `picture` with `cells` that say what they are.

    Args:
        table: a row an image: label, predicted, actual and answer, the places of both among the classes.
    """
    count, pairs = len(classes), confusions.frequent(table)
    found: dict[str, Any] = {"pairs": pairs, "first": pairs.head(PAIRS).to_dict("records"), "rows": None}
    actual, answer = table.actual.to_numpy(), table.answer.to_numpy()
    if count <= TABLE_CLASSES:
        rows = []
        for label, cells in zip(classes, confusions.matrix(actual, answer, count), strict=True):
            shares = cells / max(cells.sum(), 1)
            strengths = (100 * np.sqrt(shares)).round(1)  # as in the picture
            rows.append({"label": label, "cells": [*zip(cells.tolist(), shares.tolist(), strengths, strict=True)]})
        return found | {"rows": rows, "classes": classes, "longest": max(map(len, classes))}
    shown = np.arange(count)
    if count <= confusions.SIDE:
        shown = confusions.order(confusions.matrix(actual, answer, count))
    places = np.empty(count, int)
    places[shown] = np.arange(count)
    by_name = dict(zip(classes, places.tolist(), strict=True))
    return found | {
        "picture": data_address(confusions.picture(places[actual], places[answer], count), "PNG"),
        "count": count,
        "sorted": count <= confusions.SIDE,
        "names": [classes[place] for place in shown] if count <= NAMED_CLASSES else [],
        "cells": [(by_name[row.predicted], by_name[row.label], row) for row in pairs.head(HOVERS).itertuples()],
    }
