"""The networks, in Keras: a trunk turns images into features, a head turns features into class probabilities.

Shapes: images are (N, image_size, image_size, 3), RGB in [0, 255]; features are (N, feature_dim), float32;
probabilities are (N, n_classes), float32, each row summing to 1.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import BACKBONES, cached_backbones
from pipeline.errors import UserError
from pipeline.learning.engine import keras

BACKBONE_LAYER, POOL_LAYER, RESIZE_LAYER, LOGITS_LAYER = "backbone", "pool", "resize", "logits"
PREDICTION_BATCH = 32  # images at once where no param says so


def build_trunk(backbone: str, weights: str, image_size: int, pooling: str, seed: int) -> keras.Model:
    """A backbone between its own preprocessing and the pooling of its last feature map; its BatchNorm is in inference.

    Args:
        backbone: a name of BACKBONES.
        weights: `pretrained`, `none` (drawn from `seed`) or the path of a weights file for the network without top.
        image_size: pixels.
        pooling: `avg`, `max` or `flatten`.

    Returns:
        (N, image_size, image_size, 3) RGB in [0, 255] -> (N, feature_dim).

    Raises:
        UserError: where the weights cannot be had or do not fit.
    """
    row = BACKBONES[backbone]
    constructor = getattr(keras.applications, row.constructor)
    shape = (image_size, image_size, 3)
    keras.utils.set_random_seed(seed)
    with warnings.catch_warnings():
        # MobileNets warn that an unusual size takes the weights of the default one, which the table says.
        warnings.filterwarnings("ignore", message=".*`input_shape` is undefined or non-square")
        if weights == "pretrained" and backbone != "tiny":
            try:
                base = constructor(include_top=False, weights="imagenet", input_shape=shape, **dict(row.arguments))
            except Exception as error:
                raise _no_weights(backbone, row.weights_path(image_size), error) from error
        else:
            base = constructor(include_top=False, weights=None, input_shape=shape, **dict(row.arguments))
            if weights == "pretrained":
                _load(base, backbone, _checked(row.weights_path(image_size), row.weights_sha256))
            elif weights != "none":
                _load(base, backbone, Path(weights))
    base.name = BACKBONE_LAYER
    base.trainable = False

    image = keras.Input(shape, name="image")
    feature_map = base(preprocess(backbone, image), training=False)
    pool = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }[pooling](name=POOL_LAYER)
    return keras.Model(image, pool(feature_map), name="trunk")


def _checked(file: Path, sha256: str) -> Path:
    """The file itself, where it has that hash."""
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise UserError(
            f"{file}: not the weights that pipeline/backbones.py lists by their sha256; bring them back "
            f"(git checkout -- pipeline/weights/{file.name}), or name the file in `weights:` of params.yaml"
        )
    return file


def _load(base: keras.Model, backbone: str, file: Path) -> None:
    """Fill `base` from `file`: everything or nothing."""
    if not file.is_file():
        raise UserError(
            f"params.yaml: weights file {str(file)!r} does not exist; give its path, `pretrained` or `none`"
        )
    try:
        with warnings.catch_warnings():
            # Keras only warns where a file lacks a layer, and leaves that layer random.
            warnings.filterwarnings("error", message="Skipping nested container")
            base.load_weights(file)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{file}: these weights do not fit {backbone} without its top ({reason}); they must be a .weights.h5 or "
            f".h5 file of keras.applications.{BACKBONES[backbone].constructor}(include_top=False)"
        ) from error


def _no_weights(backbone: str, file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    if file.is_file():
        return UserError(
            f"{file}: these weights of {backbone} cannot be loaded ({reason}); remove the file, so that it is "
            "downloaded again, or put a whole one in its place"
        )
    return UserError(
        f"the ImageNet weights of {backbone} are not on this machine and could not be downloaded ({reason}).\n"
        f"  file:   {file.name}\n"
        f"  folder: {file.parent} (another one: set KERAS_HOME, it holds models/)\n"
        f"  here:   {', '.join(cached_backbones()) or 'none'}\n"
        "Put the file there, or pick a backbone whose weights are here."
    )


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


def preprocess(backbone: str, image: keras.KerasTensor) -> keras.KerasTensor:
    """RGB in [0, 255] -> what the backbone was trained on."""
    return getattr(keras.applications, BACKBONES[backbone].module).preprocess_input(image)


def weights_sha256(model: keras.Model) -> str:
    """A fingerprint of all weights, hexadecimal: shapes and float32 bytes in the model's order."""
    digest = hashlib.sha256()
    for variable in model.weights:
        array = keras.ops.convert_to_numpy(variable)
        digest.update(repr(array.shape).encode() + array.astype("<f4").tobytes())
    return digest.hexdigest()


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
