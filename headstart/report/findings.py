"""What the page of results says in figures and words, out of the files that the stages leave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from headstart.evaluation.compare import figures, read_workspace

# When the page warns.
WIDE = 0.03  # half of the interval of the accuracy
FEW = 20  # test images of a class
BELOW = 0.1  # of a class' recall below the accuracy, with all of its interval below it
NAMED = 8  # classes that a warning names
MISCALIBRATED = 0.05  # calibration error, where bins beyond chance hold a tenth of the images

WORDS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}
LOWER_IS_BETTER = ("log_loss", "calibration_error")


def values(file: Path) -> dict[str, Any]:
    """A file of metrics; nothing where there is none.

    Raises:
        UserError: where the file holds something else.
    """
    return figures(read_workspace(file), str(file))


def headline(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a metric: name, final and head (value, low, high, and from, to, at in percent of a bar), gain."""
    gains = {row["metric"]: row for row in evaluation["gain"]["metrics"]}
    rows = []
    for name, final in evaluation["final"]["metrics"].items():
        head, gain = evaluation["head"]["metrics"][name], gains[name]
        low, high = min(final["low"], head["low"]), max(final["high"], head["high"])
        lower = name in LOWER_IS_BETTER
        surely = gain["low"] > 0 or gain["high"] < 0
        if name == "accuracy":  # has a test of its own
            surely = evaluation["gain"]["verdict"] != "no evidence"
        rows.append(
            {
                "name": WORDS.get(name) or f"in the first {name.split('_')[1]}",
                "share": name != "log_loss",
                "lower": lower,
                "final": final | _bar(final["value"], final["low"], final["high"], low, high),
                "head": head | _bar(head["value"], head["low"], head["high"], low, high),
                "gain": gain,
                "change": ("good" if (gain["difference"] < 0) == lower else "bad") if surely else "",
            }
        )
    return rows


def _bar(value: float, low: float, high: float, start: float = 0.0, end: float = 1.0) -> dict[str, float]:
    """Where an interval and its value lie in [start, end], in percent."""
    span = (end - start) or 1.0
    return {
        name: round(100 * (place - start) / span, 1) for name, place in (("at", value), ("from", low), ("to", high))
    }


def shipped(fine_tune: dict[str, Any], confidence: float) -> str:
    """What was shipped, and why."""
    if "tuned_val_loss" not in fine_tune:
        return "The head on the frozen backbone is shipped: fine_tune.unfreeze leaves nothing to train."
    kind, where = "val", "on the val images its"
    if "tuned_folds_loss" in fine_tune:
        kind, where = "folds", "folds of train and val judged what such training leads to: its"
    tuned, head = (fine_tune[f"{name}_{kind}_loss"] for name in ("tuned", "head"))
    losses = (
        f"{where} log loss is {tuned:.4f}, that of the head {head:.4f}; the confidence that its probabilities are "
        f"better, by the Brier score, is {fine_tune['tuned_confidence']:.3f}, and {confidence:g} is asked for"
    )
    broken = f"broke off after epoch {fine_tune['last_epoch']}, its loss being no number."
    if not fine_tune["finished"] and (kind == "folds" or not fine_tune["last_epoch"]):
        return f"The head as it was is shipped: fine-tuning {broken}"
    broken = "" if fine_tune["finished"] else f" Training {broken}"
    if fine_tune["fine_tuned"]:
        again = " Then it was trained again, the same way, on train and val." if fine_tune.get("refitted") else ""
        return f"The fine-tuned network is shipped: {losses}.{broken}{again}"
    return f"The head as it was is shipped. Fine-tuning was tried: {losses}, with no fewer answers right.{broken}"


def per_class(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the classes, the lowest F1 first, with `bar` for recall; those without test images last."""
    rows = sorted(evaluation["final"]["classes"], key=lambda row: (row["recall"] is None, row["f1"]))
    return [
        row | {"bar": _bar(row["recall"], row["recall_low"], row["recall_high"]) if row["recall"] is not None else None}
        for row in rows
    ]


def warnings(
    evaluation: dict[str, Any], fine_tuned: bool, reliability: pd.DataFrame, images: int
) -> Iterable[tuple[str, list[str], int]]:
    """What the figures are not good for: a sentence, classes that it is about, and how many more these are."""
    accuracy = evaluation["final"]["metrics"]["accuracy"]
    half = (accuracy["high"] - accuracy["low"]) / 2
    if half > WIDE:
        yield (
            f"{images:,} test images are few: the accuracy may as well be {100 * accuracy['low']:.1f} or "
            f"{100 * accuracy['high']:.1f} %. Smaller differences between two runs are not to be believed; python -m "
            "headstart.evaluation.compare judges them in pairs.",
            [],
            0,
        )
    rows = evaluation["final"]["classes"]
    few = [row["class"] for row in sorted(rows, key=lambda row: row["support"]) if row["support"] < FEW]
    if few:
        noun = "class has" if len(few) == 1 else "classes have"
        yield (
            f"{len(few):,} {noun} fewer than {FEW} test images, so that their figures say little:",
            few[:NAMED],
            max(0, len(few) - NAMED),
        )
    far = [
        row
        for row in rows
        if row["recall"] is not None
        and row["recall_high"] < accuracy["value"]
        and row["recall"] < accuracy["value"] - BELOW
    ]
    if far:
        far.sort(key=lambda row: row["recall"])
        noun = "class is" if len(far) == 1 else "classes are"
        yield (
            f"{len(far):,} {noun} found far less often than the others, beyond chance:",
            [f"{row['class']} ({100 * row['recall']:.0f} %)" for row in far[:NAMED]],
            max(0, len(far) - NAMED),
        )
    error = evaluation["final"]["metrics"]["calibration_error"]["value"]
    beyond = reliability[(reliability.confidence < reliability.low) | (reliability.confidence > reliability.high)]
    if error > MISCALIBRATED and beyond.images.sum() >= images / 10:
        sure = float((reliability.confidence * reliability.images).sum() / reliability.images.sum())
        direction = "too sure" if sure > accuracy["value"] else "less sure than it could be"
        yield (
            f"The probabilities are not to be taken at their word: the network is {direction}. It claims to be right "
            f"in {100 * sure:.1f} % of the cases and is in {100 * accuracy['value']:.1f} %; calibration error "
            f"{100 * error:.1f} %.",
            [],
            0,
        )
    if fine_tuned and evaluation["gain"]["verdict"] == "worse":
        yield "On the test images the head alone is better than the fine-tuned network that is shipped.", [], 0


def cost(costs: dict[str, float], extraction: dict[str, Any]) -> dict[str, Any]:
    """Seconds a stage with a bar, and other figures."""
    seconds = {name.removesuffix("_seconds"): value for name, value in costs.items() if name.endswith("_seconds")}
    longest = max(seconds.values(), default=0) or 1
    return {
        "stages": [(name, value, round(100 * value / longest, 1)) for name, value in seconds.items()],
        "total": sum(seconds.values()),
        "latency_ms": costs.get("latency_ms"),
        "extraction": extraction,
    }
