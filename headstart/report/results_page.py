"""The results page, reports/report.html: metrics with intervals, curves, confusions, errors, costs, how to reproduce.

Reads metrics/, reports/, plots/, predictions/test.csv and data/prepared; the data source and models/model.keras for
pictures and quotations, which are left out if these are not there; and what the stages cost, if that is known on this
machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from headstart import costs, paths
from headstart.config import Params
from headstart.errors import UserError
from headstart.modalities import load_modality
from headstart.report import charts, findings
from headstart.report.confusions import confusion
from headstart.report.gallery import gallery, load_predictions
from headstart.report.origin import origin_of
from headstart.report.rendering import read_report, read_table, render

FIRST_ROWS, MOST_ROWS = 30, 300  # classes in the table: at once, and when unfolded


def render_results_page(params: Params, remarks: Sequence[str], fingerprint: str) -> str:
    """Return the page as HTML.

    Args:
        remarks: warnings for the top of the page.
        fingerprint: of what the page is made from.

    Raises:
        UserError: if a file is not what a stage writes.
    """
    reports = {stage: read_report(stage) for stage in costs.RESULTS if stage != "extract"}
    fine_tune, evaluation = reports["fine_tune"], reports["evaluate"]
    table, probabilities, classes = load_predictions()
    if classes != [row["class"] for row in evaluation["final"]["classes"]] or len(table) != evaluation["examples"]:
        files = f"{paths.PREDICTIONS} and {paths.report('evaluate')}"
        raise UserError(f"{files} come from two runs; run `dvc checkout --force {paths.PREDICTIONS}`, or `dvc repro`")
    reliability = read_table(paths.RELIABILITY)
    head_curves, tuned_curves = (read_table(paths.curves(stage)) for stage in ("train_head", "fine_tune"))
    confused = confusion(table, classes)
    origin = origin_of(params)
    modality = load_modality()
    leaves, fine_tuned = params.leaves(), fine_tune["selected"] == "fine_tuned"
    return render(
        "results.html",
        fingerprint=fingerprint,
        remarks=remarks,
        params=leaves,
        backbone=params.backbone or modality.default_backbone,
        noun=modality.noun,
        origin=origin,
        made=time.strftime("%Y-%m-%d %H:%M"),
        prepared=reports["prepare"],
        evaluation=evaluation,
        headline=findings.headline(evaluation),
        count=len(table),
        wrong=int((table.label != table.predicted).sum()),
        fine_tuned=fine_tuned,
        selection=findings.selection(fine_tune),
        caveats=[*origin.caveats(), *findings.caveats(evaluation, fine_tuned, reliability, len(table))],
        settings={stage: _left_open(reports[stage], stage, leaves) for stage in ("train_head", "fine_tune")},
        curves=[
            *charts.training_curves("head", head_curves, reports["train_head"]["best_epoch"]),
            *charts.training_curves("fine-tuning", tuned_curves, fine_tune.get("last_epoch")),
        ],
        reliability=charts.reliability_diagram(reliability),
        precision_recall=charts.share_curve("precision-recall curve", read_table(paths.PRECISION_RECALL)),
        roc=charts.share_curve("ROC curve", read_table(paths.ROC)),
        confusion=confused,
        rows=findings.per_class(evaluation),
        first_rows=FIRST_ROWS,
        most_rows=MOST_ROWS,
        gallery=gallery(table, probabilities, classes, confused["pairs"], params),
        data_page=paths.DATA_PAGE.name,
        cost=findings.costs_of_stages({stage: costs.read(stage) for stage in costs.RESULTS}),
    )


def _left_open(report: dict[str, Any], stage: str, leaves: dict[str, Any]) -> dict[str, Any]:
    """What was used where params.yaml leaves it open."""
    used = report.get("settings", {}).items()
    return {name: value for name, value in used if leaves.get(f"{stage}.{name}") != value}
