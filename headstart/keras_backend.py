"""What Keras runs on in this process: TensorFlow, but JAX in extract with `extract.engine: jax`.

Keras reads KERAS_BACKEND when it is imported, once. `headstart.framework` imports it and sets KERAS_BACKEND to `name`,
whatever the shell says: params.yaml decides.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from headstart.config import Params
from headstart.errors import UserError
from headstart.validation import read_yaml

name = "tensorflow"


def choose(params: Path) -> None:
    """Choose JAX if a params.yaml asks for it and it is installed; call it before `headstart.framework` is imported."""
    global name
    try:
        extract = read_yaml(params).get("extract")
    except UserError:  # the stage reports it
        return
    if isinstance(extract, dict) and extract.get("engine") == "jax" and _is_installed():
        name = "jax"


def check_jax(params: Params) -> None:
    """Raise UserError if params ask for JAX, and it is not installed or cannot give the features that they ask for."""
    if params.extract.engine != "jax":
        return
    if not _is_installed():
        raise UserError(
            "params.yaml: extract.engine jax: JAX is not installed; install the extra `jax`: make setup EXTRAS=jax, "
            'with an NVIDIA GPU also .venv/bin/python -m pip install "jax[cuda12]"; or use engine auto'
        )
    if params.weights == "none":
        raise UserError(
            "params.yaml: extract.engine jax draws other random weights than TensorFlow, on which later stages run; "
            "use weights pretrained or the path of a weights file, or engine auto"
        )


def _is_installed() -> bool:
    return importlib.util.find_spec("jax") is not None
