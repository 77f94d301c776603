"""Is the run in the workspace good enough to be merged? Its figures are checked against `gate` in params.yaml."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from headstart import paths
from headstart.config import Gate, load_params
from headstart.errors import UserError, did_you_mean, readable
from headstart.evaluation.compare import class_changes, compare_results
from headstart.evaluation.formatting import describe, write_text
from headstart.evaluation.results import WORKSPACE, Results, load_results, naming, numbers, parse_figures
from headstart.lockfile import Workspace, is_recorded, up_to_date_stages

OK, FAILED, UNKNOWN, NOT_SET, SKIPPED = "ok", "FAILED", "UNKNOWN", "not set", "skipped"
NO_BASE = "there is no BASE to compare with"
METRICS, REPORT = paths.metrics("evaluate"), paths.report("evaluate")


class Verdict(NamedTuple):
    """Whether the run meets a rule.

    Attributes:
        rule: its key in params.yaml; `bound` is the value of that key.
        found: the figure that was compared with it, or why there is none.
        status: OK, FAILED, UNKNOWN (there is no figure), NOT_SET (there is no bound) or SKIPPED.
    """

    rule: str
    bound: float | bool | None
    found: str
    status: str

    @property
    def limit(self) -> str:
        """The bound as params.yaml has it, or nothing if there is none."""
        return (
            json.dumps(self.bound) if isinstance(self.bound, bool) else "" if self.bound is None else f"{self.bound:g}"
        )


class Recall(NamedTuple):
    """The recall of a class on test, with its interval; of a class without examples -inf, which is below any bound."""

    name: str
    examples: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not self.examples:
            return f"{readable(self.name)} has no test examples"
        interval = f"95 % interval {self.low:.4f} to {self.high:.4f}"
        return f"{readable(self.name)} {self.value:.4f} ({self.examples:,} examples, {interval})"


class Figures(NamedTuple):
    """What is known of the run in the workspace; None or empty if it is missing."""

    accuracy: float | None
    model_mb: float | None
    recalls: dict[str, Recall]


def gate(base: str | None) -> int:
    """Print every rule with its figure and verdict, and on stderr those that failed or whose figure is missing.

    Args:
        base: what accuracy and classes are compared with: a revision, the name of an experiment or a .csv file of
            predictions.

    Returns:
        1 if there are any of the latter, else 0.

    Raises:
        UserError: if the results do not belong to the params and code in the workspace, or not to its dvc.lock, or a
            class is unknown.
    """
    params = load_params()
    if "evaluate" not in up_to_date_stages(Workspace(), params.model_dump()):
        raise UserError("the results in the workspace do not belong to its params and code; run `dvc repro`")
    for file in (REPORT, paths.MODEL):  # as after `git checkout` without `dvc checkout`
        if is_recorded(file) is False:
            raise UserError(f"{file} is not the file that dvc.lock records; run `dvc checkout`, or `dvc repro`")
    load = cache(lambda: _load(base)) if base else None
    verdicts = list(judge(params.gate, read_figures(), load))
    rows = [tuple(map(_on_one_line, (row.status, row.rule, row.limit, row.found))) for row in verdicts]
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["  ".join(map(str.ljust, cells, (*widths, 0))).rstrip() for cells in rows]
    write_text("\n".join(lines) + "\n", None)
    bad = [row for row in verdicts if row.status in (FAILED, UNKNOWN)]
    for row in bad:
        problem = f"{row.limit} failed" if row.status == FAILED else "cannot be checked"
        print(_on_one_line(f"gate: {row.rule} {problem}: {row.found}"), file=sys.stderr)
    return int(bool(bad))


def _on_one_line(text: str) -> str:
    """`text` without the line breaks and control characters that names of classes and files may hold."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))


def _load(base: str) -> tuple[Results, Results]:
    """The run to compare with, and that of the workspace."""
    head = load_results(WORKSPACE)
    if head.outdated:
        raise UserError(head.outdated)
    return load_results(base), head


def read_figures() -> Figures:
    """Read the figures of the workspace.

    Raises:
        UserError: if the files are damaged or come from two runs.
    """
    metrics, report = (parse_figures(Workspace().read(file), str(file)) for file in (METRICS, REPORT))
    accuracy, final = numbers(metrics).get("accuracy"), numbers(report)
    exact = final.get("final/metrics/accuracy/value")
    if None not in (accuracy, exact) and round(exact or 0, 6) != accuracy:
        raise UserError(f"{METRICS} and {REPORT} come from two runs; run `dvc checkout`, or `dvc repro`")
    recalls = {}
    with naming(str(REPORT)):
        for row in report["final"]["classes"] if report else []:
            known = row["recall"] is not None
            figures = [float(row[name]) if known else -math.inf for name in ("recall", "recall_low", "recall_high")]
            recalls[row["class"]] = Recall(row["class"], int(row["support"]), *figures)
    return Figures(accuracy, final.get("model_mb"), recalls)


