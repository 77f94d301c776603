"""Is the difference real? Two revisions, experiments or files of predictions, compared on the examples that both have.

McNemar's exact test judges accuracy; intervals are 95 %, by resampling examples in pairs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from headstart.data.predictions import PROBABILITY, classes_of
from headstart.errors import UserError
from headstart.evaluation.formatting import comparison_as_markdown, comparison_as_text, write_text
from headstart.evaluation.metrics import Predictions
from headstart.evaluation.paired import PairedPredictions
from headstart.evaluation.results import WORKSPACE, Results, flatten, load_results

DEFAULTS = {"evaluate.top_k": 3, "evaluate.resamples": 1000, "seed": 42}  # if only predictions are given


def compare(base: str, head: str = WORKSPACE, format: str = "text", output: Path | None = None) -> None:
    """Print a comparison, or write it to `output`; `gate` can turn the verdict into an exit code.

    Args:
        base: a revision, the name of an experiment, or a .csv file of predictions; `head` likewise.
        format: text, markdown or json.

    Raises:
        UserError: if there is nothing to compare, or the file cannot be written.
    """
    comparison = compare_results(load_results(base), load_results(head))
    formats = {"text": comparison_as_text, "markdown": comparison_as_markdown}
    write_text(formats[format](comparison) if format in formats else json.dumps(comparison, indent=2) + "\n", output)


class PairedResults(NamedTuple):
    """What two runs have in common.

    Attributes:
        scores: on the examples that both have, under the same label, of a class that both have.
        base: rows of those examples, as in Results.predictions; `head` likewise, in the same order.
        classes: names of the classes that both have.
        relabelled: how many examples are left out since their labels differ.
    """

    scores: PairedPredictions
    base: pd.DataFrame
    head: pd.DataFrame
    classes: list[str]
    relabelled: int


def pair_results(base: Results, head: Results, top_k: int = 1) -> PairedResults:
    """Pair the predictions of two runs for the same examples.

    Raises:
        UserError: if they do not share two examples and two classes.
    """
    a, b = base.predictions, head.predictions
    shared = a.index.intersection(b.index)
    is_same = (a.label[shared] == b.label[shared]).to_numpy()
    known = set(head.classes)
    classes = [name for name in base.classes if name in known]
    # If only one of them has a class, the other one could never predict it.
    chosen = shared[is_same & a.label[shared].isin(classes).to_numpy()]
    if len(chosen) < 2 or len(classes) < 2:
        raise UserError(
            f"{base.name} and {head.name} do not have two examples of the same label in common; compare runs on "
            "the same data"
        )
    a, b = a.loc[chosen], b.loc[chosen]
    other = set(base.classes) != known
    scores = PairedPredictions(*(_predictions_for(classes, rows, top_k, other) for rows in (a, b)))
    return PairedResults(scores, a, b, classes, int((~is_same).sum()))


def _predictions_for(classes: list[str], rows: pd.DataFrame, top_k: int, other: bool) -> Predictions:
    """The predictions in `rows` among `classes`, and `other` than these, which no label is."""
    targets, answers = (pd.Index(classes).get_indexer(rows[name]) for name in ("label", "predicted"))
    known = rows[[PROBABILITY + name for name in classes]].to_numpy(np.float64)
    if not other:
        return Predictions(targets, known, top_k, answers=answers)
    others = pd.Index(classes_of(rows)).difference(classes)
    probabilities = np.column_stack([known, rows[PROBABILITY + others].to_numpy(np.float64).max(axis=1, initial=0.0)])
    return Predictions(targets, probabilities, top_k, other=True, answers=np.where(answers < 0, len(classes), answers))


def compare_results(base: Results, head: Results) -> dict[str, Any]:
    """Return everything that text and Markdown show, as JSON can hold it; top_k, resamples and seed are those of head.

    Raises:
        UserError: if the runs do not share two examples and two classes.
    """
    asked = {name: value for name, value in flatten(head.params).items() if isinstance(value, int) and value >= 0}
    top_k, resamples, seed = (asked.get(name, default) for name, default in DEFAULTS.items())
    paired = pair_results(base, head, top_k)
    scores, a, b = paired.scores, paired.base, paired.head
    changed = np.flatnonzero(scores.base.correct != scores.head.correct)
    return {
        "base": base.name,
        "head": head.name,
        "outdated": [run.name for run in (base, head) if run.outdated],
        "examples": {
            "compared": len(a),
            "only_base": len(base.predictions.index.difference(head.predictions.index)),
            "only_head": len(head.predictions.index.difference(base.predictions.index)),
            "relabelled": paired.relabelled,
        },
        "classes_left_out": sorted(set(base.classes) ^ set(head.classes)),
        **scores.summary(resamples, seed),
        "classes": scores.per_class(paired.classes).to_dict("records"),
        "changed_predictions": [
            {"item_id": a.index[row], "path": b.path.iloc[row], "label": a.label.iloc[row],
             "base": a.predicted.iloc[row], "head": b.predicted.iloc[row], "fixed": bool(scores.head.correct[row])}
            for row in changed
        ],
        "cost": _side_by_side(base.costs, head.costs),
        "params": {
            name: pair
            for name, pair in sorted(_side_by_side(flatten(base.params), flatten(head.params)).items())
            if base.params and head.params and pair["base"] != pair["head"]
        },
    }  # fmt: skip


def _side_by_side(base: dict[str, Any], head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {"base": base.get(name), "head": head.get(name)} for name in {**base, **head}}
