"""Is the difference real? Two revisions, experiments or files of predictions, compared on the examples that both have.

McNemar's exact test judges accuracy; intervals are 95 %, by resampling examples in pairs. If the classes differ, both
runs are judged on the examples of the classes that both know, as if there were no other classes: each answer is the
most probable one of these. Else the run that knows fewer classes would look better, since it has less to confuse.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from headstart.data.predictions import PROBABILITY
from headstart.errors import UserError
from headstart.evaluation.class_changes import ClassChanges, find_class_changes
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
        scores: on the examples that both have, under the same label, of a class that both know.
        base: rows of those examples, as in Results.predictions, with label and predicted under the names of head;
            `head` likewise, in the same order.
        classes: names in head of the classes that both know.
        changes: how the classes of head differ from those of base.
        relabelled: how many examples are left out since their labels differ, though both know either.
        left_out: how many examples of each other class there are, in base and head together.
        others: how many of the compared examples base answered with a class that head does not know, and vice versa.
    """

    scores: PairedPredictions
    base: pd.DataFrame
    head: pd.DataFrame
    classes: list[str]
    changes: ClassChanges
    relabelled: int
    left_out: dict[str, int]
    others: tuple[int, int]


def class_changes(base: Results, head: Results) -> ClassChanges:
    """Return how the classes of head differ from those of base."""
    return find_class_changes(base.classes, base.predictions.label, head.classes, head.predictions.label)


def pair_results(base: Results, head: Results, top_k: int = 1) -> PairedResults:
    """Pair the predictions of two runs for the same examples.

    Raises:
        UserError: if they do not share two examples and two classes.
    """
    changes = class_changes(base, head)
    known = {"base": changes.known, "head": {name: name for name in changes.known.values()}}
    labels = pd.DataFrame({"base": base.predictions.label, "head": head.predictions.label})
    common = labels.apply(lambda column: column.map(known[str(column.name)]))
    is_shared = labels.notna().all(axis=1)
    is_known = is_shared & common.notna().all(axis=1)
    is_same = is_known & (common.base == common["head"])
    # An example that only one run has, or both under classes that are not the same, belongs to a class of head first.
    other = [labels[side].where(common[side].isna()) for side in ("head", "base")]
    left_out = other[0].fillna(other[1]).value_counts().to_dict()
    classes, chosen = list(known["head"]), base.predictions.index[is_same[base.predictions.index]]
    if len(chosen) < 2 or len(classes) < 2:
        raise UserError(
            f"{base.name} and {head.name} do not have two examples and two classes in common: they share "
            f"{is_shared.sum():,} examples, {len(chosen):,} of them under the same label, and {len(classes):,} classes"
            f"{f' ({changes})' if changes else ''}; compare runs on the same data"
        )
    a, b = base.predictions.loc[chosen], head.predictions.loc[chosen]
    restricted = len(classes) < max(len(base.classes), len(head.classes))
    scores = PairedPredictions(
        _predictions_for(a, known["base"], top_k, restricted), _predictions_for(b, known["head"], top_k, restricted)
    )
    others = [
        int((~rows.predicted.isin(list(names))).sum()) for rows, names in ((a, known["base"]), (b, known["head"]))
    ]
    a, b = (
        rows.assign(label=b.label, predicted=_names(side.predicted, classes, rows.predicted))
        for rows, side in ((a, scores.base), (b, scores.head))
    )
    relabelled = int((is_known & ~is_same).sum())
    return PairedResults(scores, a, b, classes, changes, relabelled, left_out, (others[0], others[1]))


def _predictions_for(rows: pd.DataFrame, known: dict[str, str], top_k: int, restricted: bool) -> Predictions:
    """The predictions in `rows` among the classes `known`.

    Args:
        restricted: whether there are other classes. Then the most probable one of `known` is the answer; if all of them
            have the probability 0, it is none of them, which is wrong.
    """
    targets, answers = (pd.Index(known).get_indexer(rows[name]) for name in ("label", "predicted"))
    probabilities = rows[[PROBABILITY + name for name in known]].to_numpy(np.float64)
    if not restricted:
        return Predictions(targets, probabilities, top_k, answers=answers)
    none = probabilities.sum(axis=1, keepdims=True) == 0
    probabilities = np.column_stack([probabilities, none])
    # The predicted class stays the answer: rounded probabilities can be equal.
    answers = np.where(answers < 0, probabilities.argmax(axis=1), answers)
    return Predictions(targets, probabilities, top_k, other=True, answers=answers)


def _names(answers: np.ndarray, classes: list[str], predicted: pd.Series) -> np.ndarray:
    """The names of `answers`; of those that are none of `classes` as they stand in `predicted`."""
    return np.where(answers < len(classes), np.array([*classes, ""], dtype=object)[answers], predicted)


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
        "outdated": {run.name: run.outdated for run in (base, head) if run.outdated},
        "examples": {
            "compared": len(a),
            "only_base": len(base.predictions.index.difference(head.predictions.index)),
            "only_head": len(head.predictions.index.difference(base.predictions.index)),
            "relabelled": paired.relabelled,
        },
        "class_changes": paired.changes.records(),
        "classes_compared": len(paired.classes),
        "classes_left_out": paired.left_out,
        "answers_left_out": dict(zip(("base", "head"), paired.others, strict=True)),
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
