"""What `hub:PRESET`, `hf:OWNER/NAME` and the path of a folder stand for: a model's config says what it takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from headstart.backbones import hub_downloads, hub_sounds, hub_text
from headstart.backbones.hub_conversions import TOWERS, tower_settings
from headstart.backbones.hub_files import HUGGING_FACE, KAGGLE, Origin
from headstart.backbones.hub_images import ATTENTION, CLASS, CLIP, HALF, IMAGENET, MEAN, make_row
from headstart.backbones.hub_networks import HubBackbone, read_config
from headstart.backbones.hub_scaling import read_crop, read_scaling
from headstart.config import PARAMS_FILE
from headstart.errors import UserError

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
_REPOSITORY = re.compile(r"hf:[\w.-]+(/[\w.-]+)?(@[^\s@]+)?")
_OF_IMAGES = ("image_size", "image_shape", "vision_config", "vision_encoder", "image_encoder", "pretrained_cfg")


def find_row(name: str) -> HubBackbone | None:
    """Return the backbone that `hub:PRESET`, `hf:OWNER/NAME`, with or without `@REVISION`, or a folder stands for.

    None if `name` is none of these.

    Its config is downloaded if it is not on this machine.

    Raises:
        UserError: if there is no such folder, or no config.
    """
    if name.startswith(HUGGING_FACE) and not _REPOSITORY.fullmatch(name):
        raise UserError(
            f"{PARAMS_FILE}: backbone {name!r}: expected hf:OWNER/NAME, or hf:OWNER/NAME@REVISION with a branch, a tag "
            "or a commit"
        )
    if not name.startswith((HUGGING_FACE, KAGGLE)):
        if not ("/" in name or name.startswith(".") or Path(name).is_dir()):
            return None
        if not Path(name).is_dir():
            hint = f"; for the model of Hugging Face: hf:{name}" if re.fullmatch(r"[\w-]+/[\w.-]+", name) else ""
            raise UserError(f"{PARAMS_FILE}: backbone {name!r} is no backbone, and there is no such folder{hint}")
    folder = hub_downloads.fetch_config(Origin(name))
    config = read_config(folder)
    if hub_sounds.is_sound_encoder(config):
        return hub_sounds.find_row(name, folder, config)
    settings = {**config, **config.get("config", {})} if isinstance(config.get("config"), dict) else config
    if not any(key in settings for key in _OF_IMAGES):
        return hub_text.make_row(name, name, 0, 0.0)
    if config.get("model_type") in TOWERS:
        tower = tower_settings(config)
    else:
        tower = next((_inner(settings[key]) for key in _OF_IMAGES if isinstance(settings.get(key), dict)), settings)
    kind = str(config.get("model_type") or config.get("class_name") or config.get("architecture") or "").lower()
    pooled, scaling = next((found for start, found in _FAMILIES.items() if kind.startswith(start)), (MEAN, IMAGENET))
    scaling, crop = read_scaling(folder, settings) or scaling, read_crop(folder, settings)
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
