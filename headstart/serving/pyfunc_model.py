"""What answers in a model server: an image file as base64 text in, label and probabilities out.

MLflow keeps this file as it is, with a copy of this package and of models/model.keras (serving.py), and runs it where
the model is loaded: no pickles. What is wrong with the input is an MlflowException that a server answers with 400.
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
MAX_BYTES = 2**25  # of one image file
BATCHES = 2, 32  # images a call of the network: a short one is padded to one of these, and each is compiled once


class Classifier(PythonModel):
    """Names what is on images, decoded as the pipeline decodes them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network, and compile it, so that the first user does not wait for that."""
        from headstart.training import networks  # loads TensorFlow, which saving needs not

        self._model, self._classes = networks.load(Path(context.artifacts["model"]))
        self._size, self._ask = networks.image_size(self._model), networks.predict
        for count in BATCHES:
            self._probabilities(np.zeros((count, self._size, self._size, 3), np.uint8))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """A row an image: `label`, its `probability`, and the `probabilities` of all classes by name.

        Args:
            model_input: a column `image` of text, the base64 of an image file.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, with the place of each image that cannot be read.
        """
        images, wrong = [], []
        for place, text in enumerate(model_input[COLUMN]):
            try:
                images.append(resize(pixels(_file(text), self._size), self._size))
            except ItemError as error:
                wrong.append(f"{COLUMN} {place} (counted from 0, of {len(model_input)}): {error}")
        if wrong:
            raise MlflowException.invalid_parameter_value("; ".join(wrong))
        rows = []
        for start in range(0, len(images), BATCHES[-1]):
            rows += self._probabilities(np.stack(images[start : start + BATCHES[-1]])).tolist()
        return [
            {
                "label": self._classes[int(np.argmax(row))],
                "probability": max(row),
                "probabilities": dict(zip(self._classes, row, strict=True)),
            }
            for row in rows
        ]

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._ask(self._model, images, next(size for size in BATCHES if len(images) <= size))


def _file(text: Any) -> bytes:
    """The bytes of an image file.

    Raises:
        ItemError: where the text is no base64, or too long.
    """
    if not isinstance(text, str):
        raise ItemError("not_base64", "no text; give the base64 of an image file")
    if len(text) > MAX_BYTES * 4 // 3 + MAX_BYTES // 32:  # line breaks among it
        raise ItemError("too_large", f"larger than {MAX_BYTES >> 20} MiB")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ItemError("not_base64", f"no base64 of an image file: {error}") from error


set_model(Classifier())
