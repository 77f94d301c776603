"""Where a result comes from: the commit, whether that tells all, the versions, and the command that makes it again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
from typing import Any

import yaml

LIBRARIES = ("tensorflow", "keras", "dvc")
# What results come from. Of params.yaml the command tells the difference; outputs follow from the rest.
CODE = ("pipeline", "dvc.yaml", "requirements.lock")
_BARE = re.compile(r"[A-Za-z/][\w./@:-]*", re.ASCII)  # texts that Hydra, which reads `-S`, takes as they stand
_WORDS = {"true", "false", "null", "nan", "inf"}  # but these


def commit() -> str:
    """The commit of Git, or that which the DVC experiment starts from; empty outside of Git."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or (_git("rev-parse", "HEAD") or "").strip()


def is_dirty(commit: str) -> bool | None:
    """Whether code is not as in `commit`, new files among it; None where Git cannot tell."""
    changed = _git("diff", "--name-only", commit, "--", *CODE)
    new = _git("ls-files", "--others", "--exclude-standard", "--", *CODE)
    return None if changed is None or new is None else bool(changed or new)


def tags() -> dict[str, str]:
    """git_commit, git_dirty (`true` or `false`) and dvc_experiment, as far as there are any."""
    found = {"git_commit": commit(), "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}
    dirty = is_dirty(found["git_commit"]) if found["git_commit"] else None
    found["git_dirty"] = "" if dirty is None else json.dumps(dirty)
    return {name: value for name, value in found.items() if value}


def versions() -> dict[str, str]:
    """Of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(commit: str, params: dict[str, Any]) -> str:
    """What to type for the same result.

    Args:
        params: all leaves of params.yaml; those that differ from the commit's are named.
    """
    if not commit:
        return "dvc repro"
    try:
        committed = yaml.safe_load(_git("show", f"{commit}:./params.yaml") or "")
    except yaml.YAMLError:
        committed = None
    changes = [
        f"-S {shlex.quote(text)}"
        for name, value in params.items()
        if (before := _leaf(committed, name)) != value
        for text in options(name, before, value)
    ]
    return f"git checkout {commit} && " + (" ".join(["dvc exp run", *changes]) if changes else "dvc repro")


def _leaf(params: Any, name: str) -> Any:
    for part in name.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


def options(name: str, before: Any, value: Any) -> list[str]:
    """What `-S` must be given to turn the param `name` from `before` into `value`; DVC merges dicts, key by key."""
    if not isinstance(value, dict) or not isinstance(before, dict):
        return [f"{name}={_override(value)}"]
    removed = [f"~{name}.{key}" for key in before if key not in value]
    return removed + [
        f"{'' if key in before else '+'}{name}.{key}={_override(item)}"
        for key, item in value.items()
        if before.get(key) != item
    ]


def _override(value: Any) -> str:
    """`value` in the grammar of Hydra's overrides, https://hydra.cc/docs/advanced/override_grammar/basic/."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_override(key)}:{_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_override, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    # In Hydra's quotes a backslash counts only before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda part: 2 * part[1] + ("\\'" if part[2] else ""), value) + "'"


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
