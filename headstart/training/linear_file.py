"""Writes a linear head of roots of features as Keras would, from a template: loading Keras takes three seconds.

The template is what Keras wrote for such a head, with DIM and CLASSES for its sizes. It serves the version of Keras
that made it.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py

from headstart.model_archive import ABOUT, CLASSES, CONFIG, DATE_SAVED, METADATA, write_members
from headstart.training.linear import Linear

TEMPLATE = Path(__file__).parent / "linear_head.json"
WEIGHTS = "model.weights.h5"
# Groups of the weights, in which Keras notes the names of layers; the second one holds the kernel and the bias.
GROUPS = {
    "layers/activation/vars": "probabilities",
    "layers/dense/vars": "logits",
    "layers/input_layer/vars": "features",
    "vars": "head",
}


def write_linear(head: Linear, file: Path, classes: Sequence[str]) -> bool:
    """Write the same as `networks.save(networks.from_layers([head]), file, classes)`, and always the same bytes.

    Returns:
        Whether the template serves this version of Keras; else nothing is written.
    """
    template, version = json.loads(TEMPLATE.read_text(encoding="utf-8")), importlib.metadata.version("keras")
    if template["keras_version"] != version:
        return False
    sizes = {"DIM": len(head.kernel), "CLASSES": len(head.bias)}
    weights = io.BytesIO()
    with h5py.File(weights, "w") as store:
        for group, name in GROUPS.items():
            store.create_group(group).attrs["name"] = name
        for number, array in enumerate((head.kernel, head.bias)):
            store[f"layers/dense/vars/{number}"] = array.astype("float32")
    members = {
        CONFIG: json.dumps(_filled(template["config"], sizes)).encode(),
        METADATA: json.dumps({"keras_version": version, "date_saved": DATE_SAVED}).encode(),
        WEIGHTS: weights.getvalue(),
        CLASSES: json.dumps(list(classes), ensure_ascii=False).encode(),
        ABOUT: b"{}",
    }
    write_members(file, members)
    return True


def _filled(template: Any, sizes: dict[str, int]) -> Any:
    """Return the template with its sizes."""
    if isinstance(template, dict):
        return {key: _filled(value, sizes) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, sizes) for value in template]
    return sizes.get(template, template) if isinstance(template, str) else template
