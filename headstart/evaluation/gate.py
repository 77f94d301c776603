"""Is the run in the workspace good enough to be merged? Its figures are checked against `gate` in params.yaml."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart import paths
from headstart.config import Gate, load_params
from headstart.errors import UserError, did_you_mean
from headstart.evaluation.compare import compare_results
from headstart.evaluation.formatting import describe, write_text
from headstart.evaluation.results import WORKSPACE, load_results, parse_figures
from headstart.lockfile import Workspace, up_to_date_stages

OK, BROKEN, NOT_ASKED, NOT_JUDGED = "ok", "BROKEN", "not asked", "not judged"


@dataclass(frozen=True)
class Verdict:
    """Whether the run meets a rule.

    Attributes:
        rule: its key in params.yaml, followed by the class if it is about one.
        bound: what params.yaml asks for, as text.
        found: the figure that was compared with it, or why there is none.
        status: OK, BROKEN, NOT_ASKED or NOT_JUDGED.
    """

    rule: str
    bound: str
    found: str
    status: str


@dataclass(frozen=True)
class Figures:
    """What is known of the run in the workspace; None or empty if it is missing.

    Attributes:
        accuracy: on test.
        classes: rows of reports/evaluate.json, by class.
    """

    accuracy: float | None
    model_mb: float | None
    classes: dict[str, dict[str, Any]]


def gate(base: str | None) -> int:
    """Print every rule with its figure and verdict, and on stderr those that are broken.

    Args:
        base: what `max_drop` compares with: a revision, the name of an experiment or a .csv file of predictions.

    Returns:
        1 if a rule is broken or a figure that it needs is missing, else 0.

    Raises:
        UserError: if the results do not belong to the params and code in the workspace, or a class is unknown.
    """
    params = load_params()
    if "evaluate" not in up_to_date_stages(Workspace(), params.model_dump()):
        raise UserError("the results in the workspace do not belong to its params and code; run `dvc repro`")
    compare = (lambda: compare_results(load_results(base), load_results(WORKSPACE))) if base else None
    verdicts = list(judge(params.gate, read_figures(), compare))
    widths = [max(len(getattr(row, name)) for row in verdicts) for name in ("status", "rule", "bound")]
    lines = [
        f"{row.status:{widths[0]}}  {row.rule:{widths[1]}}  {row.bound:{widths[2]}}  {row.found}".rstrip()
        for row in verdicts
    ]
    write_text("\n".join(lines) + "\n", None)
    broken = [row for row in verdicts if row.status == BROKEN]
    for row in broken:
        print(f"gate: {row.rule} {row.bound} is broken: {row.found}", file=sys.stderr)
    return 1 if broken else 0


def read_figures() -> Figures:
    """Read the figures of the workspace.

    Raises:
        UserError: if the files come from two runs.
    """
    metrics, report = (_read(file) for file in (paths.metrics("evaluate"), paths.report("evaluate")))
    try:
        final = report.get("final") or {"classes": []}
        if metrics and report and round(final["metrics"]["accuracy"]["value"], 6) != metrics["accuracy"]:
            raise ValueError
        classes = {row["class"]: row for row in final["classes"]}
    except (KeyError, TypeError, ValueError) as error:
        files = f"{paths.metrics('evaluate')} and {paths.report('evaluate')}"
        raise UserError(f"{files} come from two runs; run `dvc checkout`, or `dvc repro`") from error
    return Figures(metrics.get("accuracy"), report.get("model_mb"), classes)


def _read(file: Path) -> dict[str, Any]:
    return parse_figures(Workspace().read(file), str(file))


def judge(rules: Gate, figures: Figures, compare: Callable[[], dict[str, Any]] | None) -> Iterator[Verdict]:
    """Return a verdict per rule, in the order of params.yaml.

    Args:
        compare: makes the comparison with another run, see `compare_results`; None: there is no other run.

    Raises:
        UserError: if a class that has its own bound is unknown.
    """
    yield _bound("min_accuracy", rules.min_accuracy, figures.accuracy, paths.metrics("evaluate"))
    yield from _recalls(rules.min_recall, rules.min_recall_of, figures.classes)
    yield _drop(rules.max_drop, compare)
    yield _latency(rules.max_latency_ms)
    yield _bound("max_model_mb", rules.max_model_mb, figures.model_mb, paths.report("evaluate"))


def _bound(rule: str, bound: float | None, found: float | None, file: Path) -> Verdict:
    """Whether a figure is at least the bound of a rule named min_..., or at most that of one named max_..."""
    if bound is None:
        return Verdict(rule, "", "" if found is None else f"{found:.6g}", NOT_ASKED)
    if found is None:
        return Verdict(rule, f"{bound:g}", f"missing in {file}: run `dvc repro`", BROKEN)
    holds = found >= bound if rule.startswith("min_") else found <= bound
    return Verdict(rule, f"{bound:g}", f"{found:.6g}", OK if holds else BROKEN)


def _recalls(bound: float | None, bounds: dict[str, float], classes: dict[str, dict[str, Any]]) -> Iterator[Verdict]:
    """One verdict for the general bound, which names every class below it; one for each class with its own."""
    unknown = [name for name in bounds if name not in classes] if classes else []
    if unknown:
        advice = did_you_mean(unknown[0], classes) or f"; the classes are {', '.join(classes)}"
        raise UserError(f"params.yaml: gate.min_recall_of.{unknown[0]}: there is no such class{advice}")
    missing = f"missing in {paths.report('evaluate')}: run `dvc repro`"
    others = sorted((row for name, row in classes.items() if name not in bounds), key=lambda row: row["recall"] or 0.0)
    if bound is None:
        yield Verdict("min_recall", "", "; ".join(map(_recall, others[:1])), NOT_ASKED)
    elif not classes:
        yield Verdict("min_recall", f"{bound:g}", missing, BROKEN)
    else:
        below = [row for row in others if not _holds(row, bound)]
        found = "; ".join(map(_recall, below or others[:1]))
        yield Verdict("min_recall", f"{bound:g}", found, BROKEN if below else OK)
    for name, own in bounds.items():
        row = classes.get(name)
        found = missing if row is None else _recall(row)
        yield Verdict(f"min_recall_of.{name}", f"{own:g}", found, OK if row and _holds(row, own) else BROKEN)


def _holds(row: dict[str, Any], bound: float) -> bool:
    return row["recall"] is not None and row["recall"] >= bound


def _recall(row: dict[str, Any]) -> str:
    if row["recall"] is None:
        return f"{row['class']} has no test examples"
    return (
        f"{row['class']} {row['recall']:.4f} ({row['support']:,} examples, 95 % interval {row['recall_low']:.4f} to "
        f"{row['recall_high']:.4f})"
    )


def _drop(bound: float | None, compare: Callable[[], dict[str, Any]] | None) -> Verdict:
    if bound is None:
        return Verdict("max_drop", "", "", NOT_ASKED)
    if compare is None:
        return Verdict("max_drop", f"{bound:g}", "no BASE is given", NOT_JUDGED)
    try:
        comparison = compare()
    except UserError as error:
        return Verdict("max_drop", f"{bound:g}", f"missing: {error}", BROKEN)
    accuracy = next(row for row in comparison["metrics"] if row["metric"] == "accuracy")
    drop = accuracy["base"] - accuracy["head"]
    is_larger = drop > bound and not math.isclose(drop, bound)  # 0.98 - 0.96 is above 0.02
    status = BROKEN if comparison["verdict"] == "worse" and is_larger else OK
    return Verdict("max_drop", f"{bound:g}", describe(comparison).replace("**", ""), status)


def _latency(bound: float | None) -> Verdict:
    if bound is None:
        return Verdict("max_latency_ms", "", "", NOT_ASKED)
    from headstart.evaluation.shipped_model import latency_ms  # TensorFlow takes seconds to import
    from headstart.training.networks import load_classifier

    try:
        return _bound("max_latency_ms", bound, latency_ms(load_classifier(paths.MODEL)), paths.MODEL)
    except UserError as error:
        return Verdict("max_latency_ms", f"{bound:g}", f"missing: {error}", BROKEN)
