"""How the files of an image encoder say that images are to be prepared: scaled, and cut to a square."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from headstart.backbones.hub_files import KERAS_PROCESSOR, PROCESSOR
from headstart.config import LEAST_CROP
from headstart.errors import UserError, one_line

Scaling = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of RGB in [0, 1]
CLOSE = 1e-3  # as a share, for what files round
# What a converter of images by KerasHub may say besides scaling: how it is called, and how it changes the size.
_NO_SCALING = {
    "name", "trainable", "dtype", "data_format", "image_size", "height", "width", "crop_to_aspect_ratio",
    "pad_to_aspect_ratio", "interpolation", "antialias", "bounding_box_format",
}  # fmt: skip
_SCALING = {"scale", "offset", "mean", "variance", "norm_mean", "norm_std"}
_SCALED_BY_CLASS = "BLIP2ImageConverter"  # its config does not say by what


def read_scaling(folder: Path, settings: dict[str, Any]) -> Scaling | None:
    """Return mean and deviation that RGB in [0, 1] is scaled by, as the files of a model say; None: they do not.

    Args:
        settings: those of its config.json.

    Raises:
        UserError: if they cannot be read, or scale in another way.
    """
    file = _find(folder)
    try:
        if file is None:
            known = settings.get("pretrained_cfg")  # of timm
            return (_three(known["mean"]), _three(known["std"])) if known else None
        found = _read(file)
        return _of_hugging_face(found) if file.name == PROCESSOR else _of_keras_hub(found)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError, OSError, RecursionError) as error:
        what = f"no {one_line(error)}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(
            f"{file or folder}: it does not say in a way known here how images are to be scaled ({what}); if you know "
            f"it, copy the folder, replace that file by a {PROCESSOR} with image_mean and image_std (of RGB in [0, 1]) "
            "and give the path of the copy as the backbone"
        ) from error


def read_crop(folder: Path, settings: dict[str, Any]) -> float | None:
    """Return the share of the shorter side of an image that the files of a model say to cut out; None: they do not.

    Some of Hugging Face, as of DeiT, say to stretch an image first; as its authors do, it is cut out unstretched here.

    Args:
        settings: those of its config.json.

    Raises:
        UserError: if they cannot be read.
    """
    file = _find(folder)
    try:
        if file is None:
            known = settings.get("pretrained_cfg") or {}  # of timm
            share = float(known.get("crop_pct") or 0) if known.get("crop_mode", "center") == "center" else 0.0
        elif file.name == KERAS_PROCESSOR:
            share = float(bool(_read(file)["config"].get("crop_to_aspect_ratio")))
        else:
            share = _share(_read(file))
    except (AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{file or folder}: it does not say in a way known here how images are to be cut ({one_line(error)}); copy "
            f"the folder, write size, do_center_crop and crop_size into its {PROCESSOR}, and give the path of the copy "
            "as the backbone"
        ) from error
    return min(share, 1.0) if share >= LEAST_CROP else None


def read_side(folder: Path, settings: dict[str, Any]) -> int:
    """Return how many pixels the side of images has, as the files of a model say; 0: they do not.

    Args:
        settings: those of its config.json.
    """
    file = _find(folder)
    try:
        if file is None:
            return int((settings.get("pretrained_cfg") or {"input_size": [0]})["input_size"][-1])  # of timm
        found = _read(file)
        if file.name == PROCESSOR:
            return int(_number(found.get("crop_size") if found.get("do_center_crop") else found.get("size")))
        size = found["config"].get("image_size") or found["config"].get("height") or 0
        return int(size[0] if isinstance(size, list) else size)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError, RecursionError):
        return 0


def differences(
    folder: Path, settings: dict[str, Any], scaling: Scaling, crop: float | None, side: int
) -> dict[str, tuple[str, str]]:
    """Return what the files of a model say otherwise: of `scaling`, `resize` and `size` that, and what is used.

    Args:
        settings: those of its config.json.
        scaling, crop, side: what is used; a crop of None is none.

    Raises:
        UserError: if they cannot be read.
    """
    found: dict[str, tuple[str, str]] = {}
    theirs = read_scaling(folder, settings)
    if theirs and not _alike(theirs, scaling):
        found["scaling"] = in_words(theirs), in_words(scaling)
    if _find(folder) or settings.get("pretrained_cfg"):
        share = read_crop(folder, settings)
        if not math.isclose(share or 0, crop or 0, rel_tol=CLOSE):
            found["resize"] = _crop_in_words(share), _crop_in_words(crop)
    if (their_side := read_side(folder, settings)) not in (0, side):
        found["size"] = str(their_side), str(side)
    return found


def _alike(one: Scaling, other: Scaling) -> bool:
    return all(math.isclose(a, b, rel_tol=CLOSE) for a, b in zip(sum(one, ()), sum(other, ()), strict=True))


def in_words(scaling: Scaling) -> str:
    mean, deviation = (", ".join(f"{one:.4g}" for one in part) for part in scaling)
    return f"mean {mean} and deviation {deviation}"


def _crop_in_words(share: float | None) -> str:
    return f"{share:.4g}" if share else "stretch"


def _share(found: dict[str, Any]) -> float:
    """Return the share that a preprocessor_config.json says to cut out; 0: nothing is cut off."""
    side = _number(found.get("size"))
    if found.get("crop_pct"):  # as of ConvNeXt, where it holds below 384 pixels
        return float(found["crop_pct"]) if side < 384 else 0.0
    return _number(found.get("crop_size")) / side if found.get("do_center_crop") and side else 0.0


def _number(size: Any) -> float:
    """Return pixels of a size as Hugging Face writes it; 0: there is none."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return float(size or 0)


