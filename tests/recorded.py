"""A repository as DVC leaves it, with stages that nobody ran: their outputs are made up, which takes no time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from conftest import ROOT, write_params

from headstart import costs, lockfile, paths
from headstart.config import Params, load_params
from headstart.lockfile import Workspace, md5_of

STAGES = ("prepare", "extract", "train_head", "fine_tune", "evaluate")
EXAMPLES = 40
GIT = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(*arguments: str, **env: str) -> str:
    env = {**os.environ, **GIT, "GIT_CONFIG_GLOBAL": os.devnull, **env}
    return subprocess.run(["git", *arguments], env=env, capture_output=True, text=True, check=True).stdout.strip()


def make_repository() -> None:
    """Make the current folder one, with dvc.yaml, params.yaml and a file in each place of code."""
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    for place in [*lockfile.code_deps(lockfile.read_stages(Workspace())), *UNRELATED]:
        file = Path(place) if place.endswith((".py", ".html")) else Path(place) / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {place}\n")
    write_params(Path("params.yaml"), **{"data.source": "photos"})
    Path(".gitignore").write_text(
        "/data/\n/features/\n/models/\n/predictions/\n/reports/\n/mlflow.db*\n/mlartifacts/\n/.dvc/\n"
    )
    Path(".dvc").mkdir(exist_ok=True)
    Path(".dvc/config").touch()
    git("init", "-q")
    commit("start")


UNRELATED = ("headstart/tracking/store.py", "headstart/report/templates/results.html", "headstart/serving/server.py")


def commit(message: str) -> str:
    """Commit everything, a minute after the commits before; the revision."""
    seconds = 1_700_000_000 + 60 * len(git("rev-list", "--all").split())
    git("add", "-A")
    git("commit", "-qm", message, "--allow-empty", f"--date=@{seconds}", GIT_COMMITTER_DATE=f"@{seconds} +0000")
    return git("rev-parse", "HEAD")


def leave(
    stage: str,
    wrong: int = 10,
    first: int = 0,
    classes: Sequence[str] = ("cat", "dog"),
    text: str = "",
    wrong_on_test: int | None = None,
    val_loss: float = 0.5,
) -> None:
    """Write what `stage` would leave in the current folder.

    Args:
        wrong: how many examples the network gets wrong, the first ones of val and of test.
        wrong_on_test: the same, of test alone.
        first: number of the first example; those of the same number are the same.
        classes: that the network knows; every example is of the first one.
        text: what makes this result differ from others.
    """
    text = f"{text} {wrong} {first} {classes} {load_params().train_head.dropout}"
    accuracy = 1 - wrong / EXAMPLES

    def predictions(wrong: int) -> pd.DataFrame:
        correct = [index >= wrong for index in range(EXAMPLES)]
        return pd.DataFrame(
            {
                "path": [f"{index}.png" for index in range(EXAMPLES)],
                "item_id": [f"id{first + index}" for index in range(EXAMPLES)],
                "label": classes[0],
                "predicted": [classes[0] if ok else classes[1] for ok in correct],
                **{f"p_{name}": 0.0 for name in classes[2:]},
                f"p_{classes[0]}": [0.9 if ok else 0.2 for ok in correct],
                f"p_{classes[1]}": [0.1 if ok else 0.8 for ok in correct],
            }
        )

    head = {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}
    half = {"value": 0.5, "low": 0.4, "high": 0.6}
    error = {"value": 0.1, "low": 0.0, "high": 0.2}
    final = {"metrics": {"accuracy": head, "macro_f1": half, "log_loss": half, "calibration_error": error}}
    gain = {"verdict": "better", "p": 0.01, "fixed": 3, "regressed": 1}
    curves = pd.DataFrame({"epoch": [1, 2], "loss": [0.9, 0.4], "val_loss": [1.0, 0.5]})
    values: dict[Path, Any] = {
        paths.metrics("prepare"): {"examples": 60, "quarantined": 0},
        paths.metrics("train_head"): {"head_val_loss": 0.7},
        paths.metrics("fine_tune"): {"val_loss": val_loss},
        paths.metrics("evaluate"): {"accuracy": accuracy, "macro_f1": 0.5, "log_loss": 0.5},
        paths.report("evaluate"): {"final": final, "gain": gain, "examples": EXAMPLES, "model_mb": 2.5},
        paths.report("train_head"): {
            "settings": {"hidden": [8]},
            "val_loss": 0.7,
            "val_accuracy": 0.5,
            "temperature": 1.5,
            "text": text,
        },
        paths.report("fine_tune"): {
            "settings": {"epochs": 2},
            "selected": "fine_tuned",
            "val_loss": val_loss,
            "val_accuracy": accuracy,
            "head_val_loss": 0.7,
            "head_val_accuracy": 0.5,
            "text": text,
        },
        paths.FEATURES_META: {"kind": "image", "backbone": "tiny", "versions": {"keras": "3.0", "tensorflow": "2.20"}},
        paths.curves("train_head"): curves,
        paths.curves("fine_tune"): curves.assign(note=text),
        paths.TRIALS: pd.DataFrame(columns=["trial", "val_loss", "val_accuracy", "rank"]),
        paths.VAL_PREDICTIONS: predictions(wrong),
        paths.PREDICTIONS: predictions(wrong if wrong_on_test is None else wrong_on_test),
    }
    for name, _ in lockfile.outs_of(lockfile.read_stages(Workspace())[stage]):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path == paths.MANIFEST:
            splits = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
            labels = [classes[index % len(classes)] for index in range(60)]
            ids = [f"id{index}" for index in range(60)]
            pd.DataFrame({"item_id": ids, "label": labels, "split": splits}).to_parquet(path)
        elif path.suffix == ".keras":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(zipfile.ZipInfo("classes.json"), json.dumps(classes))
                archive.writestr(zipfile.ZipInfo("headstart.json"), '{"modality": "image", "size": 32}')
                archive.writestr(zipfile.ZipInfo("weights"), text)
        elif isinstance(values.get(path), pd.DataFrame):
            values[path].to_csv(path, index=False)
        else:
            path.write_text(json.dumps(values.get(path, {"text": text})))
    seconds = {"examples_per_second": 100.0, "device": "CPU"} if stage == "extract" else {}
    costs.write(stage, {f"{stage}_seconds": 1.5, **seconds, **({"latency_ms": 7.5} if stage == "evaluate" else {})})


def lock(stages: Sequence[str] = STAGES) -> None:
    """Write what DVC would write into dvc.lock, and put the outputs into its cache."""
    definitions, params, entries = lockfile.read_stages(Workspace()), load_params().model_dump(), {}
    for stage in stages:
        definition, outs = definitions[stage], []
        for path, options in lockfile.outs_of(definition):
            outs.append(
                {"path": path, "hash": "md5", "md5": md5_of(Workspace(), path), "size": Path(path).stat().st_size}
            )
            if options.get("cache", True):
                cached = cache_file(outs[-1]["md5"])
                cached.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cached)
        empty = {paths.WATCHED.as_posix(): lockfile.folder_md5({})}
        deps = [
            {"path": path, "md5": empty.get(path) or md5_of(Workspace(), path)}
            for path in definition["deps"]
            if path != lockfile.SOURCE
        ]
        values = {name: reduce(getitem, name.split("."), params) for name in definition["params"]}
        entries[stage] = {"cmd": definition["cmd"], "deps": deps, "params": {"params.yaml": values}, "outs": outs}
    lockfile.LOCK.write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))


def cache_file(md5: str) -> Path:
    """Where DVC's cache keeps a file; of a copy, that of the repository."""
    return paths.workspace_root() / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def change(**params: Any) -> Params:
    """Write params.yaml with `params` changed."""
    write_params(Path("params.yaml"), **{"data.source": "photos", **params})
    return load_params()


def experiment(name: str, stages: Sequence[str] = STAGES, results: dict[str, Any] | None = None, **params: Any) -> None:
    """Record a DVC experiment that starts from HEAD, as its queue does: the workspace is as before."""
    baseline = git("rev-parse", "HEAD")
    change(**params)
    for stage in stages:
        leave(stage, **(results or {}))
    lock(stages)
    revision = commit(name)
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", revision)
    git("reset", "-q", "--hard", baseline)
    for folder in ("data", "features", "models", "predictions", "reports"):
        shutil.rmtree(folder, ignore_errors=True)
