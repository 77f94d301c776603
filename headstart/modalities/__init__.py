"""Kinds of examples: how bytes become arrays, augmentation, what a copy is, how an example is shown."""

from __future__ import annotations

from typing import Any

from headstart.data.reading import load_reading
from headstart.errors import UserError, did_you_mean, one_line
from headstart.modalities.audio import AudioModality
from headstart.modalities.base import Augmentation, Modality
from headstart.modalities.batch import Batch
from headstart.modalities.image import ImageModality
from headstart.modalities.text import TextModality

__all__ = ["Augmentation", "Batch", "Modality", "get_modality", "load_modality", "modalities", "register"]

_MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> None:
    """Register a modality under its name, so that `data.kind` in params.yaml can be that."""
    _MODALITIES[modality.name] = modality


def get_modality(name: str, reading: dict[str, Any] | None = None) -> Modality:
    """Return the modality of that name.

    Args:
        reading: how the examples of a data set are read, see `Modality.find_reading`.

    Raises:
        UserError: if there is none, or it cannot read examples like that.
    """
    if name not in _MODALITIES:
        known = ", ".join(_MODALITIES)
        raise UserError(f"params.yaml: data.kind must be one of {known}, got {name!r}{did_you_mean(name, _MODALITIES)}")
    try:
        return _MODALITIES[name].with_reading(reading) if reading else _MODALITIES[name]
    except (ValueError, TypeError) as error:
        raise UserError(f"data.kind {name}: {one_line(error)}; run `dvc repro --force prepare`") from error


def load_modality() -> Modality:
    """Return the modality of the prepared data, which reads examples as prepare has found that they are to be read.

    Raises:
        UserError: if prepare has not run, or has written something else.
    """
    reading = load_reading()
    return get_modality(reading.pop("kind"), reading)


def modalities() -> list[Modality]:
    """Return all modalities, in the order of their registration."""
    return list(_MODALITIES.values())


register(ImageModality())
register(TextModality())
register(AudioModality())
