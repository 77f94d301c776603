"""Is the run in the workspace good enough to be merged? What params.yaml asks for under `gate` is held against it.

Command: python -m headstart.evaluation.gate [BASE]

BASE is what headstart.evaluation.compare takes: a revision, the name of an experiment or a .csv file of predictions; without one
`gate.max_drop` is not judged. Exit code 1 where a rule is broken, where a figure that it needs is missing, or where the
results are of other params or other code than those in the workspace.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart import lockfile, paths
from headstart.config import Params, load_params
from headstart.errors import UserError, did_you_mean
from headstart.evaluation import compare

OK, BROKEN, NOT_ASKED, NOT_JUDGED = "ok", "BROKEN", "not asked", "not judged"


@dataclass(frozen=True)
class Verdict:
    """What became of a rule.

    Attributes:
        rule: its key in params.yaml, of a floor of one class with the class behind it.
        asked: the bound, as text.
        found: the figure that it was held against, or why there is none.
    """

    rule: str
    asked: str
    found: str
    verdict: str


@dataclass(frozen=True)
class Figures:
    """What evaluate left of the run in the workspace.

    Attributes:
        metrics: metrics/evaluate.json.
        classes: rows of reports/evaluation.json, by class.
        cost: metrics/cost.json.
    """

    metrics: dict[str, Any]
    classes: dict[str, dict[str, Any]]
    cost: dict[str, float]


def read_figures() -> Figures:
    """The figures of the workspace; what is not there is left empty.

    Raises:
        UserError: where the files are of two runs.
    """
    metrics, final = _read(paths.metrics("evaluate")), _read(paths.report("evaluate")).get("final")
    try:
        if metrics and final and final["metrics"]["accuracy"]["value"] != metrics.get("accuracy"):
            raise ValueError
        classes = {row["class"]: row for row in final["classes"]} if final else {}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{paths.metrics('evaluate')} and {paths.report('evaluate')} are of two runs; run `dvc checkout`, or `dvc repro`"
        ) from error
    cost = {name: value for name, value in _read(paths.COST).items() if isinstance(value, (int, float))}
    return Figures(metrics, classes, cost)


def _read(file: Path) -> dict[str, Any]:
    return compare.figures(compare.read_workspace(file), str(file))


def judge(params: Params, figures: Figures, against: Callable[[], dict[str, Any]] | None) -> Iterator[Verdict]:
    """A verdict a rule, in the order of params.yaml.

    Args:
        against: makes the comparison with another run, see `compare.compare`; None where there is no other run.

    Raises:
        UserError: where a class that has a floor is unknown.
    """
    gate = params.gate
    yield _bound("min_accuracy", params.gate.min_accuracy, figures.metrics.get("accuracy"), paths.metrics("evaluate"))
    yield from _recalls(params.gate.min_recall, params.gate.min_recall_of, figures.classes)
    yield _drop(params.gate.max_drop, against)
    yield _bound("max_latency_ms", gate.max_latency_ms, figures.cost.get("latency_ms"), paths.COST)
    yield _bound("max_model_mb", gate.max_model_mb, figures.metrics.get("model_mb"), paths.metrics("evaluate"))


def _bound(rule: str, asked: float | None, found: float | None, file: Path) -> Verdict:
    """Whether a figure is at least what a rule named min_... asks for, or at most what one named max_... does."""
    if asked is None:
        return Verdict(rule, "", "" if found is None else f"{found:.6g}", NOT_ASKED)
    if found is None:
        return Verdict(rule, f"{asked:g}", f"missing in {file}: run `dvc repro`", BROKEN)
    holds = found >= asked if rule.startswith("min_") else found <= asked
    return Verdict(rule, f"{asked:g}", f"{found:.6g}", OK if holds else BROKEN)


def _recalls(floor: float | None, floors: dict[str, float], classes: dict[str, dict[str, Any]]) -> Iterator[Verdict]:
    """Of the general floor one verdict, which names every class below it; of those with their own one each."""
    unknown = [name for name in floors if name not in classes] if classes else []
    if unknown:
        advice = did_you_mean(unknown[0], classes) or f"; the classes are {', '.join(classes)}"
        raise UserError(f"params.yaml: gate.min_recall_of.{unknown[0]}: there is no such class{advice}")
    missing = f"missing in {paths.report('evaluate')}: run `dvc repro`"
    others = [row for name, row in classes.items() if name not in floors]
    others.sort(key=lambda row: row["recall"] or 0.0)
    if floor is None:
        yield Verdict("min_recall", "", "; ".join(map(_recall, others[:1])), NOT_ASKED)
    elif not classes:
        yield Verdict("min_recall", f"{floor:g}", missing, BROKEN)
    else:
        below = [row for row in others if not _holds(row, floor)]
        shown = below or others[:1]
        yield Verdict("min_recall", f"{floor:g}", "; ".join(map(_recall, shown)), BROKEN if below else OK)
    for name, own in floors.items():
        row = classes.get(name)
        found = missing if row is None else _recall(row)
        yield Verdict(f"min_recall_of.{name}", f"{own:g}", found, OK if row and _holds(row, own) else BROKEN)


def _holds(row: dict[str, Any], floor: float) -> bool:
    return row["recall"] is not None and row["recall"] >= floor


def _recall(row: dict[str, Any]) -> str:
    if row["recall"] is None:
        return f"{row['class']} has no test images"
    return (
        f"{row['class']} {row['recall']:.4f} ({row['support']:,} images, 95 % interval {row['recall_low']:.4f} to "
        f"{row['recall_high']:.4f})"
    )


def _drop(most: float | None, against: Callable[[], dict[str, Any]] | None) -> Verdict:
    if most is None:
        return Verdict("max_drop", "", "", NOT_ASKED)
    if against is None:
        return Verdict("max_drop", f"{most:g}", "no BASE is given", NOT_JUDGED)
    try:
        found = against()
    except UserError as error:
        return Verdict("max_drop", f"{most:g}", f"missing: {error}", BROKEN)
    accuracy = next(row for row in found["metrics"] if row["metric"] == "accuracy")
    drop = accuracy["base"] - accuracy["head"]
    broken = found["verdict"] == "worse" and drop > most and not math.isclose(drop, most)  # 0.98 - 0.96 is above 0.02
    return Verdict("max_drop", f"{most:g}", compare.summary(found).replace("**", ""), BROKEN if broken else OK)


def _table(verdicts: list[Verdict]) -> str:
    widths = [max(len(getattr(row, name)) for row in verdicts) for name in ("verdict", "rule", "asked")]
    lines = []
    for row in verdicts:
        cells = zip((row.verdict, row.rule, row.asked), widths, strict=True)
        lines.append("  ".join([*(cell.ljust(width) for cell, width in cells), row.found]).rstrip())
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print every rule with its value and verdict; the reasons on stderr, and 1, where one is broken."""
    parser = argparse.ArgumentParser(prog="python -m headstart.evaluation.gate", description=__doc__.split("\n")[0])
    parser.add_argument("base", nargs="?", help="a revision, the name of an experiment, or a .csv file of predictions")
    base = parser.parse_args(argv).base
    try:
        params = load_params()

        def against() -> dict[str, Any]:
            return compare.compare(compare.load(base), compare.load(compare.WORKSPACE), params.evaluate.top_k)

        if "evaluate" not in lockfile.reached(params.leaves()):
            raise UserError("the results in the workspace are not those of its params and code; run `dvc repro`")
        verdicts = list(judge(params, read_figures(), against if base else None))
        compare.put(_table(verdicts), None)
    except UserError as error:
        print(f"gate: {error}", file=sys.stderr)
        return 1
    broken = [row for row in verdicts if row.verdict == BROKEN]
    for row in broken:
        print(f"gate: {row.rule} {row.asked} is broken: {row.found}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
