"""What people type, in a clone of the repository."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project, make_project, paint
from mlflow import MlflowClient

STAGES = ("prepare", "extract", "train_head", "fine_tune", "evaluate")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Project:
    """A project after its first `dvc repro`, committed; the tests below go on from each other's state."""
    project = make_project(tmp_path_factory.mktemp("end_to_end"))
    output = project.run("dvc repro")
    assert output.count("Running stage") == 5
    assert "oneDNN" not in output  # TensorFlow's chatter
    project.run("git add -A && git commit -qm run")
    return project


def lock(project: Project) -> str:
    return (project.root / "dvc.lock").read_text()


def experiments(project: Project) -> dict[str, dict[str, str | None]]:
    """Row names, each with its stages and whether they were restored."""
    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("headstart").experiment_id])
    return {
        parent.info.run_name: {
            run.info.run_name: run.data.tags.get("headstart.restored")
            for run in runs
            if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        }
        for parent in runs
        if "headstart.key" in parent.data.tags
    }


def versions(project: Project) -> list[str]:
    """The row of each version of the registered model, oldest first; nothing may wait to be registered."""
    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    experiment = client.get_experiment_by_name("headstart").experiment_id
    assert client.search_runs([experiment], "tags.`headstart.model_version` = 'waiting'") == []
    found = sorted(client.search_model_versions("name = 'headstart'"), key=lambda version: int(version.version))
    return [client.get_run(version.run_id).info.run_name for version in found]


def test_a_run_leaves_its_row_and_nothing_for_git(done):
    ((_, stages),) = experiments(done).items()
    assert stages == dict.fromkeys(["prepare", "extract", "train_head", "fine_tune", "evaluate"])
    assert len(versions(done)) == 1
    assert done.run("git status --porcelain") == ""
    for table in (done.run("dvc metrics show"), done.run("dvc metrics diff --all")):
        assert "metrics/evaluate.json" in table
    assert "index.html" in done.run("dvc plots show")


def test_a_second_run_runs_nothing(done):
    before = lock(done)
    assert "Running stage" not in done.run("dvc repro")
    done.run("python -m headstart.tracking.commands")
    assert lock(done) == before
    assert len(experiments(done)) == 1


@pytest.fixture(scope="module")
def tried(done) -> dict[str, Any]:
    """What is there before an experiment, after it, and after the way back."""
    page = done.root / "reports/report.html"
    done.run("python -m headstart.report.results_page --if-stale")

    def state(output: str) -> dict[str, Any]:
        figures = [json.loads((done.root / f"metrics/{name}.json").read_text()) for name in ("extract", "cost")]
        return {"output": output, "lock": lock(done), "figures": figures, "page": page.read_text(encoding="utf-8")}

    before = state("")
    there = state(done.run("dvc exp run -n four -S weights=none -S 'train_head.hidden=[4]' -S fine_tune.unfreeze=none"))
    there |= {"params": done.run("dvc params diff"), "metrics": done.run("dvc metrics diff")}
    done.run("git checkout -q params.yaml")
    output = done.run("dvc repro")
    done.run("python -m headstart.tracking.commands")
    assert done.run("python -m headstart.report.results_page --if-stale") == "results: reports/report.html\n"
    return {"before": before, "there": there, "back": state(output)}


def test_only_what_depends_on_a_change_runs_and_the_way_back_is_free(done, tried):
    output = tried["there"]["output"]
    assert "Running stage 'prepare'" not in output
    assert output.count("Running stage") == 4
    assert experiments(done)["four"] == {"prepare": "true", **dict.fromkeys(STAGES[1:])}
    assert set(versions(done)) >= {"four"}
    assert "train_head.hidden" in tried["there"]["params"]
    assert "metrics/train_head.json" in tried["there"]["metrics"]
    # DVC restores nothing of prepare: it may run again, to the same files.
    assert "Running stage" not in tried["back"]["output"].replace("Running stage 'prepare'", "")
    assert tried["back"]["lock"] == tried["before"]["lock"] != tried["there"]["lock"]


def test_what_is_restored_has_the_figures_of_what_was_computed(tried):
    before, there, back = (tried[when]["figures"] for when in ("before", "there", "back"))
    assert set(before[1]) == {*(f"{stage}_seconds" for stage in STAGES), "latency_ms"}
    assert there[0] != before[0] == back[0]
    assert there[1] != before[1]
    for _, cost in (before, back):
        del cost["prepare_seconds"]
    assert before[1] == back[1]


def test_the_page_of_results_follows_the_results(done, tried):
    """Also where DVC restores them."""
    before, there, back = (tried[when]["page"] for when in ("before", "there", "back"))
    assert "dvc repro</pre>" in before
    assert "train_head.hidden=[4]" in there
    assert "dvc repro</pre>" in back
    assert "run dvc repro." not in back
    assert done.run("python -m headstart.report.results_page --if-stale") == ""


