"""What dvc.yaml asks for and dvc.lock records, in the workspace or in a commit: which stages are up to date.

`dvc status` answers this for the workspace, in about a second; this module answers it for any commit, without a
checkout.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Protocol

import yaml

from headstart import paths
from headstart.errors import UserError
from headstart.validation import SAFE_LOADER

LOCK, PIPELINE, PARAMS = Path("dvc.lock"), Path("dvc.yaml"), Path("params.yaml")
CODE = ("headstart", "pipeline")  # the folders that hold code
MAX_HASHED_BYTES = 64 * 2**20  # a larger output is compared with dvc.lock by its size alone
_BLOCK = 2**20
SOURCE = "${data.source}"


class Tree(Protocol):
    """Files by their path relative to the root of the repository."""

    def read(self, path: Path) -> bytes | None:
        """The content of a file, or None if there is none."""

    def below(self, folder: Path) -> list[str]:
        """The paths of all files below `folder`, relative to it, in any order; `__pycache__` is left out."""


class Workspace:
    """The files on disk below `root`."""

    def __init__(self, root: Path = Path()) -> None:
        self._root = root

    def read(self, path: Path) -> bytes | None:
        file = self._root / path
        return file.read_bytes() if file.is_file() else None

    def below(self, folder: Path) -> list[str]:
        top = self._root / folder
        files = (file.relative_to(top) for file in top.rglob("*") if file.is_file())
        return [file.as_posix() for file in files if "__pycache__" not in file.parts]


class Revision:
    """The files that Git has in a commit; `prefix` is the folder of the DVC repository in that of Git.

    They are read through one process of Git, see `git_objects`: DVC's own file system of a revision reads through a
    thread of pygit2, which can wait for ever.
    """

    def __init__(self, git: subprocess.Popen[bytes], revision: str, prefix: Path = Path()) -> None:
        self._git, self._revision, self._prefix = git, revision, prefix

    def read(self, path: Path) -> bytes | None:
        name = f"{self._revision}:{(self._prefix / path).as_posix()}"
        if "\n" in name:
            return None
        assert self._git.stdin
        assert self._git.stdout
        self._git.stdin.write(os.fsencode(name) + b"\n")
        self._git.stdin.flush()
        found = re.fullmatch(rb"[0-9a-f]+ (\w+) (\d+)\n", self._git.stdout.readline())
        if not found:  # missing, or ambiguous
            return None
        data = self._git.stdout.read(int(found[2]) + 1)[:-1]
        return data if found[1] == b"blob" else None

    def below(self, folder: Path) -> list[str]:
        top = (self._prefix / folder).as_posix()
        command = ["git", "ls-tree", "-r", "--name-only", "-z", "--full-tree", self._revision, f"{top}/"]
        done = subprocess.run(command, capture_output=True, check=False)
        return [os.fsdecode(name)[len(top) + 1 :] for name in done.stdout.split(b"\0") if name]


@contextmanager
def git_objects(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Git that reads objects of the repository at `root`, for as long as the context lasts."""
    command = ["git", "cat-file", "--batch"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


def md5_of(tree: Tree, path: str) -> str | None:
    """DVC's fingerprint of a file or a folder in `tree`, or None if it is not there."""
    content = tree.read(Path(path))
    if content is not None:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()
    names = tree.below(Path(path))
    return folder_md5({name: md5_of(tree, f"{path}/{name}") for name in names}) if names else None


def folder_md5(files: dict[str, str | None]) -> str:
    """DVC's fingerprint of a folder, by the fingerprints of its files under their relative paths."""
    # As dvc_data.hashfile.tree.Tree lists a folder.
    listing = json.dumps([{"md5": files[name], "relpath": name} for name in sorted(files)], sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def read_stages(tree: Tree, file: Path = PIPELINE) -> dict[str, Any]:
    """What dvc.yaml or dvc.lock has under `stages`; nothing if the file is not there.

    The stages of the group `watch` are left out: they only look, for DVC, at what it does not see.

    Raises:
        UserError: if it cannot be read, as with the marks of a merge conflict in it.
    """
    try:
        content = yaml.load((tree.read(file) or b"").decode("utf-8"), SAFE_LOADER) or {}
        stages = (content.get("stages") or {}) if isinstance(content, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
            raise ValueError("it does not hold stages with keys and values")
        return {name: stage for name, stage in stages.items() if "foreach" not in stage}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read: {' '.join(str(error).split())[:200]}; "
            f"run `git checkout HEAD -- {file}`, then `dvc repro`"
        ) from error


def code_deps(stages: dict[str, Any]) -> list[str]:
    """The files and folders of code that any stage depends on, sorted."""
    return sorted({dep for stage in stages.values() for dep in stage.get("deps", []) if dep.split("/")[0] in CODE})


def outs_of(definition: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Path and options of each output of a stage of dvc.yaml, metrics and plots among them."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in definition.get(kind, [])]
    return [(out, {}) if isinstance(out, str) else next(iter(out.items())) for out in listed]


def up_to_date_stages(
    tree: Tree,
    params: dict[str, Any],
    is_there: Callable[[dict[str, Any]], bool] | None = None,
    just_ran: str | None = None,
) -> list[str]:
    """Names of the stages whose entry in dvc.lock describes these params and this code, in the order of dvc.yaml.

    Args:
        params: params.yaml, as its sections.
        is_there: whether an output is in reach, by its entry in dvc.lock; None: all are.
        just_ran: a stage that DVC has not written into dvc.lock yet; what comes after it is left out.

    Raises:
        UserError: if dvc.yaml or dvc.lock cannot be read.
    """
    stages, lock = read_stages(tree), read_stages(tree, LOCK)
    produced: dict[str, str | None] = {}  # md5 of the outputs of the stages that are up to date, by path
    code: dict[str, str | None] = {}
    up_to_date: list[str] = []
    for stage, definition in stages.items():
        if stage == just_ran:
            return [*up_to_date, stage]
        code |= {path: md5_of(tree, path) for path in code_deps({stage: definition}) if path not in code}
        try:
            entry = lock[stage]
            if paths.WATCHED.as_posix() in definition.get("deps", []):
                code[paths.WATCHED.as_posix()] = _watched_md5(lock, params)
            current = _matches(tree, entry, definition, params, produced | code)
            if current and all(is_there(out) for out in entry["outs"] if is_there):
                produced |= {out["path"]: out["md5"] for out in entry["outs"]}
                up_to_date.append(stage)
        except (AttributeError, KeyError, TypeError):  # an entry that DVC did not write describes nothing
            continue
    return up_to_date


def _watched_md5(lock: dict[str, Any], params: dict[str, Any]) -> str:
    """DVC's fingerprint of the folder data/watched, by what dvc.lock has of the stages that write into it."""
    outs = [lock[f"watch@{item}"]["outs"][0] for item in params["data"]["watch"]]
    return folder_md5({Path(out["path"]).name: out["md5"] for out in outs})


def _matches(
    tree: Tree, entry: dict[str, Any], definition: dict[str, Any], params: dict[str, Any], known: dict[str, str | None]
) -> bool:
    locked = entry.get("params", {}).get("params.yaml", {})
    wanted = {name: reduce(getitem, name.split("."), params) for name in definition.get("params", [])}
    if entry["cmd"] != definition["cmd"] or locked.keys() != wanted.keys():
        return False
    if not all(_is_same(locked[name], value) for name, value in wanted.items()):
        return False
    deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    for path in definition.get("deps", []):
        # DVC itself compares the data source; the manifest tells what was in it.
        if path != SOURCE and (known.get(path) is None or deps.get(path) != known[path]):
            return False
    in_git = {path for path, options in outs_of(definition) if options.get("cache") is False}
    return all(md5_of(tree, out["path"]) == out["md5"] for out in entry["outs"] if out["path"] in in_git)


def _is_same(locked: Any, value: Any) -> bool:
    """Whether dvc.lock has that value. YAML 1.1 reads as true, false and text what DVC writes as on, off and 1e-05."""
    if isinstance(locked, dict) and isinstance(value, dict):
        return locked.keys() == value.keys() and all(_is_same(locked[key], item) for key, item in value.items())
    if isinstance(locked, list) and isinstance(value, list):
        return len(locked) == len(value) and all(map(_is_same, locked, value))
    if locked == value or (isinstance(locked, bool) and value == ("on" if locked else "off")):
        return True
    try:
        return float(locked) == float(value)
    except (TypeError, ValueError):
        return False


def is_as_locked(out: dict[str, Any]) -> bool:
    """Whether the workspace has an output as its entry in dvc.lock tells of it."""
    file = Path(out["path"])
    if not file.is_file():
        return False
    size = file.stat().st_size
    return size == out.get("size", size) and (size > MAX_HASHED_BYTES or md5_of(Workspace(), out["path"]) == out["md5"])


def describe_other_source(source: str) -> str:
    """What to say if prepare, and so the model, is of another data.source by dvc.lock; empty if not, or if unknown."""
    try:
        known = read_stages(Workspace(), LOCK)["prepare"]["params"]["params.yaml"]["data"]["source"]
    except (KeyError, TypeError, UserError):  # not there, or damaged
        return ""
    if known == source:
        return ""
    return f"params.yaml: data.source is {source!r}, but dvc.lock says that the model was trained on {known!r}"


def is_recorded(file: Path) -> bool | None:
    """Whether the workspace has the very file there that dvc.lock records; None if it records none, or there is none.

    All of the file counts, however large it is: two models of one architecture have the same size.

    Raises:
        UserError: if dvc.lock cannot be read.
    """
    path = Path(os.path.relpath(file)).as_posix()
    locked = {out["path"]: out for stage in read_stages(Workspace(), LOCK).values() for out in stage.get("outs", [])}
    if path not in locked or not file.is_file():
        return None
    if file.stat().st_size != locked[path].get("size", file.stat().st_size):
        return False
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return bool(digest.hexdigest() == locked[path].get("md5"))
