"""What people type, in a clone of the repository: through DVC itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Project, make_project, paint
from mlflow import MlflowClient

from headstart.head_config import OPEN

HEAD_ONLY = {"fine_tune.unfreeze": "none", **{f"train_head.{key}": value for key, value in OPEN.items()}}
STAGES = ("prepare", "extract", "train_head", "fine_tune", "evaluate")


@pytest.fixture(scope="module")
def done(tmp_path_factory, fresh_store) -> Project:
    """A project after its first `dvc repro`, committed; the tests below go on from each other's state.

    Nothing is fine-tuned, as in test_text_stages; test_fine_tune does that in this process, the slow tests through DVC.
    """
    project = make_project(tmp_path_factory.mktemp("end_to_end"), **HEAD_ONLY)
    shutil.copy(fresh_store, project.root / "mlflow.db")
    output = project.run("dvc repro")
    assert output.count("Running stage") == 5
    assert "oneDNN" not in output  # TensorFlow's chatter
    project.run("git add -A && git commit -qm run")
    return project


def lock(project: Project) -> str:
    return (project.root / "dvc.lock").read_text()


def rows(project: Project) -> dict[str, dict[str, str | None]]:
    """Names of the rows in MLflow, each with its stages and whether they were restored."""
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


def test_a_run_leaves_its_row_and_nothing_for_git(done):
    ((_, stages),) = rows(done).items()
    assert stages == dict.fromkeys(STAGES)
    assert done.run("git status --porcelain") == ""
    assert "index.html" in done.run("dvc plots show")


def test_a_second_run_runs_nothing_and_leaves_git_clean(done):
    before = lock(done)
    assert "Running stage" not in done.run("dvc repro")
    done.run("python -m headstart track")
    assert lock(done) == before
    assert len(rows(done)) == 1
    assert done.run("git status --porcelain") == ""


def test_code_that_shapes_no_result_runs_no_stage_and_makes_no_second_row(done):
    changed = [
        *("headstart/tracking/__init__.py", "headstart/report/rendering.py", "headstart/report/templates/page.html"),
        *("headstart/serving/__init__.py", "headstart/cli.py", "README.md"),
    ]
    for name in changed:
        with (done.root / name).open("a") as stream:
            stream.write("\n# changed\n" if name.endswith(".py") else "\n<!-- changed -->\n")
    assert "up to date" in done.run("dvc status")
    done.run("python -m headstart track")
    assert len(rows(done)) == 1
    done.run("git checkout -q . && git clean -qf README.md")


def test_code_that_shapes_features_runs_extract_again(done):
    store = done.root / "headstart/features/store.py"
    store.write_text(store.read_text() + "\n# changed\n")
    status = done.run("dvc status")
    assert re.findall(r"^(\w+):$", status, re.MULTILINE) == ["extract", "fine_tune"]
    done.run("git checkout -q .")


@pytest.mark.slow
def test_only_what_depends_on_a_change_runs_and_the_way_back_is_free(done):
    before = lock(done)
    output = done.run("dvc exp run -n wide -S 'train_head.hidden=[4]'")
    assert re.findall(r"Running stage '(\w+)'", output) == ["train_head", "fine_tune", "evaluate"]
    assert rows(done)["wide"].keys() >= set(STAGES[2:])
    assert "train_head.hidden" in done.run("dvc params diff")
    table = done.run("dvc metrics diff", COLUMNS="120")
    assert "head_val_loss" in table
    assert max(map(len, table.splitlines())) <= 120
    shown = done.run("dvc exp show --only-changed --no-pager", COLUMNS="120")
    assert "train_head.hidden" in shown
    assert max(map(len, shown.splitlines())) <= 120
    done.run("git checkout -q .")
    output = done.run("dvc repro")
    # DVC restores nothing of prepare: it may run again, to the same files.
    assert "Running stage" not in output.replace("Running stage 'prepare'", "")
    assert lock(done) == before
    done.run("python -m headstart track")
    assert rows(done)["wide"].keys() == set(STAGES)
    assert len(rows(done)) == 2


@pytest.mark.slow
def test_another_size_is_another_run(done):
    """DVC's run cache does not look at keys named size."""
    before = lock(done)
    done.set(**{**HEAD_ONLY, "extract.size": 48})
    assert "Running stage 'extract'" in done.run("dvc repro extract")
    assert json.loads((done.root / "features/meta.json").read_text())["size"] == 48
    done.run("git checkout -q .")
    done.run("dvc checkout")
    assert lock(done) == before


