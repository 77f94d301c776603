"""dvc.yaml and the layout of the code hold what they promise: what a stage depends on, and who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from headstart import paths
from headstart.config import Params, load_params
from headstart.modalities import modalities

DEFINED = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STAGES = {name: stage for name, stage in DEFINED.items() if name != "watch"}
# The top layer first: imports point down.
LAYERS = (
    *("pipeline", "cli", "stage", "tracking", "serving", "report", "evaluation", "training", "features", "backbones"),
    *("modalities", "data", "bottom"),
)
SHAPING = {"features_meta.py", "framework.py", "keras_backend.py"}  # of the bottom layer, what shapes results
NEVER_DEPS = {"tracking", "report", "serving", "cli", "stage"}


def layer(file: Path) -> str:
    """The layer that a file of the project belongs to."""
    parts = file.relative_to(ROOT).parts
    if parts[0] == "pipeline" or len(parts) > 2:
        return parts[0] if parts[0] == "pipeline" else parts[1]
    return {"cli.py": "cli", "__main__.py": "cli", "stage.py": "stage"}.get(parts[1], "bottom")


@cache
def imports(file: Path) -> frozenset[Path]:
    """The files of the project that `file` imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            place = ROOT / name.replace(".", "/")
            found |= {path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()}
    return frozenset(found - {ROOT / "headstart" / "__init__.py"})


def closure(stage: str) -> set[Path]:
    """What the script of a stage imports, by itself and through others; how a stage runs is left out."""
    seen, waiting = set(), [ROOT / "pipeline" / f"{stage}.py"]
    while waiting:
        file = waiting.pop()
        if file not in seen and layer(file) != "stage":
            seen.add(file)
            waiting += imports(file)
    return seen


FILES = sorted([*(ROOT / "headstart").rglob("*.py"), *(ROOT / "pipeline").glob("*.py")])


def test_imports_point_down():
    wrong = [
        f"{file.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for file in FILES
        for other in imports(file)
        if LAYERS.index(layer(other)) < LAYERS.index(layer(file))
    ]
    assert wrong == []


def test_nothing_asks_which_modality_it_is():
    """A modality says what it can do; its name is compared with others in its registry alone."""
    names = {modality.name for modality in modalities()}
    asked = []
    for file in FILES:
        if "modalities" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            values = {leaf.value for side in compared for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)}
            if names & {value for value in values if isinstance(value, str)}:
                asked.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert asked == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_imports_is_among_its_deps(stage):
    deps = {dep for dep in STAGES[stage]["deps"] if dep.split("/")[0] in ("headstart", "pipeline")}
    needed = {f"pipeline/{stage}.py"}
    needed |= {f"headstart/{layer(file)}" for file in closure(stage) if layer(file) not in ("pipeline", "bottom")}
    needed |= {file.relative_to(ROOT).as_posix() for file in closure(stage) if file.name in SHAPING}
    assert deps == needed


@pytest.mark.parametrize("stage", STAGES)
def test_what_shapes_no_result_is_no_dep(stage):
    assert not {layer(file) for file in closure(stage)} & NEVER_DEPS
    others = {ROOT / "pipeline" / f"{other}.py" for other in STAGES if other != stage}
    assert not closure(stage) & others


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_sections_of_params_that_it_reads(stage):
    words = set()
    for file in closure(stage):
        words |= set(re.findall(r"\bparams\.(\w+)", file.read_text(encoding="utf-8")))
    read = words & set(Params.model_fields)
    listed = set(STAGES[stage]["params"]) - {name for name in STAGES[stage]["params"] if "." in name}
    # Modules that several stages share may read what one of them does not.
    own = set(re.findall(r"\bparams\.(\w+)", (ROOT / "pipeline" / f"{stage}.py").read_text(encoding="utf-8")))
    assert own & set(Params.model_fields) <= listed <= read | own


@pytest.mark.parametrize("stage", STAGES)
def test_no_param_is_left_out_of_the_run_cache(stage):
    """It leaves out keys named size or nfiles at any depth, and would give results of another `extract.size`."""
    listed = STAGES[stage]["params"]
    for key in load_params(ROOT / "params.yaml").leaves():
        section, _, name = key.rpartition(".")
        if section in listed and name in ("size", "nfiles"):
            assert key in listed


def test_every_section_of_params_is_read_by_a_stage_or_by_the_gate():
    of_stages = {param.partition(".")[0] for stage in STAGES.values() for param in stage["params"]}
    assert not {"gate", "cluster"} & of_stages  # a stage that read them would run again where nothing changes
    assert set(Params.model_fields) == of_stages | {"gate", "cluster"}


