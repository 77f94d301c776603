"""Predictions as text, CSV or JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TextIO

import numpy as np

from headstart.outputs import DECIMALS

FLAG = "unlike the training data"
# Characters that end a line, move the cursor, or reverse the direction of text.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Prediction(NamedTuple):
    """What the network says about one input.

    Attributes:
        probabilities: (n_classes,), or empty if the input cannot be read.
        distance: from the training images; above 1: out of distribution; None if it is not known.
        problem: why the input cannot be read.
    """

    name: str
    probabilities: np.ndarray
    distance: float | None = None
    problem: str = ""

    @property
    def is_flagged(self) -> bool:
        """Whether it is out of distribution."""
        return self.distance is not None and self.distance > 1


class Tally:
    """Passes on the predictions for inputs that could be read; counts them, and collects the others.

    Attributes:
        read, flagged: counts.
        problems: name of an input, and why it could not be read.
    """

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self._predictions = predictions
        self.read = self.flagged = 0
        self.problems: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Prediction]:
        for prediction in self._predictions:
            if prediction.problem:
                self.problems.append((prediction.name, prediction.problem))
            else:
                self.read += 1
                self.flagged += prediction.is_flagged
                yield prediction


def printable(name: str) -> str:
    """Return `name` with its control characters escaped as Python writes them."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], name)


def write_text(stream: TextIO, classes: list[str], predictions: Iterable[Prediction]) -> None:
    """Write a line per input."""
    classes = list(map(printable, classes))
    width = max(map(len, classes))
    for prediction in predictions:
        flag = f"  {FLAG}" if prediction.is_flagged else ""
        label, probability = classes[prediction.probabilities.argmax()], prediction.probabilities.max()
        stream.write(f"{label:<{width}}  {probability:.4f}  {printable(prediction.name)}{flag}\n")


def write_csv(stream: TextIO, classes: list[str], predictions: Iterable[Prediction]) -> None:
    """Write a row per input; `distance` and `unlike` are empty if they are not known."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["path", "label", "probability", "distance", "unlike", *(f"p_{name}" for name in classes)])
    for prediction in predictions:
        row = _row(classes, prediction)
        known = (row.get("distance", ""), str(row["unlike"]).lower() if "unlike" in row else "")
        writer.writerow([row["path"], row["label"], row["probability"], *known, *row["probabilities"].values()])


def write_json(stream: TextIO, classes: list[str], predictions: Iterable[Prediction]) -> None:
    """Write a list with an object per input; `distance` and `unlike` are missing if they are not known."""
    separator = "[\n"
    for prediction in predictions:
        text = json.dumps(_row(classes, prediction), indent=2, ensure_ascii=False)
        stream.write(separator + "  " + text.replace("\n", "\n  "))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def _row(classes: list[str], prediction: Prediction) -> dict[str, Any]:
    values = [round(float(value), DECIMALS) for value in prediction.probabilities]
    row: dict[str, Any] = {
        "path": prediction.name,
        "label": classes[prediction.probabilities.argmax()],
        "probability": max(values),
        "probabilities": dict(zip(classes, values, strict=True)),
    }
    if prediction.distance is not None:
        row |= {"distance": round(prediction.distance, DECIMALS), "unlike": prediction.is_flagged}
    return row


FORMATS: dict[str, Callable[[TextIO, list[str], Iterable[Prediction]], None]] = {
    "text": write_text,
    "csv": write_csv,
    "json": write_json,
}
