"""The trained model in MLflow's format: a folder of code, weights and requirements that needs nothing of this project.

`mlflow models serve --env-manager local -m FOLDER` serves it, as `headstart serve` does.
"""

from __future__ import annotations

import ast
import base64
import importlib.metadata
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.serving.model_file import read_model_info

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models.model import ModelInfo

    from headstart.modalities import Modality

ROOT = Path(__file__).parents[2]
CODE = ROOT / "headstart" / "serving" / "pyfunc_model.py"


def save_model(folder: Path, model_file: Path) -> None:
    """Write the model as an MLflow model into `folder`, which must not exist.

    Raises:
        UserError: if `model_file` is not a model of this pipeline.
    """
    with _description(model_file) as description:
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(folder, **description)


def log_model(model_file: Path, name: str = "model", **options: Any) -> ModelInfo:
    """Log the model to the active run of MLflow.

    Args:
        options: further arguments of `mlflow.pyfunc.log_model`, such as registered_model_name.

    Raises:
        UserError: if `model_file` is not a model of this pipeline.
    """
    with _description(model_file) as description:
        import mlflow.pyfunc

        return mlflow.pyfunc.log_model(name=name, **description, **options)


@contextmanager
def _description(model_file: Path) -> Iterator[dict[str, Any]]:
    """The arguments of `mlflow.pyfunc.save_model` and `log_model`, as long as the context lasts."""
    _, modality, size = read_model_info(model_file)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # importing it sets another level
    outputs = [ColSpec("string", "label"), ColSpec("double", "probability")]
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", modality.column)]),
        outputs=Schema([*outputs, ColSpec(Map(DataType.double), "probabilities")]),
    )
    with tempfile.TemporaryDirectory() as folder:
        files = imported_modules(CODE)
        for file in files:
            copy = Path(folder) / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        yield {
            "python_model": str(CODE),
            "artifacts": {"model": str(model_file)},
            "code_paths": [str(Path(folder) / CODE.relative_to(ROOT).parts[0])],
            "signature": signature,
            "input_example": _input_example(modality, size),
            "pip_requirements": pinned_requirements(files),
        }


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


def pinned_requirements(files: Sequence[Path]) -> list[str]:
    """Return the installed packages that `files` import, with their versions, as pip takes them.

    MLflow could infer them, in 18 s.
    """
    distributions = importlib.metadata.packages_distributions()
    modules = {name.split(".")[0] for file in files for name in _imported_names(file)} - {"headstart"}
    packages = {package for module in modules for package in distributions.get(module, ())}
    return [f"{package}=={importlib.metadata.version(package)}" for package in sorted(packages)]


def _imported_names(file: Path) -> set[str]:
    """What a file imports, also inside of functions: modules, and names that may be modules."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _input_example(modality: Modality, size: int) -> pd.DataFrame:
    """A row as the server takes it."""
    import pandas as pd

    example = min(modality.probes(size), key=len, default=b"")
    return pd.DataFrame({modality.column: [base64.b64encode(example).decode()]})
