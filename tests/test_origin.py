"""Where results come from, and the command that makes them again."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import write_params
from dvc.utils.hydra import apply_overrides

from headstart import provenance
from headstart.config import load_params


def git(*arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *who, *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> str:
    """A repository with params.yaml and a module; its commit."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_EXP_BASELINE_REV", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    write_params(Path("params.yaml"))
    Path("pipeline").mkdir()
    Path("pipeline/train_head.py").write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "start")
    return git("rev-parse", "HEAD")


def test_dirty_is_what_the_command_cannot_bring_back(repository, monkeypatch):
    assert provenance.tags() == {"git_commit": repository, "git_dirty": "false"}
    Path("notes.txt").write_text("of no account")
    write_params(Path("params.yaml"), backbone="resnet50")  # the command names it
    assert provenance.tags()["git_dirty"] == "false"
    Path("pipeline/new.py").write_text("2")
    assert provenance.tags()["git_dirty"] == "true"
    git("add", "-A")
    git("commit", "-qm", "more")
    assert provenance.tags()["git_dirty"] == "false"
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", repository)
    monkeypatch.setenv("DVC_EXP_NAME", "nice-name")
    assert provenance.tags() == {"git_commit": repository, "git_dirty": "true", "dvc_experiment": "nice-name"}


def test_the_command_brings_back_every_param(repository):
    assert provenance.command(repository, load_params().leaves()) == f"git checkout {repository} && dvc repro"
    changes = {
        "backbone": "mobilenetv2",
        "data.source": "my photos/it's",
        "prepare.group_by": r"(\d+)_view\\'",
        "train_head.hidden": [256, 64],
        "train_head.batch_norm": True,
        "train_head.search": {"dropout": [0, 0.5], "hidden": [[], [256]]},
        "train_head.learning_rate": 1e-05,
        "fine_tune.epochs": 7,
        "fine_tune.precision": "bfloat16",
        "train_head.class_weight": "balanced",
        "fine_tune.unfreeze": "none",
        "fine_tune.trunk_cache": "on",
    }
    wanted = {**load_params().leaves(), **changes}
    command = provenance.command(repository, wanted)
    checkout, run = command.split(" && ")
    assert checkout == f"git checkout {repository}"
    words = shlex.split(run)
    assert words[:3] == ["dvc", "exp", "run"]
    overrides = words[4::2]
    named = {text.split("=")[0].lstrip("+") for text in overrides}
    assert named == {"train_head.search.dropout", "train_head.search.hidden", *changes} - {"train_head.search"}
    apply_overrides(Path("params.yaml"), overrides)  # what DVC does with -S
    assert load_params().leaves() == wanted


@pytest.mark.parametrize(
    ("before", "value"),
    [
        (1, 2), (0.5, None), (None, True), ("a", "s3://bucket/a b?x=1"), ("a", "null"), ("a", 'it\'s "q" \\ b\\'),
        ("a", r"(\d+)_[a-z]"), ([128], []), ([], [64, 32]), ({}, {"dropout": [0, 0.5], "hidden": [[], [256]]}),
        ({"dropout": [0], "epochs": [1]}, {"dropout": [1, 2], "activation": ["relu"]}), ({"dropout": [0]}, {}),
    ],
)  # fmt: skip
def test_dvc_reads_the_options_as_they_are_meant(tmp_path, before, value):
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({"section": {"key": before, "other": 1}}))
    apply_overrides(file, provenance.options("section.key", before, value))
    assert yaml.safe_load(file.read_text()) == {"section": {"key": value, "other": 1}}


def test_outside_of_git_there_is_a_command_still(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    assert provenance.tags() == {}
    assert provenance.command("", {}) == "dvc repro"