@pytest.mark.slow
def test_results_of_other_params_are_compared_with_a_warning(done):
    warning = "Warning: workspace has no results of its own: train_head, fine_tune and evaluate did not run with its p"
    assert warning not in done.run("python -m headstart compare HEAD")
    done.set(**{**HEAD_ONLY, "train_head.epochs": 77})
    assert warning in done.run("python -m headstart compare HEAD")
    done.set(**HEAD_ONLY)


@pytest.mark.slow
def test_the_pages_are_no_change_for_git(done):
    done.run("python -m headstart report --if-stale")
    assert done.run("git status --porcelain") == ""


@pytest.mark.slow
def test_a_temporary_experiment_runs_nothing_that_is_known(done):
    output = done.run("dvc exp run --temp -n temporary -S train_head.epochs=2 train_head", TQDM_DISABLE="1")
    assert re.findall(r"Running stage '(\w+)'", output) == ["train_head"]
    output = done.run("dvc exp run --temp -n seeded -S seed=5 extract", TQDM_DISABLE="1")
    assert "0 computed; 48 from the feature store" in output
    assert rows(done)["seeded"].keys() >= {"prepare", "extract"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("photos/red/cut.jpg", "prepare: photos: 1 of 49 files cannot be used:\n  photos/red"),
        pytest.param("photos/blue/", "photos: no image in the class folder 'blue'; put images", marks=pytest.mark.slow),
        pytest.param("photos/rare/", "not in each of train, val and test:\n  rare: ", marks=pytest.mark.slow),
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
        output = done.run("dvc repro", code=None)
        assert message.replace("photos/red", "red") in output
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
        pytest.param({"data.source": "nowhere"}, "data.source 'nowhere' does not exist", marks=pytest.mark.slow),
        pytest.param({"weights": "nowhere.h5"}, "weights file 'nowhere.h5' does not exist", marks=pytest.mark.slow),
    ],
)
def test_wrong_params_leave_earlier_results(done, changes, message):
    model = (done.root / "models/model.keras").read_bytes()
    features = (done.root / "features/train.npy").read_bytes()
    done.set(**HEAD_ONLY, **changes)
    try:
        assert message in done.run("python -m headstart check", code=1)
        output = done.run("dvc repro", code=None)
        assert "failed" in output.lower() or "missing" in output.lower()
        assert "Traceback" not in output
        assert (done.root / "models/model.keras").read_bytes() == model
        assert (done.root / "features/train.npy").read_bytes() == features
    finally:
        done.set(**HEAD_ONLY)


def test_an_output_that_cannot_be_written(done):
    shutil.move(done.root / "data/prepared", done.root / "aside")
    (done.root / "data/prepared").write_text("a file in the place of the folder")
    try:
        output = done.run("python -m pipeline prepare", code=1)
        assert re.search(r"data/prepared/\S+: cannot be written", output)
        assert "Traceback" not in output
    finally:
        (done.root / "data/prepared").unlink()
        shutil.move(done.root / "aside", done.root / "data/prepared")


@pytest.mark.slow
def test_the_same_bits_again_without_any_cache(done):
    done.set()  # with fine-tuning
    done.run("dvc repro")
    before = lock(done)
    for name in (".dvc/cache", ".dvc/tmp", "data/prepared", "features", "models", "predictions", "metrics", "plots"):
        shutil.rmtree(done.root / name)
    assert done.run("dvc repro --force").count("Running stage") == 5
    assert lock(done) == before
    assert yaml.safe_load(before)["stages"].keys() == set(STAGES)


def test_a_fresh_clone_checks_its_params_at_the_door(project: Project):
    project.set(**{"train_head.dropout": 1.5})
    output = project.run("python -m headstart check", code=1)
    assert output == "params.yaml: train_head.dropout must be in [0, 1) or null, got 1.5\n"
    assert not Path(project.root / "data/prepared").exists()


def test_reports_hold_what_is_not_compared(done):
    report = json.loads((done.root / "reports/evaluate.json").read_text())
    metrics = json.loads((done.root / "metrics/evaluate.json").read_text())
    assert metrics.keys() == {"accuracy", "macro_f1", "log_loss"}
    accuracy = report["final"]["metrics"]["accuracy"]
    assert accuracy["low"] <= metrics["accuracy"] <= accuracy["high"]
    assert json.loads((done.root / "reports/fine_tune.json").read_text())["selected"] in ("head", "fine_tuned")
