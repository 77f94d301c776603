"""Heads and classifiers in Keras: an encoder turns examples into features, a head features into class probabilities.

Features are (N, feature_dim) float32; probabilities are (N, n_classes) float32, each row summing to 1.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import UserError
from headstart.framework import keras, tf
from headstart.modalities import Batch, Modality, get_modality
from headstart.modalities.batch import batch_length, pad_batch
from headstart.model_archive import (
    ABOUT,
    CLASSES,
    CONFIG,
    DATE_SAVED,
    METADATA,
    check_weights,
    import_layers,
    is_recorded,
    read_texts,
    write_members,
)
from headstart.training.roots import root

if TYPE_CHECKING:
    from headstart.training.linear import Linear

LOGITS_LAYER = "logits"
PREDICTION_BATCH = 32  # examples per call, unless a param says otherwise


def build_head(
    dim: int,
    n_classes: int,
    hidden: Sequence[int],
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0,
    of_roots: bool = False,
) -> keras.Model:
    """Return hidden layers and a softmax over the classes; dropout before every layer, BatchNorm after hidden ones.

    Args:
        of_roots: whether the first layer takes square roots of features, see `roots.root`.
    """
    x = features = keras.Input((dim,), name="features")
    x = root(x, keras.ops) if of_roots else x
    for number, units in enumerate(hidden, 1):
        x = keras.layers.Dropout(dropout, name=f"dropout_{number}")(x) if dropout else x
        x = keras.layers.Dense(units, name=f"hidden_{number}")(x)
        x = keras.layers.BatchNormalization(name=f"batch_norm_{number}")(x) if batch_norm else x
        x = keras.layers.Activation(activation, name=f"activation_{number}")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x) if dropout else x
    logits = keras.layers.Dense(n_classes, name=LOGITS_LAYER)(x)
    return keras.Model(features, keras.layers.Activation("softmax", name="probabilities")(logits), name="head")


def from_layers(layers: Sequence[Linear]) -> keras.Model:
    """Return the head of these dense layers, with ReLU between them, which takes features and their roots inside."""
    dim, n_classes = len(layers[0].kernel), len(layers[-1].bias)
    head = build_head(dim, n_classes, [len(layer.bias) for layer in layers[:-1]], of_roots=True)
    head.set_weights([array for layer in layers for array in (layer.kernel, layer.bias)])
    return head


def without_softmax(head: keras.Model) -> keras.Model:
    """Return the same layers up to the logits, whose log loss does not suffer from rounded probabilities."""
    return keras.Model(head.inputs, head.get_layer(LOGITS_LAYER).output)


def divide_logits(head: keras.Model, temperature: float) -> None:
    """Make a temperature part of the weights: the logits of `head` are divided by it from here on."""
    for variable in head.get_layer(LOGITS_LAYER).weights:
        variable.assign(variable / temperature)


def join(front: keras.Model, encoder: keras.Model, head: keras.Model) -> keras.Model:
    """Return the classifier that is shipped: from whole examples, as `front` takes them, to probabilities."""
    inputs = front.input if len(front.inputs) > 1 else front.inputs[0]
    # `training` is set for both, else dropout would be active if the model is called as a function, `model(images)`.
    features = encoder(front.output, training=False)
    return keras.Model(inputs, head(features, training=False), name="classifier")


def get_state(network: keras.Model) -> list[np.ndarray]:
    """Return the values of all variables, with the states of dropout's seeds, which get_weights leaves out."""
    return [keras.ops.convert_to_numpy(variable) for variable in network.variables]


def set_state(network: keras.Model, state: Sequence[np.ndarray]) -> None:
    """Restore what `get_state` returned."""
    for variable, value in zip(network.variables, state, strict=True):
        variable.assign(value)


def predict(model: keras.Model, batch: Batch | np.ndarray, batch_size: int) -> np.ndarray:
    """Return the model's outputs, (b, ...) float32, for one batch of b <= `batch_size` examples.

    A short batch is padded to `batch_size`, or to 2: TensorFlow computes a batch of one with other rounding.

    Args:
        batch: arrays by name, or a single array.
    """
    arrays = batch if isinstance(batch, dict) else {model.inputs[0].name: batch}
    count = batch_length(arrays)
    padded = {
        name: array.astype(np.float32) if array.dtype == np.uint8 else array
        for name, array in pad_batch(arrays, max(batch_size, 2)).items()
    }
    inputs = padded if isinstance(model.input, dict) else next(iter(padded.values()))
    return np.asarray(model.predict_on_batch(inputs), np.float32)[:count]


