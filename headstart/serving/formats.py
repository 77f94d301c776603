"""Predictions as text, CSV or JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TextIO

import numpy as np

from headstart.outputs import DECIMALS, spreadsheet_safe

LONGEST = 4096  # characters of a text that is its own name; no path is longer
FLAG = "unlike the training data"
# Characters that end a line, move the cursor, or reverse the direction of text.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Prediction(NamedTuple):
    """What the network says about one input.

    Attributes:
        probabilities: (n_classes,), or empty if the input cannot be read.
        distance: from the training examples; above 1: out of distribution; None if it is not known.
        problem: why the input cannot be read.
        remark: what is odd about it, see `Modality.load_with_remark`.
    """

    name: str
    probabilities: np.ndarray
    distance: float | None = None
    problem: str = ""
    remark: str = ""

    @property
    def is_flagged(self) -> bool:
        """Whether it is out of distribution."""
        return self.distance is not None and self.distance > 1


def printable(name: str) -> str:
    """Return `name` with its control characters escaped as Python writes them; of a long text its beginning."""
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}..."
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
    columns = ["path", "label", "probability", "distance", "unlike"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, *(f"p_{name}" for name in classes)])
    for prediction in predictions:
        row = _row(classes, prediction)
        row |= {name: spreadsheet_safe(row[name]) for name in ("path", "label")}
        row |= {"unlike": str(row["unlike"]).lower()} if "unlike" in row else {}
        writer.writerow([*(row.get(name, "") for name in columns), *row["probabilities"].values()])


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
