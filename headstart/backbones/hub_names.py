"""What `hub:PRESET`, `hf:OWNER/NAME` and the path of a folder stand for: a model's config says what it takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from headstart.backbones import hub_files, hub_text
from headstart.backbones.hub_conversions import TOWERS, tower_settings
from headstart.backbones.hub_files import HUGGING_FACE, KAGGLE, KERAS_PROCESSOR, PROCESSOR, Origin
from headstart.backbones.hub_images import ATTENTION, CLASS, CLIP, HALF, IMAGENET, MEAN, Scaling, make_row
from headstart.backbones.hub_networks import HubBackbone, read_config
from headstart.config import LEAST_CROP, PARAMS_FILE
from headstart.errors import UserError, one_line

# By the beginning of `model_type` (Hugging Face) or of the class (KerasHub): what images are pooled to and scaled by,
# where the files of a model do not say so.
_FAMILIES = {
    "clip": (CLASS, CLIP),
    "deit": (CLASS, IMAGENET),
    "dinov2": (CLASS, IMAGENET),
    "dinov3": (CLASS, IMAGENET),
    "siglip": (ATTENTION, HALF),
    "vit": (CLASS, HALF),
}
_OF_IMAGES = ("image_size", "image_shape", "vision_config", "vision_encoder", "image_encoder", "pretrained_cfg")


def find_row(name: str) -> HubBackbone | None:
    """Return the backbone that `hub:PRESET`, `hf:OWNER/NAME` or a folder stands for; None if `name` is none of these.

    Its config is downloaded if it is not on this machine.

    Raises:
        UserError: if there is no such folder, or no config.
    """
    if not name.startswith((HUGGING_FACE, KAGGLE)):
        if not ("/" in name or name.startswith(".") or Path(name).is_dir()):
            return None
        if not Path(name).is_dir():
            hint = f"; for the model of Hugging Face: hf:{name}" if re.fullmatch(r"[\w-]+/[\w.-]+", name) else ""
            raise UserError(f"{PARAMS_FILE}: backbone {name!r} is no backbone, and there is no such folder{hint}")
    folder = hub_files.fetch_config(Origin(name))
    config = read_config(folder)
    settings = {**config, **config.get("config", {})} if isinstance(config.get("config"), dict) else config
    if not any(key in settings for key in _OF_IMAGES):
        return hub_text.make_row(name, name, 0, 0.0)
    if config.get("model_type") in TOWERS:
        tower = tower_settings(config)
    else:
        tower = next((_inner(settings[key]) for key in _OF_IMAGES if isinstance(settings.get(key), dict)), settings)
    kind = str(config.get("model_type") or config.get("class_name") or config.get("architecture") or "").lower()
    pooled, scaling = next((found for start, found in _FAMILIES.items() if kind.startswith(start)), (MEAN, IMAGENET))
    scaling, crop = _scaling(folder, settings) or scaling, _center_crop(folder, settings)
    return make_row(name, name, 0, 0.0, _side(tower) or 224, _patch(tower), pooled, scaling, center_crop=crop)


def _inner(part: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a part, which KerasHub keeps in one that names its class."""
    return part["config"] if isinstance(part.get("config"), dict) else part


def _side(settings: dict[str, Any]) -> int:
    """Return the size of images that a model was trained at; 0: unknown."""
    found = settings.get("image_size") or settings.get("image_shape") or settings.get("input_size") or 0
    sides = [side for side in (found if isinstance(found, list) else [found]) if isinstance(side, int)]
    return max(sides, default=0)


def _patch(settings: dict[str, Any]) -> int:
    found = settings.get("patch_size", 1)
    found = found[0] if isinstance(found, list) else found
    return found if isinstance(found, int) and found > 0 else 1


def _scaling(folder: Path, settings: dict[str, Any]) -> Scaling | None:
    """Return mean and deviation that RGB in [0, 1] is scaled by, as the files of a model say; None: they do not."""
    try:
        if found := _read_json(folder / PROCESSOR):
            return _three(found["image_mean"]), _three(found["image_std"])
        if found := _read_json(folder / KERAS_PROCESSOR):
            found = found["config"]
            scale, offset = _three(found["scale"]), _three(found.get("offset") or 0.0)
            deviation = tuple(1 / (255 * one) for one in scale)
            return tuple(-one * d for one, d in zip(offset, deviation, strict=True)), deviation
        known = settings.get("pretrained_cfg")
        return (_three(known["mean"]), _three(known["std"])) if known else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{folder}: it does not say how images are to be scaled ({one_line(error)})") from error


def _center_crop(folder: Path, settings: dict[str, Any]) -> float | None:
    """Return the share of the shorter side of an image that the files of a model say to cut out; None: they do not.

    Some of Hugging Face, as of DeiT, say to stretch an image first; as its authors do, it is cut out unstretched here.
    """
    try:
        if found := _read_json(folder / PROCESSOR):
            side = _number(found.get("size"))
            if found.get("crop_pct"):  # as of ConvNeXt, where it holds below 384 pixels
                share = float(found["crop_pct"]) if side < 384 else 0.0
            else:
                share = _number(found.get("crop_size")) / side if found.get("do_center_crop") and side else 0.0
        elif found := _read_json(folder / KERAS_PROCESSOR):
            share = float(bool(found["config"].get("crop_to_aspect_ratio")))
        else:
            known = settings.get("pretrained_cfg") or {}
            share = float(known.get("crop_pct") or 0) if known.get("crop_mode", "center") == "center" else 0.0
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: it does not say how images are to be cut ({one_line(error)})") from error
    return min(share, 1.0) if share >= LEAST_CROP else None


def _number(size: Any) -> float:
    """Return pixels of a size as Hugging Face writes it; 0: there is none."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return float(size or 0)


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _three(values: Any) -> tuple[float, ...]:
    """Return a number for each of RGB."""
    found = tuple(map(float, values)) if isinstance(values, list) else (float(values),) * 3
    if len(found) != 3:
        raise ValueError(f"expected 3 numbers, got {len(found)}")
    return found
