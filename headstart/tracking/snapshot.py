"""An experiment as Git and DVC recorded it: read from the workspace, or from a commit and DVC's cache."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from headstart import costs, paths, provenance
from headstart.config import Params
from headstart.evaluation.results import numbers
from headstart.lockfile import LOCK, Tree, Workspace, is_as_locked, md5_of, outs_of, read_stages, up_to_date_stages

MAX_ARTIFACT_BYTES = 200 * 2**20  # larger files stay with DVC alone


class Snapshot:
    """What one experiment left behind. Everything is read when it is asked for.

    Args:
        tree: the workspace, or a commit.
        params: params.yaml in it.
        tags: git_commit, git_dirty and dvc_experiment, as far as there are any.
        moment: when it was recorded, in seconds since 1970; None: now.
        running: a stage that runs, or has just run: DVC has not written it into dvc.lock yet.
        cached: where DVC's cache has a file, by its md5.
    """

    def __init__(
        self,
        tree: Tree,
        params: Params,
        tags: Callable[[], dict[str, str]],
        moment: float | None = None,
        running: str | None = None,
        cached: Callable[[str], Path] | None = None,
    ) -> None:
        self.params, self.moment, self.running = params, moment or time.time(), running
        self.is_workspace = isinstance(tree, Workspace)
        self._tree, self._tags, self._cached, self._started = tree, tags, cached, time.time()

    @cached_property
    def key(self) -> str | None:
        """The key of the experiment, see provenance; None before `prepare` has run."""
        return provenance.experiment_key(self._tree, self.params)

    @cached_property
    def stages(self) -> list[str]:
        """The stages whose results are those of these params and this code; the one that has just run comes first."""
        is_there = is_as_locked if self.is_workspace else None
        found = up_to_date_stages(self._tree, self.params.model_dump(), is_there, self.running)
        return sorted(found, key=lambda stage: stage != self.running)

    @cached_property
    def tags(self) -> dict[str, str]:
        """Where the results come from: commit, DVC experiment, data version, library versions."""
        found = {**self._tags(), "data_version": (provenance.manifest_md5(self._tree) or "")[:12]}
        if self.running:
            return found | provenance.versions()
        known = self.json(paths.FEATURES_META).get("versions", {})
        return found | {name: known[name] for name in provenance.LIBRARIES if name in known}

    @property
    def backbone(self) -> str:
        """The backbone, also where params.yaml leaves it to the data; empty before extract has run."""
        return self.params.backbone or str(self.json(paths.FEATURES_META).get("backbone", ""))

    @property
    def kind(self) -> str:
        """What an example is, also where params.yaml leaves it to the data."""
        return self.params.data.kind or str(self.json(paths.READING).get("kind", "example"))

    @property
    def name(self) -> str:
        """What the row is called."""
        return provenance.run_name(self.backbone, self.key or "", self.tags.get("dvc_experiment", ""))

    def param_texts(self, stage: str | None = None) -> dict[str, str]:
        """The params that shape results, as text: all of them, or those that `stage` reads."""
        read = self._definitions[stage].get("params", []) if stage else None
        return {
            name: value if isinstance(value, str) else json.dumps(value, default=str)
            for name, value in {**provenance.result_params(self.params), "backbone": self.backbone}.items()
            if read is None or name in read or name.split(".")[0] in read
        }

    def times(self, stage: str) -> tuple[int, int]:
        """Start and end of `stage` in milliseconds since 1970; if it did not run now, it ended when it was recorded."""
        seconds = self.moment - self._started if stage == self.running else self.costs(stage).get(f"{stage}_seconds", 0)
        return round(1000 * (self.moment - seconds)), round(1000 * self.moment)

    def outs(self, stage: str) -> dict[str, str | None]:
        """DVC's md5 by path of the outputs of `stage` that MLflow may show; feature matrices stay with DVC alone."""
        shown = [path for path, _ in outs_of(self._definitions[stage]) if not path.endswith(".npy")]
        if stage == self.running:
            return {path: md5_of(self._tree, path) for path in shown}
        return {path: self._locked[path]["md5"] for path in shown if path in self._locked}

    def content(self, stage: str) -> str:
        """A fingerprint of what `stage` left behind."""
        return hashlib.sha256(json.dumps(self.outs(stage), sort_keys=True).encode()).hexdigest()[:16]

    def artifacts(self, stage: str) -> list[str]:
        """The outputs of `stage` that MLflow keeps a copy of."""

        def size(path: str) -> int:
            if path in self._locked:
                return int(self._locked[path].get("size", 0))
            return Path(path).stat().st_size if Path(path).is_file() else 0

        return [path for path in self.outs(stage) if size(path) <= MAX_ARTIFACT_BYTES]

    def read(self, path: Path | str) -> bytes | None:
        """The content of an output, or None if neither the tree nor DVC's cache has it."""
        content, locked = self._tree.read(Path(path)), self._locked.get(Path(path).as_posix())
        if content is None and self._cached and locked:
            file = self._cached(locked["md5"])
            content = file.read_bytes() if file.is_file() else None
        return content

    def json(self, path: Path) -> dict[str, Any]:
        """The content of a JSON output; empty if it is not there or is damaged."""
        try:
            value = json.loads(self.read(path) or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def table(self, path: Path) -> pd.DataFrame:
        """The content of a CSV output, its words as they are; empty if it is not there or is damaged."""
        try:
            # The word null is the value of a param in a table of trials, not a gap.
            return pd.read_csv(io.BytesIO(self.read(path) or b""), keep_default_na=False, na_values=[""])
        except ValueError:
            return pd.DataFrame()

    def metrics(self, stage: str) -> dict[str, float]:
        """The figures that people compare: metrics/STAGE.json."""
        return mlflow_metrics(self.json(paths.metrics(stage)))

    def report(self, stage: str) -> dict[str, float]:
        """The figures in reports/STAGE.json, nested ones under joined names, e.g. `final/metrics/accuracy/low`."""
        return mlflow_metrics(self.json(paths.report(stage)))

    def costs(self, stage: str) -> dict[str, Any]:
        """What the result of `stage` cost, if it was computed on this machine."""
        known = stage in self.stages and stage in costs.RESULTS
        md5 = self.outs(stage).get(costs.RESULTS[stage].as_posix()) if known else None
        return costs.read(stage, md5) if md5 else {}

    def curves(self, stage: str) -> list[tuple[str, int, float]]:
        """(figure, epoch, value) of plots/STAGE.csv."""
        table = self.table(paths.curves(stage)).apply(pd.to_numeric, errors="coerce")
        rows = table.melt("epoch").dropna().itertuples() if "epoch" in table else ()
        return [(row.variable, int(row.epoch), float(row.value)) for row in rows]

    def trials(self) -> list[dict[str, Any]]:
        """The rows of a search over heads; none if params.yaml does not want them in MLflow."""
        return self.table(paths.TRIALS).to_dict("records") if self.params.train_head.log_trials else []

    @cached_property
    def _definitions(self) -> dict[str, Any]:
        return read_stages(self._tree)

    @cached_property
    def _locked(self) -> dict[str, dict[str, Any]]:
        """The entries in dvc.lock of the outputs of all stages that are up to date, by path."""
        lock = read_stages(self._tree, LOCK)
        return {out["path"]: out for stage in self.stages if stage != self.running for out in lock[stage]["outs"]}


def of_workspace(params: Params, running: str | None = None) -> Snapshot:
    """What the current folder holds; `running` is a stage that begins now."""
    return Snapshot(Workspace(), params, provenance.tags, running=running)


def of_revision(
    tree: Tree, params: Params, revision: str, baseline: str, experiment: str, cached: Callable[[str], Path]
) -> Snapshot:
    """What a commit holds.

    Args:
        baseline: the commit that a DVC experiment starts from; `revision` itself if it is none.
        experiment: its name, or empty.
    """

    def tags() -> dict[str, str]:
        changed = provenance.git_text("diff", "--name-only", baseline, revision, "--", *provenance.CODE)
        found = {"git_commit": baseline, "git_dirty": json.dumps(bool(changed))}
        return found | ({"dvc_experiment": experiment} if experiment else {})

    moment = float(provenance.git_text("show", "-s", "--format=%ct", revision) or 0)
    return Snapshot(tree, params, tags, moment, cached=cached)


def mlflow_metrics(values: dict[str, Any]) -> dict[str, float]:
    """The finite numbers in `values` under names that MLflow takes, nested ones joined by slashes."""

    def clean(part: str) -> str:
        return re.sub(r"[^\w.\- ]", "_", part).strip(".") or "_"

    return {"/".join(map(clean, name.split("/"))): value for name, value in numbers(values).items()}
