"""What the row of an experiment shows at a glance: figures under short names, the data, and a description."""

from __future__ import annotations

import io
import json
import math
from pathlib import PurePosixPath

import pandas as pd

from headstart import costs, paths, provenance
from headstart.modalities import modalities
from headstart.tracking.snapshot import Snapshot

# What each stage does with the data, in MLflow's words.
CONTEXTS = {"train_head": "training", "fine_tune": "training", "evaluate": "testing"}
SELECTED = {"fine_tuned": "the fine-tuned network", "head": "the head on the frozen backbone"}
# Figures of a stage's report that the row shows under short names.
ON_VAL = {name: name for name in ("val_loss", "val_accuracy")}
SHORT_NAMES = {
    "train_head": ON_VAL,
    "fine_tune": ON_VAL,
    "evaluate": {
        **{name: f"final/metrics/{name}/value" for name in ("accuracy", "macro_f1", "log_loss", "calibration_error")},
        "accuracy_low": "final/metrics/accuracy/low",
        "accuracy_high": "final/metrics/accuracy/high",
        "model_mb": "model_mb",
    },
}
VERDICTS = {
    "better": "**better** than the head alone",
    "worse": "**worse** than the head alone",
    "no evidence": "**no evidence** of a difference from the head alone",
}


def row_figures(snapshot: Snapshot, stage: str) -> dict[str, float]:
    """What the row shows of `stage`: each metric as STAGE/NAME, and what one compares under short names."""
    cost, report = snapshot.costs(stage), snapshot.report(stage)
    figures = {f"{stage}/{name}": value for name, value in snapshot.metrics(stage).items()}
    figures |= {f"cost/{name}": value for name, value in cost.items() if name == f"{stage}_seconds"}
    figures |= {name: cost[name] for name in ("examples_per_second", "latency_ms") if cost.get(name) is not None}
    short = SHORT_NAMES.get(stage, {})  # those of train_head stay until fine_tune has its own
    figures |= {name: report[long] for name, long in short.items() if long in report}
    if stage == "evaluate":
        seconds = [snapshot.costs(name).get(f"{name}_seconds", float("nan")) for name in costs.RESULTS]
        if math.isfinite(sum(seconds)):
            figures["total_seconds"] = round(sum(seconds), 3)
    return figures


def row_tags(snapshot: Snapshot, stage: str) -> dict[str, str]:
    """What the row says of `stage` in words: the device, and which network fine_tune selected."""
    words = {
        "extract": {"device": snapshot.costs(stage).get("device")},
        "fine_tune": {"selected": snapshot.json(paths.report(stage)).get("selected")},
    }
    return {name: str(value) for name, value in words.get(stage, {}).items() if value}


def dataset(snapshot: Snapshot) -> dict[str, str] | None:
    """The data as MLflow describes it: how many examples each split has, and each class in each split.

    None if the manifest is not in reach.
    """
    content = snapshot.read(paths.MANIFEST)
    if content is None:
        return None
    source, table = snapshot.params.data.source, pd.read_parquet(io.BytesIO(content), columns=["label", "split"])
    profile = {
        "examples": len(table),
        "classes": int(table.label.nunique()),
        "splits": table.split.value_counts().to_dict(),
        "examples_of_class": pd.crosstab(table.label, table.split).to_dict("index"),
    }
    scheme = source.split("://")[0] if paths.is_address(source) else "local"
    is_text = any(modality.inline for modality in modalities() if modality.name == snapshot.kind)
    column = {"name": snapshot.kind, "type": "string" if is_text else "binary"}
    columns = [column, {"name": "label", "type": "string"}]
    return {
        "name": PurePosixPath(source.rstrip("/")).name or source,
        "digest": snapshot.tags["data_version"],
        "source_type": "http" if scheme == "https" else scheme,
        "source": json.dumps({"url" if scheme.startswith("http") else "uri": source}),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps(profile, ensure_ascii=False),
    }


def description(snapshot: Snapshot) -> str:
    """Markdown: the results with their intervals, and how to reproduce them."""
    return "\n\n".join(filter(None, [_results(snapshot), _how_to_reproduce(snapshot)]))


def _results(snapshot: Snapshot) -> str:
    if "evaluate" in snapshot.stages:
        try:
            return _evaluation(snapshot)
        except (KeyError, TypeError):  # not in reach, or of another version
            return ""
    if "train_head" in snapshot.stages and "fine_tune" not in snapshot.stages:
        figures = row_figures(snapshot, "train_head")
        words = [f"{name.replace('_', ' ')} {figures[name]:.4f}" for name in ON_VAL if name in figures]
        return f"**{', '.join(words)}** of the head; nothing is fine-tuned yet." if words else ""
    return ""


def _evaluation(snapshot: Snapshot) -> str:
    report, figures = snapshot.json(paths.report("evaluate")), row_figures(snapshot, "evaluate")
    metrics, gain = report["final"]["metrics"], report["gain"]
    accuracy, selected = metrics["accuracy"], row_tags(snapshot, "fine_tune").get("selected", "")
    lines = [
        f"**Accuracy {accuracy['value']:.4f}** (95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}) of "
        f"{SELECTED.get(selected, 'the model')} on {report['examples']:,} test examples; {VERDICTS[gain['verdict']]} "
        f"({gain['fixed']} fixed, {gain['regressed']} regressed, p = {gain['p']:.2g}).",
        "",
        *(f"- {name} {row['value']:.4f} ({row['low']:.4f} to {row['high']:.4f})" for name, row in metrics.items()),
        *(f"- {name} {figures[name]:,.4g}" for name in ("latency_ms", "model_mb", "total_seconds") if name in figures),
    ]
    return "\n".join(lines)


def _how_to_reproduce(snapshot: Snapshot) -> str:
    """The command and the data, indented, so that nothing in them is taken for Markdown."""
    tags, source = snapshot.tags, snapshot.params.data.source
    command = provenance.command(tags.get("git_commit", ""), provenance.result_params(snapshot.params))
    lines = ["To reproduce:", "", f"    {' '.join(command.split())}", ""]
    if tags.get("git_dirty") == "true":
        places = ", ".join(f"`{place}`" for place in provenance.CODE)
        lines += [f"**That is not enough**: files under {places} differed from the commit (`git_dirty`).", ""]
    return "\n".join([*lines, "With the data:", "", f"    {' '.join(source.split())} (version {tags['data_version']})"])
