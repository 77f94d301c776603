"""Kinds of examples: how bytes become arrays, augmentation, what a copy is, how an example is shown."""

from __future__ import annotations

from headstart.errors import UserError, did_you_mean
from headstart.modalities.base import Augmentation, Batch, Modality
from headstart.modalities.image import ImageModality

__all__ = ["Augmentation", "Batch", "Modality", "get_modality", "register"]

_MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> None:
    """Register a modality under its name, so that `data.kind` in params.yaml can be that."""
    _MODALITIES[modality.name] = modality


def get_modality(name: str) -> Modality:
    """Return the modality of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in _MODALITIES:
        known = ", ".join(_MODALITIES)
        raise UserError(f"params.yaml: data.kind must be one of {known}, got {name!r}{did_you_mean(name, _MODALITIES)}")
    return _MODALITIES[name]


register(ImageModality())
