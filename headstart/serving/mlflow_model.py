"""The trained model in MLflow's format: a folder of code, weights and requirements that needs nothing of this project.

`mlflow models serve --env-manager local -m FOLDER` serves it, as `headstart serve` does.
"""

from __future__ import annotations

import ast
import importlib.metadata
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from headstart.modalities import Modality
from headstart.model_archive import CONFIG, HUB, has_hub_layers, read_texts
from headstart.serving.model_file import read_model_info

ROOT = Path(__file__).parents[2]
CODE = ROOT / "headstart" / "serving" / "pyfunc_model.py"
MODALITIES = ROOT / "headstart" / "modalities"


def save_model(folder: Path, model_file: Path) -> None:
    """Write the model as an MLflow model into `folder`, which must not exist.

    Raises:
        UserError: if `model_file` is not a model of this pipeline.
    """
    _, modality, size, _ = read_model_info(model_file)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # importing it sets another level
    outputs = [ColSpec("string", "label"), ColSpec("double", "probability")]
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", modality.column)]),
        outputs=Schema([*outputs, ColSpec(Map(DataType.double), "probabilities")]),
    )
    example = modality.format_request(min(modality.probes(size), key=len, default=b""))
    with tempfile.TemporaryDirectory() as scratch:
        files = imported_modules(CODE)
        for file in files:
            copy = Path(scratch) / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(CODE),
            artifacts={"model": str(model_file)},
            code_paths=[str(Path(scratch) / CODE.relative_to(ROOT).parts[0])],
            signature=signature,
            input_example=pd.DataFrame({modality.column: [example]}),
            pip_requirements=sorted([*pinned_requirements(files, modality), *layer_requirements(model_file)]),
        )


def imported_modules(module: Path) -> list[Path]:
    """Return the files of this package that `module` imports, directly or indirectly, itself included, sorted."""
    found, waiting = set(), [module]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += [package / "__init__.py" for package in file.parents if package.is_relative_to(ROOT / "headstart")]
        for name in _imported_names(file):
            path = ROOT / name.replace(".", "/")
            waiting += [path.with_suffix(".py"), path / "__init__.py"] if name.startswith("headstart.") else []
        waiting = [file for file in waiting if file.is_file()]
    return sorted(found)


def pinned_requirements(files: Sequence[Path], modality: Modality) -> list[str]:
    """Return the installed packages that `files` import, with their versions, as pip takes them.

    MLflow could infer them, in 18 s. Of other modalities what functions import is not needed, as `tokenizers` is not
    for images; of this one also what `libraries` names.
    """
    distributions = importlib.metadata.packages_distributions()
    others = [folder for folder in MODALITIES.iterdir() if folder.is_dir() and folder.name != modality.name]
    modules = {
        name.split(".")[0]
        for file in files
        for name in _imported_names(file, in_functions=not any(map(file.is_relative_to, others)))
    } - {"headstart"}
    packages = {package for module in modules for package in distributions.get(module, ())} | {*modality.libraries}
    return [f"{package}=={importlib.metadata.version(package)}" for package in sorted(packages)]


def layer_requirements(model_file: Path) -> list[str]:
    """Return the installed packages, as pip takes them, that hold layers of a model besides Keras."""
    if not has_hub_layers(read_texts(model_file).get(CONFIG)):
        return []
    try:
        return [f"{HUB}=={importlib.metadata.version(HUB)}"]
    except importlib.metadata.PackageNotFoundError:
        return [HUB]


def _imported_names(file: Path, in_functions: bool = True) -> set[str]:
    """What a file imports when it runs, also inside of functions: modules, and names that may be modules."""
    names = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parts = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or (isinstance(node, ast.FunctionDef) and not in_functions)
    ]
    skipped = {inner for part in parts for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names
