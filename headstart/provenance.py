"""Where a result comes from: the commit, whether it alone reproduces it, the versions, and how to make it again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from headstart.config import PARAMS_FILE, Params, parse
from headstart.errors import UserError
from headstart.lockfile import LOCK, Tree, code_deps, md5_of, read_stages
from headstart.paths import MANIFEST

LIBRARIES = ("tensorflow", "keras", "dvc")
# What results come from. Of params.yaml the command tells the difference; outputs follow from the rest.
CODE = ("headstart", "pipeline", "dvc.yaml", "requirements.lock")
_BARE = re.compile(r"[A-Za-z/][\w./@:-]*", re.ASCII)  # texts that Hydra, which reads `-S`, takes as they stand
_WORDS = {"true", "false", "null", "nan", "inf"}  # but these


def result_params(params: Params) -> dict[str, Any]:
    """The leaves of params.yaml that shape results: not those of the gate, nor whether trials are logged."""
    leaves = params.leaves().items()
    return {name: value for name, value in leaves if name != "train_head.log_trials" and not name.startswith("gate.")}


def manifest_md5(tree: Tree) -> str | None:
    """DVC's fingerprint of the manifest in the workspace or in dvc.lock; None before `prepare` has run."""
    path = MANIFEST.as_posix()
    found = md5_of(tree, path)
    if found is None:
        with contextlib.suppress(AttributeError, KeyError, TypeError):  # an entry that DVC did not write
            found = {out["path"]: out["md5"] for out in read_stages(tree, LOCK)["prepare"]["outs"]}.get(path)
    return found


def experiment_key(tree: Tree, params: Params) -> str | None:
    """16 hexadecimal digits that equal params, code and data share; None before `prepare` has run.

    The code is what the stages of dvc.yaml depend on. The key is the same in the workspace while a stage runs, in a
    temporary copy of it, and in the commit of the experiment.

    Raises:
        UserError: if dvc.yaml or dvc.lock cannot be read.
    """
    manifest = manifest_md5(tree)
    if manifest is None:
        return None
    code = {path: md5_of(tree, path) for path in code_deps(read_stages(tree))}
    content = json.dumps([result_params(params), code, manifest], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def run_name(backbone: str, key: str, experiment: str = "") -> str:
    """What the row of an experiment is called: as the DVC experiment, or after the backbone."""
    return experiment or f"{backbone}-{key[:6]}"


def commit() -> str:
    """The commit of Git, or that which the DVC experiment starts from; empty outside of Git."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or git_text("rev-parse", "HEAD")


def changed(places: Sequence[str], commit: str) -> list[str] | None:
    """Files below `places` that are not as in `commit`, new ones among them; None where Git cannot tell."""
    differing = git("diff", "--name-only", "--relative", "-z", commit, "--", *places)
    new = git("ls-files", "--others", "--exclude-standard", "--directory", "-z", "--", *places)
    if differing is None or new is None:
        return None
    return sorted({os.fsdecode(name) for name in (differing + new).split(b"\0") if name})


def committed(path: str) -> bytes | None:
    """The content of a file in the last commit, `path` being relative to this folder; None where Git has none."""
    return git("show", f"HEAD:./{path}")


def tags() -> dict[str, str]:
    """git_commit, git_dirty (`true` or `false`) and dvc_experiment, as far as there are any."""
    found = {"git_commit": commit(), "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}
    files = changed(CODE, found["git_commit"]) if found["git_commit"] else None
    found["git_dirty"] = "" if files is None else json.dumps(bool(files))
    return {name: value for name, value in found.items() if value}


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Of Python and of `libraries`, as far as they are there."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(commit: str, params: dict[str, Any]) -> list[tuple[str, Any, Any]] | None:
    """Name, value in `commit` and value here of the leaves that are not the same; None where the commit has none."""
    content = git("show", f"{commit}:./{PARAMS_FILE}")
    try:
        before = parse(content.decode("utf-8")).leaves() if content is not None else None
    except (UserError, UnicodeDecodeError):  # of another version of this code
        before = None
    if before is None:
        return None
    return [(name, before.get(name), value) for name, value in params.items() if before.get(name) != value]


def command(commit: str, params: dict[str, Any]) -> str:
    """What to type for the same result.

    Args:
        params: all leaves of params.yaml; those that differ from the commit's are named.
    """
    if not commit:
        return "dvc repro"
    changes = [f"-S {shlex.quote(text)}" for row in differences(commit, params) or () for text in options(*row)]
    return f"git checkout {commit} && " + (" ".join(["dvc exp run", *changes]) if changes else "dvc repro")


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


def set_option(name: str, value: Any) -> str:
    """What to type in a shell so that `dvc exp run` sets the param `name` to `value`."""
    return f"-S {shlex.quote(f'{name}={_override(value)}')}"


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


def git_text(*arguments: str) -> str:
    """What git prints, without the last line break; nothing if it fails."""
    return os.fsdecode(git(*arguments) or b"").strip()


def git(*arguments: str) -> bytes | None:
    """What git prints; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
