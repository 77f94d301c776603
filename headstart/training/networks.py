"""The networks, in Keras: a trunk turns images into features, a head turns features into class probabilities.

Shapes: images are (N, image_size, image_size, 3), RGB in [0, 255]; features are (N, feature_dim), float32;
probabilities are (N, n_classes), float32, each row summing to 1.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.framework import keras

RESIZE_LAYER, LOGITS_LAYER = "resize", "logits"
PREDICTION_BATCH = 32  # images at once where no param says so


def build_head(
    feature_dim: int,
    n_classes: int,
    hidden: Sequence[int],
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> keras.Model:
    """Layers of `hidden` units, then softmax over the classes; dropout before each, BatchNorm after each hidden one."""
    features = keras.Input((feature_dim,), name="features")
    x = features
    for number, units in enumerate(hidden, 1):
        x = keras.layers.Dropout(dropout, name=f"dropout_{number}")(x) if dropout else x
        x = keras.layers.Dense(units, name=f"hidden_{number}")(x)
        x = keras.layers.BatchNormalization(name=f"batch_norm_{number}")(x) if batch_norm else x
        x = keras.layers.Activation(activation, name=f"activation_{number}")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x) if dropout else x
    logits = keras.layers.Dense(n_classes, name=LOGITS_LAYER)(x)
    return keras.Model(features, keras.layers.Activation("softmax", name="probabilities")(logits), name="head")


def without_softmax(head: keras.Model) -> keras.Model:
    """The same layers up to the logits, whose log loss has no rounding of small probabilities."""
    return keras.Model(head.inputs, head.get_layer(LOGITS_LAYER).output)


def divide_logits(head: keras.Model, temperature: float) -> None:
    """Build a temperature into the weights: the logits of `head` are divided by it from here on."""
    for variable in head.get_layer(LOGITS_LAYER).weights:
        variable.assign(variable / temperature)


def join(trunk: keras.Model, head: keras.Model) -> keras.Model:
    """The classifier that is shipped: RGB images of any size in [0, 255] in, probabilities out."""
    image = keras.Input((None, None, 3), name="image")
    resize = keras.layers.Resizing(*trunk.input_shape[1:3], interpolation="bilinear", antialias=True, name=RESIZE_LAYER)
    # Said to both: Keras would let the head's dropout act where the model is called as a function, `model(images)`.
    features = trunk(resize(image), training=False)
    return keras.Model(image, head(features, training=False), name="classifier")


def values(network: keras.Model) -> list[np.ndarray]:
    """Of all its variables; dropout's place in its random numbers is among them, which get_weights leaves out."""
    return [keras.ops.convert_to_numpy(variable) for variable in network.variables]


def assign(network: keras.Model, found: Sequence[np.ndarray]) -> None:
    """Give the variables what `values` found."""
    for variable, value in zip(network.variables, found, strict=True):
        variable.assign(value)


def predict(model: keras.Model, images: np.ndarray, batch_size: int) -> np.ndarray:
    """The model's outputs, (b, ...) float32, for one batch of (b, size, size, 3) images, b <= `batch_size`.

    A short batch is padded to `batch_size`, of at least 2: in a batch of one, TensorFlow gives an image other bits.
    """
    padded = np.zeros((max(batch_size, 2), *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    return np.asarray(model.predict_on_batch(padded), np.float32)[: len(images)]


def image_size(model: keras.Model) -> int:
    """The side in pixels that a classifier made by `join` resizes its images to.

    Raises:
        UserError: where the model was not made by `join`.
    """
    if not any(layer.name == RESIZE_LAYER for layer in model.layers):
        raise UserError(
            f"the model {model.name!r} takes no images; give the one that fine_tune wrote, models/model.keras"
        )
    return model.get_layer(RESIZE_LAYER).height


def save(model: keras.Model, file: Path, classes: Sequence[str]) -> None:
    """Write `model` as .keras with its class names inside (`classes.json`); the same model gives the same bytes."""
    model.save(file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = json.loads(members["metadata.json"])
    metadata["date_saved"] = "1980-01-01@00:00:00"
    members["metadata.json"] = json.dumps(metadata).encode()
    members["config.json"] = json.dumps(_numbered(json.loads(members["config.json"]), {})).encode()
    members["classes.json"] = json.dumps(list(classes), ensure_ascii=False).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's date is 1980-01-01


def _numbered(config: Any, numbers: dict[int, int]) -> Any:
    """`config` with its `shared_object_id`s, which are addresses in memory, counted in order of appearance."""
    if isinstance(config, list):
        return [_numbered(item, numbers) for item in config]
    if isinstance(config, dict):
        return {
            key: numbers.setdefault(item, len(numbers)) if key == "shared_object_id" else _numbered(item, numbers)
            for key, item in config.items()
        }
    return config


def load(file: Path) -> tuple[keras.Model, list[str]]:
    """A model written by `save`, and its class names in the order of its outputs.

    Raises:
        UserError: where there is no such file or it is another kind of file.
    """
    if not file.exists():
        raise UserError(f"{file} does not exist; run `dvc repro`, or `dvc pull` where a remote holds it")
    try:
        with zipfile.ZipFile(file) as archive:
            classes = json.loads(archive.read("classes.json"))
        model = keras.models.load_model(file, compile=False, safe_mode=True)
        if not isinstance(classes, list) or len(classes) != model.output_shape[-1]:
            raise ValueError(f"{model.output_shape[-1]} outputs and the class names {classes!r}")
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} is not a model of this pipeline: {(str(error) or 'empty').splitlines()[0]}") from error
    return model, classes