def _find(folder: Path) -> Path | None:
    """Return the file that says how images are prepared."""
    return next((folder / name for name in (PROCESSOR, KERAS_PROCESSOR) if (folder / name).is_file()), None)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _of_hugging_face(found: dict[str, Any]) -> Scaling:
    """Of a preprocessor_config.json: x * rescale_factor, then (x - image_mean) / image_std."""
    if found.get("do_flip_channel_order"):
        raise ValueError("do_flip_channel_order: it takes BGR")
    if found.get("rescale_offset") or found.get("do_rescale") is False:
        raise ValueError("rescale_offset or do_rescale is not as usual")
    whole = 255 * float(found.get("rescale_factor", 1 / 255))  # what RGB in [0, 1] is multiplied by first
    if found.get("do_normalize", True):
        mean, deviation = _three(found["image_mean"]), _three(found["image_std"])
    else:
        mean, deviation = (0.0,) * 3, (1.0,) * 3
    if abs(whole - 1) < 1e-6:  # 1 / 255 as it is written
        return mean, deviation
    return tuple(one / whole for one in mean), tuple(one / whole for one in deviation)


def _of_keras_hub(found: dict[str, Any]) -> Scaling:
    """Of an image_converter.json: RGB in [0, 255] * scale + offset, then (x - norm_mean) / norm_std.

    The last two were of the classes for ViT and DeiT in older versions of KerasHub, and their presets may still have
    them; other old ones have mean and variance: (RGB * scale - mean) / sqrt(variance).
    """
    config, name = found["config"], str(found.get("class_name", ""))
    unknown = sorted(set(config) - _NO_SCALING - _SCALING)
    if name == _SCALED_BY_CLASS or unknown:  # e.g. it cuts an image into parts
        raise ValueError(
            f"{name or 'its class'} is not known here" + (f", with {', '.join(unknown)}" if unknown else "")
        )
    scale, offset = _three(_given(config.get("scale"), 1.0)), _three(_given(config.get("offset"), 0.0))
    mean, deviation = _three(_given(config.get("norm_mean"), 0.0)), _three(_given(config.get("norm_std"), 1.0))
    if "variance" in config and "mean" in config:
        mean, deviation, offset = _three(config["mean"]), tuple(v**0.5 for v in _three(config["variance"])), (0.0,) * 3
    steps = list(zip(scale, offset, mean, deviation, strict=True))
    return tuple((m - o) / (255 * s) for s, o, m, _ in steps), tuple(d / (255 * s) for s, _, _, d in steps)


def _given(value: Any, usual: float) -> Any:
    """Return `usual` for what KerasHub leaves out: None, and an empty list."""
    return usual if value is None or value == [] else value


def _three(values: Any) -> tuple[float, ...]:
    """Return a number for each of RGB."""
    found = tuple(map(float, values)) if isinstance(values, list) else (float(values),) * 3
    if len(found) != 3:
        raise ValueError(f"expected 3 numbers, got {len(found)}")
    return found
