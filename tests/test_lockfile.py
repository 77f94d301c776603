"""Which stages are up to date: in the workspace and in a commit, as DVC itself sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from headstart import lockfile
from headstart.errors import UserError
from headstart.lockfile import Revision, Workspace, git_objects, is_as_locked, md5_of, up_to_date_stages

DEFINITION = {
    "cmd": "python -m pipeline evaluate",
    "params": ["seed", "evaluate"],
    "deps": ["${data.source}", "headstart/evaluation", "pipeline/evaluate.py"],
    "outs": ["predictions/test.csv"],
    "metrics": [{"metrics/evaluate.json": {"cache": False}}],
}
PARAMS = {"seed": 1, "evaluate": {"top_k": 3, "mode": "on"}}
FILES = {
    "headstart/evaluation/a.py": "a",
    "headstart/evaluation/sub/b.py": "b",
    "headstart/evaluation/a-b.py": "c",
    "pipeline/evaluate.py": "e",
    "predictions/test.csv": "path,label\n",
    "metrics/evaluate.json": "{}",
}


def out(path: str) -> dict[str, Any]:
    return {"path": path, "md5": md5_of(Workspace(), path), "size": Path(path).stat().st_size}


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """A workspace whose stage evaluate is up to date."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": DEFINITION}}))
    lock = {
        "cmd": DEFINITION["cmd"],
        "deps": [{"path": path, "md5": md5_of(Workspace(), path)} for path in DEFINITION["deps"][1:]],
        # DVC writes the word on bare.
        "params": {"params.yaml": {"seed": 1, "evaluate": {"top_k": 3, "mode": True}}},
        "outs": [out("predictions/test.csv"), out("metrics/evaluate.json")],
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"evaluate": lock}}))
    return tmp_path


def current(params: dict[str, Any] = PARAMS) -> list[str]:
    return up_to_date_stages(Workspace(), params, is_as_locked)


def test_what_dvc_lock_describes_is_up_to_date(here):
    assert current() == ["evaluate"]


@pytest.mark.parametrize(
    "path",
    ["headstart/evaluation/sub/b.py", "headstart/evaluation/new.py", "pipeline/evaluate.py", "metrics/evaluate.json"],
)
def test_other_code_or_results_are_not(here, path):
    Path(path).write_text("changed")
    assert current() == []


def test_bytecode_and_other_folders_do_not_count(here):
    for path in ("headstart/evaluation/__pycache__/a.pyc", "headstart/report/page.py", "README.md"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("x")
    assert current() == ["evaluate"]


@pytest.mark.parametrize("changes", [{"seed": 2}, {"evaluate": {"top_k": 4, "mode": "on"}}, {"evaluate": {"top_k": 3}}])
def test_other_params_are_not(here, changes):
    assert current(PARAMS | changes) == []
    assert current(PARAMS | {"gate": 1}) == ["evaluate"]


def test_a_missing_or_changed_output_is_not(here, monkeypatch):
    Path("predictions/test.csv").write_text("path,labels\n")
    assert current() == []
    monkeypatch.setattr(lockfile, "MAX_HASHED_BYTES", 5)
    Path("predictions/test.csv").write_text("PATH,LABEL\n")  # large files are compared by their size
    assert current() == ["evaluate"]
    Path("predictions/test.csv").unlink()
    assert current() == []


def test_a_commit_is_read_without_a_checkout(here):
    git = "git -c user.name=x -c user.email=x@example.org"
    subprocess.run(f"git init -q && git add -A && {git} commit -qm x", shell=True, check=True)
    shutil.rmtree("headstart")
    assert current() == []
    with git_objects(here) as objects:
        commit = Revision(objects, "HEAD")
        assert up_to_date_stages(commit, PARAMS) == ["evaluate"]
        assert commit.read(Path("nowhere")) is None
        assert commit.read(Path("headstart")) is None
        assert sorted(commit.below(Path("headstart/evaluation"))) == ["a-b.py", "a.py", "sub/b.py"]


def test_files_of_a_commit_are_read_as_they_were_committed(here):
    git = "git -c user.name=x -c user.email=x@example.org"
    files = {"params.yaml": b"seed: 1\n", "a folder/of two words.bin": bytes(range(256)) * 4000, "empty": b""}
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    subprocess.run(f"git init -q && git add -A && {git} commit -qm one", shell=True, check=True)
    Path("params.yaml").write_bytes(b"seed: 2\n")
    subprocess.run(f"{git} commit -qam two", shell=True, check=True)
    with git_objects(here) as objects:
        for _ in range(3):
            for name, content in files.items():
                assert Revision(objects, "HEAD~1").read(Path(name)) == content
            for name in ("none", "a folder", "none\nparams.yaml"):
                assert Revision(objects, "HEAD").read(Path(name)) is None
        assert Revision(objects, "HEAD").read(Path("params.yaml")) == b"seed: 2\n"
        assert Revision(objects, "HEAD", Path("a folder")).read(Path("of two words.bin"))
        assert Revision(objects, "nowhere").read(Path("params.yaml")) is None


def test_folders_have_the_fingerprint_that_dvc_gives_them(here):
    Path("dvc.yaml").unlink()
    Path(".dvcignore").write_text("__pycache__")
    Path("headstart/evaluation/__pycache__").mkdir()
    Path("headstart/evaluation/__pycache__/a.pyc").write_text("x")
    subprocess.run("git init -q && dvc init -q && dvc add -q headstart/evaluation", shell=True, check=True)
    added = yaml.safe_load(Path("headstart/evaluation.dvc").read_text())
    assert md5_of(Workspace(), "headstart/evaluation") == added["outs"][0]["md5"]


DAMAGED = ["<<<<<<< HEAD\n- a: b: c", "stages: [1]", "stages: {evaluate: 1}", "- 1", "text", "[" * 3000,
           "- " * 3000 + "1", "stages: {evaluate: 2020-13-45}", "a: \udce9"]  # fmt: skip


@pytest.mark.parametrize("loader", [lockfile.SAFE_LOADER, yaml.SafeLoader])
@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_named_with_the_way_out(here, monkeypatch, content, loader):
    monkeypatch.setattr(lockfile, "SAFE_LOADER", loader)
    Path("dvc.lock").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"dvc\.lock: cannot be read: .*run `git checkout HEAD -- dvc\.lock`"):
        current()


def test_an_entry_that_dvc_did_not_write_describes_nothing(here):
    Path("dvc.lock").write_text(json.dumps({"stages": {"evaluate": {"cmd": DEFINITION["cmd"]}}}))
    assert current() == []


def test_a_stage_of_the_users_own_may_have_no_deps(here):
    definition = yaml.safe_load(Path("dvc.yaml").read_text())
    definition["stages"] |= {"mine": {"cmd": "true"}}
    Path("dvc.yaml").write_text(yaml.safe_dump(definition))
    assert lockfile.code_deps(definition["stages"]) == ["headstart/evaluation", "pipeline/evaluate.py"]
    assert current() == ["evaluate"]