def test_the_files_have_the_names_that_the_code_gives_them():
    outs = {
        out if isinstance(out, str) else next(iter(out))
        for stage in STAGES.values()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    }
    named = {value for name, value in vars(paths).items() if isinstance(value, Path) and name.isupper()}
    named -= {paths.PREPARED, paths.WATCHED, paths.DATA_PAGE, paths.RESULTS_PAGE}
    named |= set(paths.FEATURES.values()) | {paths.metrics(stage) for stage in STAGES if stage != "extract"}
    named |= {paths.report(stage) for stage in STAGES if stage != "extract"}
    named |= {paths.curves(stage) for stage in ("train_head", "fine_tune")}
    assert outs == {path.as_posix() for path in named}


def test_nothing_else_lies_among_the_committed_results():
    kept = {
        next(iter(entry)) for stage in STAGES.values() for kind in ("metrics", "plots") for entry in stage.get(kind, [])
    }
    found = {file.relative_to(ROOT).as_posix() for folder in ("metrics", "plots") for file in (ROOT / folder).iterdir()}
    assert found == kept


def test_metrics_and_plots_need_no_pull():
    for stage in STAGES.values():
        for entry in (*stage.get("metrics", []), *stage.get("plots", [])):
            assert next(iter(entry.values()))["cache"] is False
        # Of other outputs one without cache keeps DVC from ever restoring the stage.
        assert not any("cache" in next(iter(out.values())) for out in stage["outs"] if isinstance(out, dict))


def test_prepare_loads_no_tensorflow_and_no_mlflow():
    slow = {"tensorflow", "keras", "mlflow", "sklearn", "soundfile", "soxr"}
    code = f"import sys, pipeline.prepare; print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("stage", ["extract", "train_head"])
def test_tensorflow_is_not_loaded_to_find_out_whether_it_is_needed(stage):
    code = f"import sys, pipeline.{stage}; print({{'tensorflow', 'keras', 'mlflow', 'jax'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_stage_that_is_logged_loads_no_statistics():
    """They are needed to compare an evaluated model with the champion, and take half a second."""
    code = "import sys, headstart.tracking.live; print({'scipy.stats', 'sklearn', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_fine_tuning_that_is_skipped_loads_no_statistics():
    code = "import sys, pipeline.fine_tune; print({'scipy.stats', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_keras_loads_no_pictures_and_no_scikit_learn_and_others_still_can():
    """They are a third of its start; another thread is not disturbed."""
    code = """
import sys, threading
from headstart.framework import _HidesFromKeras
print({"matplotlib", "sklearn"} & set(sys.modules))
found = []
with _HidesFromKeras():
    thread = threading.Thread(target=lambda: found.append(__import__("matplotlib").__name__))
    thread.start()
    thread.join()
import sklearn.metrics
print(found, len(sys.modules["sklearn"].__version__) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set()", "['matplotlib'] True"]


def test_only_tracking_and_serving_know_mlflow():
    knowing = {
        layer(file)
        for file in FILES
        if re.search(r"^\s*(from|import) mlflow\b", file.read_text(encoding="utf-8"), re.M)
    }
    assert knowing <= {"tracking", "serving"}


def test_only_images_know_pixels():
    """What other modalities have no use for stays in the rooms of images; pages draw pictures of sounds, too."""
    words = re.compile(r"\b(pixels?|RGB|image_size|PIL|cv2|simplejpeg)\b")
    allowed = re.compile(
        r"headstart/(modalities/(image/|pictures|audio/(picture|evidence)\.py)"
        r"|backbones/(keras_(applications|table)|hub_(images|image_table|names|scaling|conversions)"
        r"|places|vision_transformers)\.py|report/(attention|confusions)|serving/export\.py|config\.py)"
    )
    knowing = [
        name
        for file in FILES
        if words.search(file.read_text(encoding="utf-8"))
        and not allowed.match(name := file.relative_to(ROOT).as_posix())
        and not name.startswith("pipeline/")
    ]
    assert knowing == []


@pytest.mark.parametrize(("pattern", "most"), [("headstart/**/*.py", 300), ("pipeline/*.py", 120), ("dvc.yaml", 170)])
def test_files_can_be_read_in_one_go(pattern, most):
    long = {
        file.relative_to(ROOT).as_posix(): lines
        for file in ROOT.glob(pattern)
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > most
    }
    assert long == {}
