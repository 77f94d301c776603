"""The model as MLflow runs it: strings in (texts, or image files in base64), labels and probabilities out.

MLflow stores this file as code (no pickles), with a copy of the modules that it imports and of models/model.keras, see
mlflow_model.py, and runs it when the model is loaded. Bad input raises an MlflowException, which a server answers with
status 400.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from headstart.errors import ItemError
from headstart.serving.answer import format_answer
from headstart.serving.keras_batches import BATCH_SIZES, predict_padded


class PyfuncClassifier(PythonModel):
    """Predicts classes; examples are decoded as the pipeline decodes them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network, and compile it so that the first user does not wait for that."""
        from headstart.training import networks  # TensorFlow, which saving does not need

        self._classifier = networks.load_classifier(Path(context.artifacts["model"]))
        modality, size = self._classifier.modality, self._classifier.size
        for data in modality.probes(size)[:1]:
            for count in BATCH_SIZES:
                predict_padded(self._classifier, [modality.load(data, size)] * count)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return a row per example: `label`, its `probability`, and the `probabilities` of all classes by name.

        Rows also have a `remark` if something is odd about them, e.g. if a text is cut.

        Args:
            model_input: a column of examples, under the name that the modality gives it.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, with the position of each example that cannot be read.
        """
        classifier, loaded, problems = self._classifier, [], []
        modality = classifier.modality
        for position, value in enumerate(model_input[modality.column]):
            try:
                loaded.append(modality.load_with_remark(modality.parse_request(value), classifier.size))
            except ItemError as error:
                problems.append(f"{modality.column} {position} (counted from 0, of {len(model_input)}): {error}")
        if problems:
            raise MlflowException.invalid_parameter_value("; ".join(problems))
        if not loaded:
            return []
        rows = predict_padded(classifier, [array for array, _ in loaded])
        return [
            format_answer(classifier.classes, row, modality.noun, remark)
            for row, (_, remark) in zip(rows, loaded, strict=True)
        ]


set_model(PyfuncClassifier())
