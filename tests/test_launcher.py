"""A stage that is interrupted while its libraries are still loading."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, Project

from headstart.lockfile import Workspace, read_stages
from pipeline.__main__ import STAGES

MODULES = ("headstart", "numpy", "pandas", "scipy", "yaml", "pydantic", "headstart.config", "tqdm", "h5py", "sklearn")
OUT = "models/head.keras"
DVC_YAML = f"stages:\n  train_head:\n    cmd: mkdir -p models && echo trained > {OUT}\n    outs: [{OUT}]\n"
# What a shell starts with & ignores Ctrl-C, hence the first line.
INTERRUPTED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
number, module = int(sys.argv[1]), sys.argv[2]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
sys.argv = ["pipeline", "train_head"]
runpy.run_module("pipeline", run_name="__main__")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Project:
    """A repository whose only stage has run: DVC's cache has its output."""
    project = Project(tmp_path_factory.mktemp("launcher"), {"PYTHONPATH": str(ROOT)})
    (project.root / "dvc.yaml").write_text(DVC_YAML)
    project.run("git init -q && dvc init -q && dvc repro -q")
    return project


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=[] if name == "numpy" else pytest.mark.slow) for name in MODULES]
)
def test_an_interrupted_import_puts_the_outputs_back(repository, module, number):
    output = repository.root / OUT
    output.unlink(missing_ok=True)  # as DVC does before it starts a stage
    command = shlex.join([sys.executable, "-c", INTERRUPTED, str(int(number)), module])
    assert repository.run(command, code=128 + number) == ""
    assert output.read_text() == "trained\n"


def test_a_failed_import_puts_the_outputs_back(repository):
    output = repository.root / OUT
    output.unlink(missing_ok=True)
    (repository.root / "pandas.py").write_text("raise RuntimeError('broken')")
    assert "RuntimeError: broken" in repository.run(f"{sys.executable} -m pipeline train_head", code=1)
    (repository.root / "pandas.py").unlink()
    assert output.read_text() == "trained\n"


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["prepare", "extract"]])
def test_the_launcher_wants_one_stage(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"python -m pipeline {{{','.join(STAGES)}}}" in done.stderr


def test_the_launcher_knows_the_stages_of_the_map():
    stages = read_stages(Workspace(ROOT))
    assert {name: stage["cmd"] for name, stage in stages.items()} == {
        name: f"python -m pipeline {name}" for name in STAGES
    }
