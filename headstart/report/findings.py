"""What the results page says in numbers and sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from headstart.evaluation.paired import NO_EVIDENCE

# When the page warns.
WIDE = 0.03  # half of the interval of accuracy
FEW = 20  # test examples of a class
BELOW = 0.1  # recall of a class below accuracy, with all of its interval
NAMED = 8  # classes that a warning names
MISCALIBRATED = 0.05  # calibration error, if bins beyond chance hold a tenth of the examples

NAMES = {"macro_f1": "macro F1", "log_loss": "log loss", "calibration_error": "calibration error"}
LOWER_IS_BETTER = ("log_loss", "calibration_error")


class Caveat(NamedTuple):
    """A sentence, the classes that it is about, and how many more there are."""

    sentence: str
    classes: list[str] = []  # noqa: RUF012  a named tuple's default, never changed
    more: int = 0


def headline(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per metric: name, final and head (value, low, high, and from, to, at in percent of a bar), gain."""
    gains = {row["metric"]: row for row in evaluation["gain"]["metrics"]}
    rows = []
    for name, final in evaluation["final"]["metrics"].items():
        head, gain, lower = evaluation["head"]["metrics"][name], gains[name], name in LOWER_IS_BETTER
        ends = min(final["low"], head["low"]), max(final["high"], head["high"])
        significant = gain["low"] > 0 or gain["high"] < 0
        if name == "accuracy":  # it has a test of its own
            significant = evaluation["gain"]["verdict"] != NO_EVIDENCE
        rows.append(
            {
                "name": NAMES.get(name) or name.replace("_", "-", 1).replace("_", " "),  # accuracy, top_3_accuracy
                "share": name != "log_loss",
                "lower": lower,
                "final": final | _bar(final["value"], final["low"], final["high"], *ends),
                "head": head | _bar(head["value"], head["low"], head["high"], *ends),
                "gain": gain,
                "change": ("good" if (gain["difference"] < 0) == lower else "bad") if significant else "",
            }
        )
    return rows


def _bar(value: float, low: float, high: float, start: float = 0.0, end: float = 1.0) -> dict[str, float]:
    """Where an interval and its value lie in [start, end], in percent."""
    span = (end - start) or 1.0
    return {
        name: round(100 * (place - start) / span, 1) for name, place in (("at", value), ("from", low), ("to", high))
    }


def selection(fine_tune: dict[str, Any]) -> str:
    """Return in words which network was selected, and why, by reports/fine_tune.json."""
    better = fine_tune["selected"] == "fine_tuned"
    return f"The {'fine-tuned network' if better else 'head'} was selected: {fine_tune['reason']}."


def per_class(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the classes, lowest F1 first, with `bar` for recall; those without test examples last."""
    rows = sorted(evaluation["final"]["classes"], key=lambda row: (row["recall"] is None, row["f1"]))
    return [
        row | {"bar": _bar(row["recall"], row["recall_low"], row["recall_high"]) if row["recall"] is not None else None}
        for row in rows
    ]


def caveats(evaluation: dict[str, Any], fine_tuned: bool, reliability: pd.DataFrame, count: int) -> Iterator[Caveat]:
    """Yield what limits the conclusions to be drawn from the figures.

    Args:
        evaluation: reports/evaluate.json.
        fine_tuned: whether the fine-tuned network was selected.
        reliability: plots/reliability.csv.
        count: test examples.
    """
    accuracy = evaluation["final"]["metrics"]["accuracy"]
    low, high = (100 * accuracy[bound] for bound in ("low", "high"))
    if high - low > 200 * WIDE:
        yield Caveat(
            f"There are only {count:,} test examples: the true accuracy may be anything from {low:.1f} to {high:.1f} "
            "%. Do not trust smaller differences between runs; `headstart compare` tests them on paired predictions."
        )
    rows = evaluation["final"]["classes"]
    few = [row["class"] for row in sorted(rows, key=lambda row: row["support"]) if row["support"] < FEW]
    if few:
        noun, their = ("class has", "its") if len(few) == 1 else ("classes have", "their")
        yield _about_classes(f"{len(few):,} {noun} fewer than {FEW} test examples, so {their} metrics are noisy:", few)
    known = sorted((row for row in rows if row["recall"] is not None), key=lambda row: row["recall"])
    value = accuracy["value"]
    low_recall = [row for row in known if row["recall_high"] < value and row["recall"] < value - BELOW]
    if low_recall:
        noun = "class has" if len(low_recall) == 1 else "classes have"
        names = [f"{row['class']} ({100 * row['recall']:.0f} %)" for row in low_recall]
        yield _about_classes(f"{len(low_recall):,} {noun} a recall significantly below the accuracy:", names)
    error = evaluation["final"]["metrics"]["calibration_error"]["value"]
    beyond = reliability[(reliability.confidence < reliability.low) | (reliability.confidence > reliability.high)]
    if error > MISCALIBRATED and beyond.examples.sum() >= count / 10:
        confidence = float(np.average(reliability.confidence, weights=reliability.examples))
        direction = "overconfident" if confidence > accuracy["value"] else "underconfident"
        yield Caveat(
            f"The probabilities are miscalibrated: the network is {direction}. Its mean confidence is "
            f"{100 * confidence:.1f} % and its accuracy {100 * accuracy['value']:.1f} %; calibration error "
            f"{100 * error:.1f} %."
        )
    if fine_tuned and evaluation["gain"]["verdict"] == "worse":
        yield Caveat("On the test split, the head alone is better than the fine-tuned network that was selected.")


def _about_classes(sentence: str, names: list[str]) -> Caveat:
    return Caveat(sentence, names[:NAMED], max(0, len(names) - NAMED))


def costs_of_stages(costs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return seconds per stage with a bar, their sum, latency, rate and device of extract, and what the store had.

    Args:
        costs: what `costs.read` returns, by stage.
    """
    seconds = {stage: row[f"{stage}_seconds"] for stage, row in costs.items() if f"{stage}_seconds" in row}
    longest = max(seconds.values(), default=0) or 1
    return {
        "stages": [(stage, value, round(100 * value / longest, 1)) for stage, value in seconds.items()],
        "total": sum(seconds.values()),
        "latency_ms": costs["evaluate"].get("latency_ms"),
        "examples_per_second": costs["extract"].get("examples_per_second"),
        "from_store": costs["extract"].get("from_store", 0),
        "features": costs["extract"].get("from_store", 0) + costs["extract"].get("computed", 0),
        "device": costs["extract"].get("device"),
    }
