"""What the page of results says of where they come from: the commit, what differs from it, the command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headstart import provenance
from headstart.config import PARAMS_FILE, load_params
from headstart.paths import is_address
from headstart.tracking import records

LIBRARIES = ("tensorflow", "keras", "openvino", "numpy", "scikit-learn", "dvc")


@dataclass(frozen=True)
class Provenance:
    """What has to be known to have the results again.

    Attributes:
        commit: of Git, or that which the DVC experiment starts from; empty without Git.
        experiment: the name of the DVC experiment, or empty.
        run: the name of the row in MLflow.
        changed: files of code, params aside, that are not as in the commit.
        params: name, value at the commit and value here of the params that differ.
        command: what to type; empty where no command can do it.
        versions: of libraries and Python, by name.
    """

    commit: str
    experiment: str
    run: str
    changed: list[str] = field(default_factory=list)
    params: list[tuple[str, Any, Any]] = field(default_factory=list)
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def found() -> Provenance:
    """Of the results in the workspace, by the params and the code that are there now."""
    params = load_params()
    leaves, record = params.leaves(), records.begin(params.leaves(), "evaluate")
    commit, experiment = record.tags.get("git_commit", ""), record.tags.get("dvc_experiment", "")
    run = experiment or f"{params.backbone}-{record.key[:6]}"
    versions = provenance.versions(LIBRARIES)
    if not commit:
        return Provenance("", experiment, run, versions=versions)
    changed = provenance.changed(provenance.CODE, commit) or []
    if not is_address(params.data.source):
        changed += provenance.changed([params.data.source], commit) or []  # Git knows nothing of what lies outside
    differing = provenance.differences(commit, leaves)
    if differing is None:
        changed.append(PARAMS_FILE.name)
    command = "" if changed else provenance.command(commit, leaves)
    return Provenance(commit, experiment, run, changed, differing or [], command, versions)
