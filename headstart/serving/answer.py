"""The answer for one example, as the server and the model in MLflow give it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def format_answer(classes: Sequence[str], probabilities: np.ndarray, noun: str, remark: str) -> dict[str, Any]:
    """Return `label`, its `probability`, the `probabilities` of all classes by name, and a `remark` if there is one.

    Args:
        probabilities: (n_classes,).
        noun: what an example is called.
        remark: what is odd about it, see `Modality.load_with_remark`.
    """
    values, best = probabilities.tolist(), int(np.argmax(probabilities))
    said = {"remark": f"{noun}s like this one {remark}"} if remark else {}
    named = dict(zip(classes, values, strict=True))
    return {"label": classes[best], "probability": values[best], "probabilities": named, **said}
