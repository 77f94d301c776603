"""What a pull request does to the model, as Markdown for its page.

The page that shows the report draws its pictures: curves by Mermaid, which GitHub and GitLab know, and the confusion
matrix as a table. Nothing has to be uploaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from headstart import costs, paths
from headstart.errors import UserError
from headstart.evaluation import formatting
from headstart.evaluation.compare import compare_results
from headstart.evaluation.formatting import Table, escape_markdown, link, markdown_table, to_cell
from headstart.evaluation.results import WORKSPACE, load_results, naming, open_revision, parse_figures
from headstart.lockfile import Workspace

MARK = "<!-- headstart -->"  # finds the comment that is to be updated
MAX_CLASSES = 20  # of a confusion matrix; of more, the pairs that are confused most
MAX_PAIRS = 20
COLOURS = {"loss": "#1f77b4", "val_loss": "#d62728"}


def review(base: str, output: Path | None = None, links: Mapping[str, str] | None = None) -> None:
    """Print the report, or write it to `output`.

    Args:
        base: what `compare` takes. If its predictions are out of reach (there is no remote, or it never ran), the
            report says so and shows the figures of the workspace.
        links: addresses to show at the end, by their text.

    Raises:
        UserError: if the workspace has no results, or there is no such base.
    """
    formatting.write_text(make_report(base, links or {}), output)


def make_report(base: str, links: Mapping[str, str]) -> str:
    """Return the report as Markdown; see `review`."""
    head = load_results(WORKSPACE)
    is_revision = not base.endswith(".csv")
    hint = "With a DVC remote that holds the results of the base this becomes a comparison"
    try:
        before = load_results(base)
        hint = "There is too little that both have"
        comparison = compare_results(before, head)
        shown = formatting.tables(comparison)
        parts = [formatting.verdict_as_markdown(comparison), markdown_table(shown.pop("Metrics"), folded=False)]
        shown.pop("Params", None)
    except UserError as error:
        if is_revision:
            with open_revision(base):  # a name that stands for nothing is a mistake, not a missing result
                pass
        parts, shown = _without_base(str(error), hint), {}
    if is_revision:
        shown = _dvc_diffs(base) | shown
    parts += [*map(markdown_table, shown.values()), confusion(head.predictions), *curves()]
    parts += [" · ".join(link(text, address) for text, address in links.items())] if links else []
    return "\n\n".join([MARK, "### What this does to the model", *parts]) + "\n"


def _without_base(reason: str, hint: str) -> list[str]:
    """The figures of the workspace, and why there is nothing to compare them with."""
    file = paths.report("evaluate")
    report = parse_figures(Workspace().read(file), str(file))
    if not report:
        raise UserError(f"{file} does not exist; run `dvc repro`")
    with naming(str(file)):
        rows = [
            [name, f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"]
            for name, row in report["final"]["metrics"].items()
        ]
    return [
        f"**Nothing to compare with**: {escape_markdown(reason, keep_code=True)}. {hint}; these are "
        "the figures of this run, with 95 % intervals.",
        markdown_table(Table("Metrics of this run", ["metric", "value", "95 % interval"], rows), folded=False),
    ]


def _dvc_diffs(base: str) -> dict[str, Table]:
    """What `dvc metrics diff` and `dvc params diff` find; their own Markdown does not escape what stands in a cell."""
    for stage in costs.RESULTS:  # DVC shows a damaged file as if it had no figures
        parse_figures(Workspace().read(paths.metrics(stage)), str(paths.metrics(stage)))
    found: dict[str, Table] = {}
    for kind, title in (("metrics", "Metrics of all stages"), ("params", "Params")):
        command = [sys.executable, "-m", "dvc", kind, "diff", "--json", base]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"`dvc {kind} diff {base}` failed: {done.stderr.strip()}")
        rows = [
            [
                f"{Path(file).stem}: {name}" if kind == "metrics" else name,
                *(to_cell(pair[side]) for side in ("old", "new")),
            ]
            for file, pairs in json.loads(done.stdout).items()
            for name, pair in pairs.items()
        ]
        found |= {title: Table(title, ["", "base", "head"], sorted(rows))} if rows else {}
    return found


def confusion(predictions: pd.DataFrame) -> str:
    """Return a table with a row per label and a column per answer; of many classes, the pairs confused most."""
    pairs = predictions[["label", "predicted"]]
    classes = sorted({*pairs.label, *pairs.predicted})
    if len(classes) <= MAX_CLASSES:
        counts = pd.crosstab(pairs.label, pairs.predicted).reindex(index=classes, columns=classes, fill_value=0)
        rows = [[name, *(str(count or "") for count in counts.loc[name])] for name in classes]
        return markdown_table(Table("Confusion on the test split", ["label / answer", *classes], rows))
    wrong = pairs[pairs.label != pairs.predicted].value_counts().head(MAX_PAIRS)
    rows = [[*pair, str(count)] for pair, count in wrong.items()]
    return markdown_table(Table("Confused most on the test split", ["label", "answer", "examples"], rows))


def curves() -> list[str]:
    """Return the losses of both trainings as Mermaid charts; none if there were fewer than two epochs."""
    charts = []
    for stage, title in (("train_head", "Training of the head"), ("fine_tune", "Fine-tuning")):
        try:
            table = pd.read_csv(paths.curves(stage)).astype(float)
            epochs = table["epoch"].dropna()
        except (OSError, KeyError, ValueError):  # one picture less
            continue
        shown = [name for name in COLOURS if name in table and np.isfinite(table[name]).all()]
        if len(epochs) < max(2, len(table)) or not shown:
            continue
        palette = ", ".join(COLOURS[name] for name in shown)
        chart = [
            "```mermaid",
            f"%%{{init: {{'themeVariables': {{'xyChart': {{'plotColorPalette': '{palette}'}}}}}}}}%%",
            "xychart-beta",
            f'    title "{title}: loss (blue), on val (red)"',
            f'    x-axis "epoch" {int(epochs.iloc[0])} --> {int(epochs.iloc[-1])}',
            *(f"    line [{', '.join(f'{value:.4f}' for value in table[name])}]" for name in shown),
            "```",
        ]
        charts.append(f"<details><summary>{title}, loss</summary>\n\n" + "\n".join(chart) + "\n\n</details>")
    return charts
