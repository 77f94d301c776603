"""dvc.yaml holds what the code does: every module that a stage imports, every param that it reads, every file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from headstart import paths
from headstart.config import load_params

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def imported(module: Path) -> set[Path]:
    """The files of this package that `module` imports, by themselves or through others, and itself."""
    found, waiting = set(), [module]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pipeline":
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("pipeline.")]
            candidates = (ROOT / f"{name.replace('.', '/')}.py" for name in names)
            waiting += [candidate for candidate in candidates if candidate.is_file()]
    return found


def read_params(module: Path) -> set[str]:
    """The leaves of params.yaml that the source of a stage reads, as `params.a` or `params.a.b`."""
    leaves = set(load_params(ROOT / "params.yaml").leaves())
    words = set(re.findall(r"\bparams\.(\w+(?:\.\w+)?)", module.read_text(encoding="utf-8")))
    # A section by itself stands for all of its leaves.
    used = {
        leaf for word in words for leaf in leaves if word in (leaf, leaf.split(".")[0]) or word.split(".")[0] == leaf
    }
    unknown = {word for word in words if not any(leaf.split(".")[0] == word.split(".")[0] for leaf in leaves)}
    assert not unknown - {"leaves", "yaml"}, unknown
    return used


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_is_a_dep_and_every_dep_is_needed(stage):
    needed = {path.relative_to(ROOT).as_posix() for path in imported(ROOT / "pipeline" / f"{stage}.py")}
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline/") and dep.endswith(".py")}
    assert listed == needed
    data = {"headstart/backbones/weights/tiny.weights.h5"} if "weights" in STAGES[stage]["params"] else set()
    # The template of a module lies beside it.
    data |= {name for file in needed if (ROOT / (name := file.replace(".py", ".html"))).is_file()}
    assert {dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline/")} - listed == data


@pytest.mark.parametrize("stage", STAGES)
def test_the_params_are_those_that_the_stage_reads(stage):
    module = ROOT / "pipeline" / f"{stage}.py"
    # Of other modules those that learn may be given all params.
    files = {module} | {file for file in imported(module) if file.parent.name == "learning"}
    assert set(STAGES[stage]["params"]) == set().union(*map(read_params, files))


def test_every_param_is_read_by_a_stage_or_by_the_gate():
    of_stages = {param for stage in STAGES.values() for param in stage["params"]}
    of_gate = {param for param in read_params(ROOT / "pipeline" / "gate.py") if param.startswith("gate.")}
    assert not of_stages & of_gate  # a stage that read them would run again under other rules
    assert set(load_params(ROOT / "params.yaml").leaves()) == of_stages | of_gate


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_each_other(stage):
    others = {ROOT / "pipeline" / f"{other}.py" for other in STAGES if other != stage}
    assert not imported(ROOT / "pipeline" / f"{stage}.py") & others


def test_the_files_have_the_names_that_the_code_gives_them():
    outs = {
        out if isinstance(out, str) else next(iter(out))
        for stage in STAGES.values()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    }
    single = (paths.MANIFEST, paths.CLASSES, paths.QUARANTINE, paths.FEATURES_META, paths.HEAD, paths.MODEL)
    single += (
        paths.TRAIN_VIEWS,
        paths.IGNORED,
        paths.DATA_PAGE,
        paths.CONFUSION,
        paths.PREDICTIONS,
        paths.report("evaluate"),
        paths.CLASSES_PLOT,
        paths.RELIABILITY,
        paths.PRECISION_RECALL,
        paths.ROC,
        *map(paths.report, ("train_head", "fine_tune")),
        paths.curves("train_head"),
        paths.TRIALS,
        paths.curves("fine_tune"),
    )
    metrics = tuple(paths.metrics(stage) for stage in STAGES if stage != "extract")
    assert outs == {path.as_posix() for path in (*single, *paths.FEATURES.values(), *metrics)}


def test_metrics_and_plots_need_no_pull():
    for stage in STAGES.values():
        for entry in (*stage.get("metrics", []), *stage.get("plots", [])):
            assert next(iter(entry.values()))["cache"] is False
        # Of other outputs one without cache keeps DVC from ever restoring the stage.
        assert not any("cache" in next(iter(out.values())) for out in stage["outs"] if isinstance(out, dict))


def test_prepare_loads_no_tensorflow_and_no_mlflow():
    import subprocess
    import sys

    slow = {"tensorflow", "keras", "mlflow", "sklearn"}
    code = f"import sys, pipeline.prepare; print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_few_modules_know_mlflow():
    names = ["outbox", "recording", "registry", "runs", "served", "serving", "tracker", "tracking"]
    knowing = {f"{name}.py" for name in names}
    for file in (ROOT / "pipeline").rglob("*.py"):
        if file.name not in knowing:
            assert "mlflow" not in {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
            }
