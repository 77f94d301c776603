"""The model as MLflow runs it: image files as base64 text in, labels and probabilities out.

MLflow stores this file as code (no pickles), with a copy of the modules that it imports and of models/model.keras, see
mlflow_model.py, and runs it when the model is loaded. Bad input raises an MlflowException, which a server answers with
status 400.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from headstart.errors import ItemError
from headstart.modalities.image.pixels import pixels, resize

COLUMN = "image"
MAX_BYTES = 2**25  # of one file
BATCH_SIZES = 2, 32  # a batch is padded to one of these, each of which is compiled once


class Classifier(PythonModel):
    """Predicts the classes of images, which are decoded as the pipeline decodes them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network, and compile it so that the first user does not wait for that."""
        from headstart.training import networks  # TensorFlow, which saving does not need

        self._model, self._classes = networks.load(Path(context.artifacts["model"]))
        self._size, self._predict = networks.image_size(self._model), networks.predict
        for count in BATCH_SIZES:
            self._probabilities(np.zeros((count, self._size, self._size, 3), np.uint8))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return a row per image: `label`, its `probability`, and the `probabilities` of all classes by name.

        Args:
            model_input: a column `image` of text, the base64 of an image file.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, with the position of each image that cannot be read.
        """
        images, problems = [], []
        for position, text in enumerate(model_input[COLUMN]):
            try:
                images.append(resize(pixels(_decode_base64(text), self._size), self._size))
            except ItemError as error:
                problems.append(f"{COLUMN} {position} (counted from 0, of {len(model_input)}): {error}")
        if problems:
            raise MlflowException.invalid_parameter_value("; ".join(problems))
        rows = []
        for start in range(0, len(images), BATCH_SIZES[-1]):
            rows += self._probabilities(np.stack(images[start : start + BATCH_SIZES[-1]])).tolist()
        return [
            {
                "label": self._classes[int(np.argmax(row))],
                "probability": max(row),
                "probabilities": dict(zip(self._classes, row, strict=True)),
            }
            for row in rows
        ]

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._predict(self._model, images, next(size for size in BATCH_SIZES if len(images) <= size))


def _decode_base64(text: Any) -> bytes:
    """The bytes of a file.

    Raises:
        ItemError: if the text is not base64, or too long.
    """
    if not isinstance(text, str):
        raise ItemError("not_base64", "not text; give the base64 of an image file")
    if len(text) > MAX_BYTES * 4 // 3 + MAX_BYTES // 32:  # line breaks among it
        raise ItemError("too_large", f"larger than {MAX_BYTES >> 20} MiB")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ItemError("not_base64", f"not the base64 of an image file: {error}") from error


set_model(Classifier())