def judge(rules: Gate, figures: Figures, load: Callable[[], tuple[Results, Results]] | None) -> Iterator[Verdict]:
    """Yield a verdict per rule, in the order of params.yaml.

    Args:
        load: returns the run to compare with and that of the workspace, or raises UserError; None: there is no other
            run.

    Raises:
        UserError: if a class that has its own bound is unknown.
    """
    yield _check("min_accuracy", rules.min_accuracy, figures.accuracy, METRICS)
    yield from _recalls(rules.min_recall, rules.min_recall_of, figures.recalls)
    yield _drop(rules.max_drop, load)
    yield _class_changes(rules.allow_class_changes, load)
    yield _latency(rules.max_latency_ms)
    yield _check("max_model_mb", rules.max_model_mb, figures.model_mb, REPORT)


def _check(rule: str, bound: float | None, found: float | None, file: Path) -> Verdict:
    """Whether a figure is at least the bound of a rule named min_..., or at most that of one named max_..."""
    if bound is None or found is None:
        words = f"{found:.6g}" if found is not None else "" if bound is None else _missing(file)
        return Verdict(rule, bound, words, NOT_SET if bound is None else UNKNOWN)
    holds = found >= bound if rule.startswith("min_") else found <= bound
    return Verdict(rule, bound, f"{found:.6g}", OK if holds else FAILED)


def _missing(file: Path) -> str:
    return f"{file} {'does not have it' if file.is_file() else 'does not exist'}; run `dvc repro`"


def _recalls(bound: float | None, bounds: dict[str, float], recalls: dict[str, Recall]) -> Iterator[Verdict]:
    """One verdict for the general bound, which names every class below it; one for each class with its own."""
    for name in bounds if recalls else ():
        if name not in recalls:
            advice = did_you_mean(name, recalls) or f"; the classes are {', '.join(recalls)}"
            raise UserError(f"params.yaml: gate.min_recall_of.{name}: there is no such class{advice}")
    others = sorted((row for name, row in recalls.items() if name not in bounds), key=lambda row: row.value)
    below = [row for row in others if bound is not None and row.value < bound]
    rules = [("min_recall", bound, below or others[:1])]
    rules += [(f"min_recall_of.{name}", own, [recalls[name]] if recalls else []) for name, own in bounds.items()]
    for rule, least, rows in rules:
        if least is None or recalls:
            holds = least is None or all(row.value >= least for row in rows)
            status = NOT_SET if least is None else OK if holds else FAILED
            yield Verdict(rule, least, "; ".join(map(str, rows)), status)
        else:
            yield Verdict(rule, least, _missing(REPORT), UNKNOWN)


def _drop(bound: float | None, load: Callable[[], tuple[Results, Results]] | None) -> Verdict:
    if bound is None:
        return Verdict("max_drop", None, "", NOT_SET)
    if load is None:
        return Verdict("max_drop", bound, NO_BASE, SKIPPED)
    try:
        comparison = compare_results(*load())
    except UserError as error:
        return Verdict("max_drop", bound, str(error), UNKNOWN)
    accuracy = next(row for row in comparison["metrics"] if row["metric"] == "accuracy")
    drop = accuracy["base"] - accuracy["head"]
    is_larger = drop > bound and not math.isclose(drop, bound)  # 0.98 - 0.96 is above 0.02
    status = FAILED if comparison["verdict"] == "worse" and is_larger else OK
    return Verdict("max_drop", bound, describe(comparison), status)


def _class_changes(allowed: bool, load: Callable[[], tuple[Results, Results]] | None) -> Verdict:
    rule = "allow_class_changes"
    if load is None:
        return Verdict(rule, allowed, NO_BASE, SKIPPED)
    try:
        base, head = load()
    except UserError as error:
        return Verdict(rule, allowed, str(error), SKIPPED if allowed else UNKNOWN)
    changes = class_changes(base, head)
    if not changes:
        return Verdict(rule, allowed, f"the {len(head.classes):,} classes are those of {base.name}", OK)
    differ = f"the classes are not those of {base.name}: {changes}"
    if allowed:
        return Verdict(rule, allowed, differ, OK)
    return Verdict(rule, allowed, f"{differ}; if that is meant, set gate.allow_class_changes: true", FAILED)


def _latency(bound: float | None) -> Verdict:
    if bound is None:
        return Verdict("max_latency_ms", None, "", NOT_SET)
    from headstart.evaluation.shipped_model import latency_ms  # TensorFlow takes seconds to import
    from headstart.training.networks import load_classifier

    try:
        return _check("max_latency_ms", bound, latency_ms(load_classifier(paths.MODEL)), paths.MODEL)
    except UserError as error:
        return Verdict("max_latency_ms", bound, str(error), UNKNOWN)
