"""Load results to compare: those of the workspace, a Git revision, a DVC experiment or a file of predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from headstart import costs, lockfile, paths
from headstart.data.predictions import classes_of, parse_predictions
from headstart.errors import UserError, one_line
from headstart.lockfile import PARAMS, Revision, Tree, Workspace

WORKSPACE = "workspace"
COSTS = (*(f"{stage}_seconds" for stage in costs.RESULTS), "examples_per_second", "latency_ms")
REPAIR = "restore it by `git checkout` or `dvc checkout --force`, or run `dvc repro`"

Read = Callable[[Path], bytes | None]


@dataclass(frozen=True)
class Results:
    """The results of one run.

    Attributes:
        name: what messages call them.
        predictions: of the test split, indexed by item_id, see `parse_predictions`.
        params: the sections of params.yaml; empty if there is only a file of predictions.
        costs: seconds, rates, latency and size by name, as far as they are known.
        outdated: why the predictions are known not to be those of the params and code beside them, and what to do, in
            one sentence; empty if they are.
    """

    name: str
    predictions: pd.DataFrame
    params: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    outdated: str = ""

    @property
    def classes(self) -> list[str]:
        return classes_of(self.predictions)


def load_results(name: str) -> Results:
    """Load what `name` stands for: `workspace`, a .csv file, a revision or an experiment.

    Raises:
        UserError: if there is no such thing, or its predictions are missing or damaged.
    """
    if name == WORKSPACE:
        return _load(name, Workspace(), Workspace().read, "run `dvc repro`")
    if not name.endswith(".csv"):
        with open_revision(name) as (tree, read_output):
            return _load(name, tree, read_output, f"`dvc pull`, or `dvc repro` there; {name} must have run")
    try:
        return Results(name, parse_predictions(Path(name).read_bytes(), name))
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; give a file of predictions such as {paths.PREDICTIONS}") from error


def _load(name: str, tree: Tree, read_output: Read, advice: str) -> Results:
    content, report = paths.PREDICTIONS, paths.report("evaluate")
    predictions = read_output(content)
    if predictions is None:
        raise UserError(f"{name}: {content} does not exist; {advice}")
    params = parse_params(tree.read(PARAMS), name)
    size = numbers(parse_figures(read_output(report), f"{name}: {report}")).get("model_mb")
    known = read_costs(tree) | ({} if size is None else {"model_mb": size})
    outdated = _why_outdated(name, tree, params)
    return Results(name, parse_predictions(predictions, f"{name}: {content}"), params, known, outdated)


def _why_outdated(name: str, tree: Tree, params: dict[str, Any]) -> str:
    """Why the predictions of `name` are not those of its params and code, in one sentence; empty if they are."""
    is_here, stages = isinstance(tree, Workspace), lockfile.read_stages(tree)
    up_to_date = lockfile.up_to_date_stages(tree, params)
    if "evaluate" in stages and "evaluate" not in up_to_date:
        *others, last = [stage for stage in stages if stage in costs.RESULTS and stage not in up_to_date]
        return (
            f"{name} has no results of its own: {', '.join(others)}{' and ' if others else ''}{last} did not run with "
            "its params and code. These are the results of an earlier run; run `dvc repro`"
            + ("" if is_here else f" there (`dvc exp apply {name}` for an experiment)")
        )
    if is_here and lockfile.is_recorded(paths.PREDICTIONS) is False:  # anybody can write there
        return (
            f"{paths.PREDICTIONS} in the {name} is not the file that dvc.lock records; run `dvc checkout "
            f"{paths.PREDICTIONS}` for that one, or `dvc repro`"
        )
    return ""


@contextmanager
def open_revision(name: str) -> Iterator[tuple[Revision, Read]]:
    """Open a Git revision or DVC experiment: what Git has, and what reads outputs from DVC's cache, else its remote.

    Raises:
        UserError: if there is no revision or experiment of that name.
    """
    from dvc.api import DVCFileSystem  # a second to import
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError, resolve_rev

    try:
        with Repo() as repo:
            commit, git_root = resolve_rev(repo.scm, name), Path(repo.scm.root_dir)
            prefix = Path(repo.root_dir).relative_to(git_root)
            files = DVCFileSystem(rev=commit)
        files.ls("/")  # raises here if no file can be read
    except (DvcException, SCMError, AttributeError, ValueError) as error:  # the last two: a file or a tree in Git
        raise UserError(
            f"{name} is not a revision, an experiment or a .csv file ({one_line(error)}); `git log` and "
            "`dvc exp list` show some"
        ) from error

    def read_output(path: Path) -> bytes | None:
        try:
            return files.read_bytes(path.as_posix())
        except (OSError, DvcException):  # not made there, or neither in the cache nor in a remote
            return None

    with lockfile.git_objects(git_root) as git:
        yield Revision(git, commit, prefix), read_output


def parse_figures(content: bytes | None, name: str) -> dict[str, Any]:
    """Parse a JSON file of figures, which messages call `name`; empty if there is no file.

    Raises:
        UserError: if it holds something else, such as the marks of a merge conflict, or NaN, which no stage writes.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}")

    try:
        figures = json.loads(content or b"{}", parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({one_line(error)}); {REPAIR}") from error
    if not isinstance(figures, dict):
        raise UserError(f"{name} does not hold figures by name; {REPAIR}")
    return figures


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn an error about the content of a file into a UserError that names the file."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{name} is not what its stage writes ({type(error).__name__}: {error}); {REPAIR}") from error


def parse_params(content: bytes | None, name: str) -> dict[str, Any]:
    """Parse the params.yaml of `name` as DVC does, without checking its values; empty if there is no file.

    Raises:
        UserError: if it is not YAML, or not a mapping.
    """
    from dvc.utils.serialize import ParseError, parse_yaml

    try:
        params = parse_yaml((content or b"").decode("utf-8"), PARAMS) or {}
        if not isinstance(params, dict):
            raise ValueError("it is not a mapping")
    except (ParseError, ValueError) as error:
        raise UserError(f"{name}: {PARAMS} cannot be read: {one_line(error)}; {REPAIR}") from error
    return params


def flatten(params: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of params.yaml under dotted keys, also those that this version does not know."""
    leaves: dict[str, Any] = {}
    for key, value in params.items():
        is_section = isinstance(value, dict) and value
        leaves |= {f"{key}.{name}": leaf for name, leaf in value.items()} if is_section else {key: value}
    return leaves


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers in `values`, nested ones under names joined by slashes; all else is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def read_costs(tree: Tree, stages: Collection[str] = tuple(costs.RESULTS)) -> dict[str, float]:
    """Return COSTS of the results of `stages` that dvc.lock records, as far as this machine knows them.

    Raises:
        UserError: if dvc.lock cannot be read.
    """
    md5s, known = locked_outputs(tree), dict[str, float]()
    for stage in costs.RESULTS.keys() & set(stages):  # a stage of the user's own has no costs
        md5 = md5s.get(stage, {}).get(costs.RESULTS[stage].as_posix())
        known |= numbers(costs.read(stage, md5)) if md5 else {}
    return {name: known[name] for name in COSTS if name in known}


def locked_outputs(tree: Tree) -> dict[str, dict[str, str]]:
    """Return the md5 of each output that dvc.lock records, by stage and path.

    Raises:
        UserError: if dvc.lock cannot be read.
    """
    lock = lockfile.read_stages(tree, lockfile.LOCK)
    return {stage: {out["path"]: out.get("md5", "") for out in entry.get("outs", [])} for stage, entry in lock.items()}
