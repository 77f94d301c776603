"""Where results come from: the commit, what differs from it, and the command that makes them again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.errors import UserError
from pipeline.params import PARAMS_FILE, load_params
from pipeline.paths import is_address

_BARE = re.compile(r"[A-Za-z_./][\w./:@-]*")  # texts that Hydra's grammar reads as themselves
_WORDS = {"true", "false", "null", "nan", "inf"}  # and those that it does not
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
    record = records.begin(params.leaves(), "evaluate")
    commit, experiment = record.tags.get("git_commit", ""), record.tags.get("dvc_experiment", "")
    run = experiment or f"{params.backbone}-{record.key[:6]}"
    versions = {"Python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}
    if not commit:
        return Provenance("", experiment, run, versions=versions)
    changed = _changed(["pipeline", "dvc.yaml", "requirements.lock"], commit)
    if not is_address(params.data.source):
        changed += _changed([params.data.source], commit)
    before = _params_at(commit)
    if before is None:
        return Provenance(commit, experiment, run, [*changed, PARAMS_FILE.name], versions=versions)
    differing = [(name, before[name], value) for name, value in params.leaves().items() if before[name] != value]
    run_it = "dvc repro"
    if differing:
        run_it = " ".join(["dvc exp run", *(f"-S {shlex.quote(text)}" for row in differing for text in options(*row))])
    command = "" if changed else f"git checkout {commit} && {run_it}"
    return Provenance(commit, experiment, run, changed, differing, command, versions)


def options(name: str, before: Any, value: Any) -> list[str]:
    """What `dvc exp run -S` must be given so that the param `name` turns from `before` into `value`."""
    if not isinstance(value, dict):
        return [f"{name}={_hydra(value)}"]
    removed = [f"~{name}.{key}" for key in before if key not in value]
    return removed + [
        f"{'' if key in before else '+'}{name}.{key}={_hydra(item)}"
        for key, item in value.items()
        if before.get(key) != item
    ]


def _hydra(value: Any) -> str:
    """`value` in the grammar of Hydra's overrides, https://hydra.cc/docs/advanced/override_grammar/basic/."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    # A quoted text is taken as it is, but for quotes and the backslashes in front of them.
    return '"' + re.sub(r'(\\*)("|$)', lambda part: part[1] * 2 + ("\\" + part[2] if part[2] else ""), value) + '"'


def _git(*arguments: str) -> bytes | None:
    """What git prints, or None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _changed(places: list[str], commit: str) -> list[str]:
    """Files below `places` that are not as in `commit`, new ones among them; none of places outside the repository."""
    listed = (_git("diff", "--name-only", "--relative", "-z", commit, "--", *places) or b"").split(b"\0")
    listed += (_git("ls-files", "--others", "--exclude-standard", "--directory", "-z", "--", *places) or b"").split(
        b"\0"
    )
    return sorted({os.fsdecode(name) for name in listed if name})


def _params_at(commit: str) -> dict[str, Any] | None:
    """The leaves of params.yaml in `commit`, or None where that is none of this code."""
    content = _git("show", f"{commit}:./{PARAMS_FILE}")
    if content is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PARAMS_FILE.name
        file.write_bytes(content)
        try:
            return load_params(file).leaves()
        except UserError:
            return None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