def test_results_of_other_params_are_compared_with_a_warning(done, tried):
    warning = "The results in the workspace are not those of its params and code; run `dvc repro`."
    assert warning not in done.run("python -m headstart.evaluation.compare HEAD")
    done.set(**{"train_head.epochs": 77})
    assert warning in done.run("python -m headstart.evaluation.compare HEAD")
    done.set()


def test_a_temporary_experiment_has_its_row_and_shares_the_feature_store(done, tried):
    output = done.run("dvc exp run --temp -n temporary -S seed=5 extract", TQDM_DISABLE="1")
    assert "0 computed; 48 from the feature store" in output
    assert set(experiments(done)["temporary"]) == {"prepare", "extract"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("photos/red/cut.jpg", "prepare: photos: 1 of 49 files cannot be used as images:\n  photos/red"),
        ("photos/blue/", "prepare: photos: no image in the class folder 'blue'; put images there or remove it"),
        ("photos/rare/", "classes are not in each of train, val and test:\n  rare: "),
    ],
)
def test_spoiled_data_leaves_earlier_results(done, spoil, message):
    before = {path: path.read_bytes() for path in [*done.root.glob("data/prepared/*"), *done.root.glob("m*s/*.*")]}
    shutil.copytree(done.root / "photos", done.root / "aside")
    path = done.root / spoil
    if spoil.endswith("jpg"):
        path.write_bytes((done.root / "photos/red/000.png").read_bytes()[:300])
    elif "rare" in spoil:
        for index in range(2):
            paint(path / f"{index}.png", (9, 9, 9), index)
    else:
        for file in path.iterdir():
            file.unlink()
    try:
        assert message.replace("photos/red", "red") in done.run("python -m pipeline.prepare", code=1)
        output = done.run("dvc repro", code=None)
        assert "exited with 1" in output
        assert "Traceback" not in output
        assert {path: path.read_bytes() for path in before} == before
    finally:
        shutil.rmtree(done.root / "photos")
        (done.root / "aside").rename(done.root / "photos")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "mobilnetv2"}, "params.yaml: backbone 'mobilnetv2' is unknown; did you mean 'mobilenetv2'"),
        ({"train_head": {"droput": 0.5}}, "params.yaml: train_head.droput is not a known key; did you mean 'dropout'?"),
        ({"data.source": "nowhere"}, "params.yaml: data.source 'nowhere' does not exist"),
        ({"weights": "nowhere.h5"}, "weights file 'nowhere.h5' does not exist"),
    ],
)
def test_wrong_params_leave_earlier_results(done, changes, message):
    model = (done.root / "models/model.keras").read_bytes()
    features = (done.root / "features/train.npy").read_bytes()
    done.set(**changes)
    try:
        command = "extract" if "weights" in changes else "prepare"
        assert message in done.run(f"python -m pipeline.{command}", code=1)
        output = done.run("dvc repro", code=None)
        assert "failed" in output.lower() or "missing" in output.lower()
        assert "Traceback" not in output
        assert (done.root / "models/model.keras").read_bytes() == model
        assert (done.root / "features/train.npy").read_bytes() == features
    finally:
        done.set()


def test_an_output_that_cannot_be_written(done):
    shutil.move(done.root / "data/prepared", done.root / "aside")
    (done.root / "data/prepared").write_text("a file in the place of the folder")
    try:
        output = done.run("python -m pipeline.prepare", code=1)
        assert re.search(r"data/prepared/\S+: cannot be written", output)
        assert "Traceback" not in output
    finally:
        (done.root / "data/prepared").unlink()
        shutil.move(done.root / "aside", done.root / "data/prepared")


def test_the_same_bits_again_without_any_cache(done):
    done.run("git checkout -q . && dvc repro")
    before = lock(done)
    for name in (".dvc/cache", ".dvc/tmp", "data/prepared", "features", "models", "predictions", "metrics", "plots"):
        shutil.rmtree(done.root / name)
    assert done.run("dvc repro --force").count("Running stage") == 5
    assert lock(done) == before
    assert yaml.safe_load(before)["stages"].keys() == {"prepare", "extract", "train_head", "fine_tune", "evaluate"}


def test_a_fresh_clone_checks_its_params_at_the_door(project: Project):
    project.set(**{"train_head.dropout": 1.5})
    output = project.run("python -m headstart.config", code=1)
    assert output == "params.yaml: train_head.dropout must be in [0, 1) or null, got 1.5\n"
    assert not Path(project.root / "data").exists()
