"""Where the results come from: the commit, what differs from it, and the command that makes them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headstart import provenance
from headstart.config import PARAMS_FILE, Params
from headstart.errors import UserError
from headstart.evaluation.datasets import parse_manifest
from headstart.lockfile import Revision, Workspace, git_objects
from headstart.paths import MANIFEST, is_address
from headstart.report.findings import Caveat

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
        classes: how the classes differ from those of the commit, in words; empty if they do not, or nobody knows.
    """

    commit: str
    experiment: str
    versions: dict[str, str]
    changed: Sequence[str] = ()
    params: Sequence[tuple[str, Any, Any]] = ()
    command: str = ""
    classes: str = ""

    def caveats(self) -> list[Caveat]:
        """Return what forbids a comparison with the figures of the commit."""
        if not self.classes:
            return []
        commit = self.commit[:10]
        return [
            Caveat(
                f"The classes are not those of the commit {commit}: {self.classes}. Its figures and these cannot be "
                f"compared as they stand; `headstart compare {commit}` compares the classes that both know."
            )
        ]


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
    return Origin(commit, experiment, versions, changed, differing or [], command, _class_changes_since(commit))


def _class_changes_since(commit: str) -> str:
    """By the val and test examples that both have; nothing if this machine lacks the manifest of the commit."""
    prefix = Path(provenance.git_text("rev-parse", "--show-prefix"))
    try:
        with git_objects(Path()) as git:
            before = provenance.manifest_md5(Revision(git, commit, prefix))
        now = provenance.manifest_md5(Workspace())
        if not before or before == now:
            return ""
        from dvc.exceptions import DvcException  # a second to import
        from dvc.repo import Repo

        try:
            with Repo() as repo:
                contents = Path(repo.cache.local.oid_to_path(before)).read_bytes(), MANIFEST.read_bytes()
        except (DvcException, OSError):
            return ""
        base, head = (parse_manifest(content, str(MANIFEST)) for content in contents)
    except UserError:  # damaged: the page is about the results
        return ""
    return str(head.changes_since(base))
