"""What a pull request does to the model, as Markdown for its page: compared with its base, or by itself.

Command: python -m headstart.evaluation.review BASE [--output FILE] [--link TEXT=URL ...]

BASE is what headstart.evaluation.compare takes. Where it has no predictions in reach (no remote, or it never ran), the report says
so and shows the figures of the workspace. Pictures are drawn by the page that shows the report: curves by Mermaid,
which GitHub and GitLab know, the confusion matrix as a table; nothing has to be uploaded. Nothing here knows GitHub.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart import paths
from headstart.errors import UserError
from headstart.evaluation import compare
from headstart.evaluation.compare import escaped, markdown_table
from headstart.tracking import commands

MARK = "<!-- headstart -->"  # finds the comment that is to be renewed
MOST_CLASSES = 20  # of a confusion matrix; of more, the pairs that are confused most
MOST_PAIRS = 20
COLOURS = {"loss": "#1f77b4", "val_loss": "#d62728"}


def report(base: str, links: dict[str, str]) -> str:
    """The whole of it.

    Args:
        links: addresses by what they lead to.

    Raises:
        UserError: where the workspace has no results, or BASE is no revision, experiment or file.
    """
    head = compare.load(compare.WORKSPACE)
    try:
        found = compare.compare(compare.load(base), head, int(head.params.get("evaluate.top_k", 3)))
        said = compare.markdown(found)
    except UserError as error:
        if not base.endswith(".csv"):
            compare.reader(base)  # a name that stands for nothing is a mistake, not a missing result
        said = alone(base, str(error), head.params)
    parts = [MARK, "### What this does to the model", said.strip(), confusion(head.predictions), *curves()]
    parts += [" · ".join(f"[{escaped(name)}]({address})" for name, address in links.items())] if links else []
    return "\n\n".join(parts) + "\n"


def alone(base: str, why: str, params: dict[str, Any]) -> str:
    """The figures of the workspace, and why there is nothing to compare them with."""
    parts = [
        f"**Nothing to compare with**: {escaped(why)}. A DVC remote that holds the results of the base makes a "
        "comparison of it; these are the figures of this run, with 95 % intervals."
    ]
    if not paths.report("evaluate").is_file():
        raise UserError(f"{paths.report('evaluate')} is not there; run `dvc repro`")
    final = compare.figures(paths.report("evaluate").read_bytes(), str(paths.report("evaluate")))["final"]
    rows = [
        [name, f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"]
        for name, row in final["metrics"].items()
    ]
    parts.append(markdown_table("Metrics of this run", ["metric", "value", "95 % interval"], rows, folded=False))
    if not base.endswith(".csv"):
        changed = compare.changed(compare.params_of(compare.reader(base), base), params)
        rows = [[name, *map(json.dumps, pair.values())] for name, pair in changed.items()]
        parts += [markdown_table("Params", ["", "base", "head"], rows)] if rows else []
    return "\n\n".join(parts)


def confusion(predictions: pd.DataFrame) -> str:
    """Rows are labels, columns answers; with many classes, the pairs of them that are confused most."""
    pairs = pd.DataFrame({"label": predictions.label, "predicted": predictions.predicted})
    classes = sorted({*pairs.label, *pairs.predicted})
    if len(classes) <= MOST_CLASSES:
        counts = pd.crosstab(pairs.label, pairs.predicted).reindex(index=classes, columns=classes, fill_value=0)
        rows = [[name, *(str(count) if count else "" for count in counts.loc[name])] for name in classes]
        return markdown_table("Confusion on the test split", ["label / answer", *map(escaped, classes)], rows)
    wrong = pairs[pairs.label != pairs.predicted].value_counts().head(MOST_PAIRS)
    rows = [[label, predicted, str(count)] for (label, predicted), count in wrong.items()]
    return markdown_table("Confused most on the test split", ["label", "answer", "images"], rows)


def curves() -> list[str]:
    """The losses of both trainings, as Mermaid draws them; none of a training that had less than two epochs."""
    drawn = []
    for stage, title in (("train_head", "Training of the head"), ("fine_tune", "Fine-tuning")):
        file = paths.curves(stage)
        try:
            table = pd.read_csv(file) if file.is_file() else pd.DataFrame()
        except (ValueError, UnicodeDecodeError):  # a picture less
            continue
        shown = [name for name in COLOURS if name in table and np.isfinite(pd.to_numeric(table[name], "coerce")).all()]
        if len(table) < 2 or not shown:
            continue
        palette = ", ".join(COLOURS[name] for name in shown)
        lines = [f"    line [{', '.join(f'{value:.4f}' for value in table[name])}]" for name in shown]
        chart = [
            "```mermaid",
            f"%%{{init: {{'themeVariables': {{'xyChart': {{'plotColorPalette': '{palette}'}}}}}}}}%%",
            "xychart-beta",
            f'    title "{title}: loss (blue), on val (red)"',
            f'    x-axis "epoch" {int(table.epoch.iloc[0])} --> {int(table.epoch.iloc[-1])}',
            *lines,
            "```",
        ]
        drawn.append(f"<details><summary>{title}, loss</summary>\n\n" + "\n".join(chart) + "\n\n</details>")
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Write or print the report; 0 whatever it says: headstart.evaluation.gate judges."""
    parser = argparse.ArgumentParser(prog="python -m headstart.evaluation.review", description=__doc__.split("\n")[0])
    parser.add_argument("base", help="a revision, the name of an experiment, or a .csv file of predictions")
    parser.add_argument("--output", type=Path, help="a file to write instead of printing")
    parser.add_argument("--link", action="append", default=[], metavar="TEXT=URL", help="to be shown at the end")
    arguments = parser.parse_args(argv)
    try:
        if not all("=" in link for link in arguments.link):
            raise UserError(f"--link must be TEXT=URL, got {' and '.join(arguments.link)}")
        links = dict(link.split("=", 1) for link in arguments.link)
        run = commands.address()
        compare.put(report(arguments.base, links | ({"The run in MLflow": run} if run else {})), arguments.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
