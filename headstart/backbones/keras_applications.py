"""The image classifiers of `keras.applications` as trunks: weights, preprocessing, pooling."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from headstart.backbones.table import BACKBONES, cached_backbones
from headstart.errors import UserError
from headstart.framework import keras

BACKBONE_LAYER, POOL_LAYER = "backbone", "pool"


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
            f"{file}: not the weights that headstart/backbones/table.py lists by their sha256; bring them back "
            f"(git checkout -- headstart/backbones/weights/{file.name}), or name the file in `weights:` of params.yaml"
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
