"""Where the results come from: the commit, what differs from it, and the command that makes them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from headstart import provenance
from headstart.config import PARAMS_FILE, Params
from headstart.paths import is_address

LIBRARIES = ("tensorflow", "keras", "openvino", "numpy", "scikit-learn", "dvc")


class Origin(NamedTuple):
    """What someone needs to reproduce the results.

    Attributes:
        commit: of Git, or the one that the DVC experiment starts from; empty without Git.
        experiment: the name of the DVC experiment, or empty.
        versions: of Python and libraries, by name.
        changed: files of code and data, params aside, that differ from the commit.
        params: name, value at the commit and value here of the params that differ.
        command: what to type; empty if no command can do it.
    """

    commit: str
    experiment: str
    versions: dict[str, str]
    changed: Sequence[str] = ()
    params: Sequence[tuple[str, Any, Any]] = ()
    command: str = ""


def origin_of(params: Params) -> Origin:
    """Return the origin of the results in the workspace, judging by the params and the code that are there now."""
    commit, experiment = provenance.commit(), provenance.tags().get("dvc_experiment", "")
    versions, leaves = provenance.versions(LIBRARIES), params.leaves()
    if not commit:
        return Origin("", experiment, versions)
    changed = provenance.changed(provenance.CODE, commit) or []
    if not is_address(params.data.source):
        changed += provenance.changed([params.data.source], commit) or []  # outside of the repository Git knows nothing
    differing = provenance.differences(commit, leaves)
    changed += [PARAMS_FILE.name] if differing is None else []
    command = "" if changed else provenance.command(commit, leaves)
    return Origin(commit, experiment, versions, changed, differing or [], command)
