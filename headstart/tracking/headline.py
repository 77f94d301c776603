"""What a row of the table of runs says at a glance: figures under short names, the data, and a note in Markdown."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from headstart import paths

# Metrics of stages that the row also shows under their short names.
METRICS = {
    "extract": ("images_per_second",),
    "train_head": ("val_accuracy", "val_loss"),  # until fine_tune has its own
    "fine_tune": ("val_accuracy", "val_loss"),
    "evaluate": ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "calibration_error", "model_mb"),
}
COSTS = ("latency_ms",)
# What each stage does with the data, in MLflow's word; those that are not listed only see it.
CONTEXTS = {"train_head": "training", "fine_tune": "training", "evaluate": "testing"}


def metrics(stage: str, of_stage: dict[str, float], costs: dict[str, float]) -> dict[str, float]:
    """The figures of `stage` that the row shows; with evaluate, the last one, the seconds of all stages, if known."""
    found = {name: of_stage[name] for name in METRICS.get(stage, ()) if name in of_stage}
    found |= {name: costs[name] for name in COSTS if name in costs}
    if stage == "evaluate":
        seconds = [costs.of(name).get(f"{name}_seconds") for name in costs.RESULTS]
        if all(value is not None for value in seconds):
            found["total_seconds"] = round(sum(value for value in seconds if value is not None), 3)
    return found


def dataset(source: str, digest: str) -> dict[str, str]:
    """The data as MLflow describes them: how many images each split has, and each class in each split.

    Args:
        source: data.source of params.yaml.
        digest: of the manifest.
    """
    table = pd.read_parquet(paths.MANIFEST, columns=["label", "split"])
    classes = pd.crosstab(table.label, table.split)
    profile = {
        "images": len(table),
        "classes": len(classes),
        "splits": {name: int(count) for name, count in table.split.value_counts().items()},
        "images_of_class": {
            str(label): {name: int(count) for name, count in row.items()} for label, row in classes.iterrows()
        },
    }
    kind = source.split("://")[0] if paths.is_address(source) else "local"
    columns = [{"name": "image", "type": "binary"}, {"name": "label", "type": "string"}]
    return {
        "name": PurePosixPath(source.rstrip("/")).name or source,
        "digest": digest,
        "source_type": "http" if kind == "https" else kind,
        "source": json.dumps({"url" if kind.startswith("http") else "uri": source}),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps(profile, ensure_ascii=False),
    }


def results(evaluation: dict[str, Any], figures: dict[str, float], fine_tuned: bool | None) -> str:
    """Verdict and headline figures with their intervals.

    Args:
        evaluation: of reports/evaluation.json.
        figures: those without interval.
        fine_tuned: what is shipped: the fine-tuned network, or the head on the frozen backbone; None: not known.
    """
    final, gain = evaluation["final"]["metrics"], evaluation["gain"]
    accuracy, images = final["accuracy"], sum(row["support"] for row in evaluation["final"]["classes"])
    shipped = {True: "the fine-tuned network", False: "the head on the frozen backbone", None: "the model"}[fine_tuned]
    verdict = {
        "better": "**better** than the head alone",
        "worse": "**worse** than the head alone",
        "no evidence": "**no evidence** of a difference to the head alone",
    }[gain["verdict"]]
    lines = [
        f"**Accuracy {accuracy['value']:.4f}** (95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}) of "
        f"{shipped} on {images:,.0f} test images; {verdict} ({gain['mended']:.0f} mended, {gain['broken']:.0f} broken, "
        f"p = {gain['p']:.2g}).",
        "",
    ]
    lines += [f"- {name} {row['value']:.4f} ({row['low']:.4f} to {row['high']:.4f})" for name, row in final.items()]
    lines += [f"- {name} {value:,.4g}" for name, value in figures.items()]
    return "\n".join(lines)


def way(command: str, dirty: bool, source: str, digest: str) -> str:
    """How to make the result again. Indented, so that nothing in it is taken for Markdown."""
    lines = ["To make it again:", "", f"    {' '.join(command.split())}", ""]
    if dirty:
        lines += [
            "**That does not suffice**: files under `pipeline/`, `dvc.yaml` or `requirements.lock` were other "
            "than in the commit (`git_dirty`).",
            "",
        ]
    return "\n".join([*lines, "With the data:", "", f"    {' '.join(source.split())} (version {digest})"])
