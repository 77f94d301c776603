"""The page of results, reports/report.html: one file to argue with. No output of a stage, since it tells seconds.

Reads:   metrics/, plots/, reports/evaluation.json, predictions/test.csv, data/prepared; the images and
         models/model.keras for pictures, which are left out where these are not there.
Command: python -m headstart.report.results_page [--if-stale]
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from headstart import paths
from headstart.errors import UserError
from headstart.outputs import Outputs
from headstart.report.page import render

PARAMS = Path("params.yaml")
STAGES = ("prepare", "extract", "train_head", "fine_tune", "evaluate")
TRAINING = ("train_head", "fine_tune")
NEEDED = (
    paths.report("evaluate"),
    paths.PREDICTIONS,
    paths.MANIFEST,
    *(paths.metrics(stage) for stage in ("prepare", "train_head", "fine_tune", "evaluate")),
    *(paths.curves(stage) for stage in TRAINING),
    paths.RELIABILITY,
    paths.PRECISION_RECALL,
)
OUTDATED = (
    "As far as dvc.lock tells, these results are not those of the params and the code in this folder: run dvc repro."
)
FIRST_ROWS, MOST_ROWS = 30, 300  # classes in the table: at once, and at a click
FINGERPRINT = re.compile(rb'<meta name="results" content="([0-9a-f]+)">')


def write(remarks: Sequence[str] = ()) -> None:
    """Build the page from the files in the workspace, and print where it is; it appears whole.

    Args:
        remarks: warnings to put at its top.

    Raises:
        UserError: where a file is missing, or none of this pipeline.
    """
    missing = next((file for file in NEEDED if not file.is_file()), None)
    if missing:
        raise UserError(f"{missing} does not exist; run `dvc repro`, or `dvc pull` where a remote holds it")
    text = render("results.html", **_content(), remarks=remarks, fingerprint=_fingerprint())
    outputs = Outputs()
    try:
        outputs.path(paths.RESULTS_PAGE).write_text(text, encoding="utf-8")
        outputs.commit()
    finally:
        outputs.discard()
    print(f"results: {paths.RESULTS_PAGE}")


def is_current() -> bool:
    """Whether the page is there and tells of the results, and the params, in the workspace."""
    if not paths.RESULTS_PAGE.is_file():
        return False
    with paths.RESULTS_PAGE.open("rb") as stream:
        told = FINGERPRINT.search(stream.read(4096))
    return bool(told) and told[1].decode() == _fingerprint()


def _fingerprint() -> str:
    digest = blake3(max_threads=blake3.AUTO)
    for file in (*NEEDED, PARAMS, paths.COST, paths.metrics("extract"), *map(paths.report, TRAINING)):
        digest.update(file.as_posix().encode() + b"\0")
        if file.is_file():
            digest.update_mmap(file)
    return digest.hexdigest(length=16)


def _content() -> dict[str, Any]:
    """What the template shows."""
    # Late, and so is TensorFlow: a page that is current asks for none of it.
    import pandas as pd

    from headstart.config import load_params
    from headstart.report import drawings, findings, gallery, origin

    params = load_params()
    asked = params.leaves()
    metrics = {stage: findings.values(paths.metrics(stage)) for stage in STAGES}
    evaluation = findings.values(paths.report("evaluate"))
    table, probabilities, classes = gallery.predictions()
    reliability = pd.read_csv(paths.RELIABILITY)
    confusion = drawings.confusion(table, classes)
    return {
        "params": asked,
        "provenance": origin.found(),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "metrics": metrics,
        "evaluation": evaluation,
        "headline": findings.headline(evaluation),
        "images": len(table),
        "wrong": int((table.label != table.predicted).sum()),
        "shipped": findings.shipped(metrics["fine_tune"], params.fine_tune.confidence),
        "warnings": list(findings.warnings(evaluation, metrics["fine_tune"]["fine_tuned"], reliability, len(table))),
        "chosen": {
            stage: {
                name: value
                for name, value in findings.values(paths.report(stage)).items()
                if asked.get(f"{stage}.{name}") != value
            }
            for stage in TRAINING
        },
        "charts": [
            *drawings.training("head", paths.curves("train_head"), metrics["train_head"]["best_epoch"]),
            *drawings.training("fine-tuning", paths.curves("fine_tune"), metrics["fine_tune"].get("last_epoch")),
        ],
        "confusion": confusion,
        "rows": findings.per_class(evaluation),
        "first_rows": FIRST_ROWS,
        "most_rows": MOST_ROWS,
        "reliability": drawings.reliability(reliability),
        "precision_recall": drawings.precision_recall(pd.read_csv(paths.PRECISION_RECALL)),
        "pictures": gallery.pictures(table, probabilities, classes, confusion["pairs"], params),
        "data_page": paths.DATA_PAGE.name,
        "cost": findings.cost(findings.values(paths.COST), metrics["extract"]),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m headstart.report.results_page", description=__doc__.split("\n")[0])
    parser.add_argument("--if-stale", action="store_true", help="only where the page is not of the present results")
    if parser.parse_args(argv).if_stale and is_current():
        return 0
    from headstart.config import load_params
    from headstart.tracking import records

    try:
        stages = {record.stage for record in records.collect(load_params().leaves(), None)}
        write([] if "evaluate" in stages else [OUTDATED])
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
