"""Where the results come from: the commit, what differs from it, and the command that makes them again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headstart import provenance
from headstart.config import PARAMS_FILE, Params
from headstart.paths import is_address

LIBRARIES = ("tensorflow", "keras", "openvino", "numpy", "scikit-learn", "dvc")


@dataclass(frozen=True)
class Origin:
    """What someone needs to reproduce the results.

    Attributes:
        commit: of Git, or the one that the DVC experiment starts from; empty without Git.
        experiment: the name of the DVC experiment, or empty.
        changed: files of code and data, params aside, that differ from the commit.
        params: name, value at the commit and value here of the params that differ.
        command: what to type; empty if no command can do it.
        versions: of Python and libraries, by name.
    """

    commit: str
    experiment: str
    changed: list[str] = field(default_factory=list)
    params: list[tuple[str, Any, Any]] = field(default_factory=list)
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def origin_of(params: Params) -> Origin:
    """Return the origin of the results in the workspace, judging by the params and the code that are there now."""
    commit, experiment = provenance.commit(), provenance.tags().get("dvc_experiment", "")
    versions = provenance.versions(LIBRARIES)
    if not commit:
        return Origin("", experiment, versions=versions)
    places = list(provenance.CODE)
    changed = provenance.changed(places, commit) or []
    if not is_address(params.data.source):
        changed += provenance.changed([params.data.source], commit) or []  # outside of the repository Git knows nothing
    differing = provenance.differences(commit, params.leaves())
    if differing is None:
        changed.append(PARAMS_FILE.name)
    command = "" if changed else provenance.command(commit, params.leaves())
    return Origin(commit, experiment, changed, differing or [], command, versions)
