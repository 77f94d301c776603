"""What is found on images, and how it is written: as lines, CSV or JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TextIO

import numpy as np

from headstart.outputs import DECIMALS

MARK = "unlike the training images"
# What ends a line, moves the cursor, or turns the order of letters.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Answer(NamedTuple):
    """What is found for an image.

    Attributes:
        probabilities: (n_classes,), or empty where it cannot be read.
        distance: from the training images, above 1: unlike them; None where that is not known.
        problem: why it cannot be read.
    """

    name: str
    probabilities: np.ndarray
    distance: float | None = None
    problem: str = ""


class Counted:
    """Passes on the answers of images that were read, and counts."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self._answers = answers
        self.read = self.flagged = 0
        self.problems: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Answer]:
        for answer in self._answers:
            if answer.problem:
                self.problems.append((answer.name, answer.problem))
            else:
                self.read += 1
                self.flagged += answer.distance is not None and answer.distance > 1
                yield answer


def shown(name: str) -> str:
    """`name` on a line of text: its control characters escaped as Python writes them."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], name)


def write_text(stream: TextIO, classes: list[str], answers: Iterable[Answer]) -> None:
    """A line an image."""
    classes = list(map(shown, classes))
    width = max(map(len, classes))
    for answer in answers:
        mark = f"  {MARK}" if answer.distance is not None and answer.distance > 1 else ""
        label, probability = classes[answer.probabilities.argmax()], answer.probabilities.max()
        stream.write(f"{label:<{width}}  {probability:.4f}  {shown(answer.name)}{mark}\n")


def write_csv(stream: TextIO, classes: list[str], answers: Iterable[Answer]) -> None:
    """A row an image; `distance` and `unlike` are empty where they are not known."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["path", "label", "probability", "distance", "unlike", *(f"p_{name}" for name in classes)])
    for answer in answers:
        row = _row(classes, answer)
        known = (row.get("distance", ""), str(row["unlike"]).lower() if "unlike" in row else "")
        writer.writerow([row["path"], row["label"], row["probability"], *known, *row["probabilities"].values()])


def write_json(stream: TextIO, classes: list[str], answers: Iterable[Answer]) -> None:
    """A list with an object an image; `distance` and `unlike` are missing where they are not known."""
    separator = "[\n"
    for answer in answers:
        text = json.dumps(_row(classes, answer), indent=2, ensure_ascii=False)
        stream.write(separator + "  " + text.replace("\n", "\n  "))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def _row(classes: list[str], answer: Answer) -> dict[str, Any]:
    values = [round(float(value), DECIMALS) for value in answer.probabilities]
    row: dict[str, Any] = {
        "path": answer.name,
        "label": classes[answer.probabilities.argmax()],
        "probability": max(values),
        "probabilities": dict(zip(classes, values, strict=True)),
    }
    if answer.distance is not None:
        row |= {"distance": round(answer.distance, DECIMALS), "unlike": answer.distance > 1}
    return row


FORMATS: dict[str, Callable[[TextIO, list[str], Iterable[Answer]], None]] = {
    "text": write_text,
    "csv": write_csv,
    "json": write_json,
}
