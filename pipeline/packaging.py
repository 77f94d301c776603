"""The model as MLflow takes it: a folder that any MLflow client loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.origin import versions


def save(folder: Path, model_file: Path, classes: list[str]) -> None:
    """Write a complete MLflow model that wraps `model_file`: signature, input example, requirements.

    Args:
        folder: is made.
        classes: names, in the order of the model's outputs.
    """
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    data = folder / "data"
    data.mkdir(parents=True)
    shutil.copyfile(model_file, data / "model.keras")
    (data / "keras_module.txt").write_text("keras", encoding="utf-8")
    (data / "save_format.txt").write_text("keras", encoding="utf-8")
    known = versions()
    lines = [f"{name}=={known[name]}" for name in ("tensorflow", "keras") if name in known]
    (folder / "requirements.txt").write_text("\n".join(["mlflow", *lines]) + "\n", encoding="utf-8")
    model = Model(
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, 3), "image")]),
            Schema([TensorSpec(np.dtype("float32"), (-1, len(classes)))]),
        )
    )
    model.add_flavor("tensorflow", data="data", model_type="keras", keras_version=known.get("keras", ""))
    model.add_flavor(
        "python_function", loader_module="mlflow.tensorflow", data="data", env={"virtualenv": "python_env.yaml"}
    )
    model.metadata = {"classes": classes}
    model.save(str(folder / "MLmodel"))