def save(model: keras.Model, file: Path, classes: Sequence[str], **about: Any) -> None:
    """Write `model` as .keras with its class names inside; the same model gives the same bytes.

    Args:
        about: what else to store, as JSON: for a classifier the `modality`, `size` and `reading` of its examples, and
            the `margin` around boxes.
    """
    model.save(file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = json.loads(members[METADATA])
    members[METADATA] = json.dumps(metadata | {"date_saved": DATE_SAVED}).encode()
    members[CONFIG] = json.dumps(_numbered(json.loads(members[CONFIG]), {})).encode()
    members[CLASSES] = json.dumps(list(classes), ensure_ascii=False).encode()
    members[ABOUT] = json.dumps(about).encode()
    write_members(file, members)


def _numbered(config: Any, numbers: dict[int, int]) -> Any:
    """Return `config` with its `shared_object_id`s, which are memory addresses, numbered in order of appearance."""
    if isinstance(config, list):
        return [_numbered(item, numbers) for item in config]
    if isinstance(config, dict):
        return {
            key: numbers.setdefault(item, len(numbers)) if key == "shared_object_id" else _numbered(item, numbers)
            for key, item in config.items()
        }
    return config


def load(file: Path) -> tuple[keras.Model, list[str]]:
    """Return a model that `save` wrote, and its class names in the order of its outputs.

    Raises:
        UserError: if there is no such file, or it is of another kind or damaged.
    """
    model, classes, _ = _load(file, trusted=True)
    return model, classes


def _load(file: Path, trusted: bool) -> tuple[keras.Model, list[str], dict[str, Any]]:
    """Return a model, its class names, and what else was stored.

    Args:
        trusted: whether its config may ask for any number of weights.
    """
    if not file.exists():
        raise UserError(f"{file} does not exist; run `dvc repro`, or `dvc pull` if a remote has it")
    try:
        texts = read_texts(file)
        classes, about = texts[CLASSES], texts.get(ABOUT, {})
        import_layers(texts[CONFIG])
        if not trusted:
            check_weights(file)
        model = keras.models.load_model(file, compile=False, safe_mode=True)
        if not isinstance(classes, list) or len(classes) != model.output_shape[-1]:
            raise ValueError(f"{model.output_shape[-1]} outputs and the class names {classes!r}")
        if not all(np.isfinite(weights.numpy()).all() for weights in model.weights):
            raise ValueError("its weights are NaN or infinite")
    except (UserError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:  # Keras raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{file} is not a model of this pipeline, or is damaged ({reason}); if it is an output of the pipeline, "
            "delete it, then run `dvc checkout` or `dvc repro`"
        ) from error
    return model, classes, about


@dataclass(frozen=True)
class Classifier:
    """A shipped model.

    Attributes:
        network: whole examples -> probabilities.
        classes: their names in the order of the outputs.
        size: of an example, as `extract.size` counts it.
    """

    network: keras.Model
    classes: list[str]
    modality: Modality
    size: int

    @cached_property
    def inner(self) -> keras.Model:
        """The same layers without those that take whole examples: as `modality.load` returns them -> probabilities."""
        spec = self.modality.spec(self.size)
        dtypes = {name: "float32" if dtype == "uint8" else dtype for name, (_, dtype) in spec.items()}
        inputs = {name: keras.Input(shape, dtype=dtypes[name], name=name) for name, (shape, _) in spec.items()}
        features = self.network.get_layer("encoder")(inputs, training=False)
        probabilities = self.network.get_layer("head")(features, training=False)
        single = inputs if len(inputs) > 1 else next(iter(inputs.values()))
        return keras.Model(single, probabilities, name=self.network.name)

    def predict(self, batch: Batch, batch_size: int = PREDICTION_BATCH) -> np.ndarray:
        """Return (b, n_classes) float32 probabilities of one batch of b <= `batch_size` loaded examples."""
        return predict(self.inner, batch, batch_size)


def load_classifier(file: Path) -> Classifier:
    """Return the classifier that fine_tune wrote. One that dvc.lock does not record may come from anybody.

    Raises:
        UserError: if there is no such file, it is of another kind, or its config asks for more weights than it has.
    """
    network, classes, about = _load(file, trusted=bool(is_recorded(file)))
    if not {"modality", "size"} <= set(about):
        raise UserError(f"{file} takes features, not examples; give the model that fine_tune wrote, models/model.keras")
    return Classifier(network, classes, get_modality(about["modality"], about.get("reading")), int(about["size"]))
