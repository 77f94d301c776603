"""What a model file says about itself, read without TensorFlow."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from headstart.errors import UserError, one_line
from headstart.modalities import Modality, get_modality
from headstart.model_archive import ABOUT, CLASSES, read_texts

# What a damaged archive, or JSON of another shape, raises; RuntimeError if it is encrypted or nested too deeply.
DAMAGES = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError)


class ModelInfo(NamedTuple):
    """A classifier as `headstart.training.networks.save` wrote it.

    Attributes:
        classes: in the order of its outputs.
        modality: of the examples that it takes.
        size: of an example, as `extract.size` counts it.
        margin: data.margin, by which boxes are cut.
    """

    classes: list[str]
    modality: Modality
    size: int
    margin: float = 0.0


def read_model_info(model_file: Path) -> ModelInfo:
    """Read the class names and the kind of examples from a model file.

    Raises:
        UserError: if it is not a classifier of this pipeline, or holds code, see `model_archive.read_texts`.
    """
    if not model_file.is_file():
        raise UserError(f"{model_file} does not exist; run `dvc repro`, or `dvc pull` if a remote has it")
    try:
        texts = read_texts(model_file)
    except DAMAGES as error:
        raise _foreign(model_file, error) from error
    try:
        about = texts[ABOUT]
        modality = get_modality(about["modality"], about.get("reading"))
        return ModelInfo(list(texts[CLASSES]), modality, int(about["size"]), float(about.get("margin", 0)))
    except (*DAMAGES, UserError) as error:
        raise _foreign(model_file, error) from error


def _foreign(model_file: Path, error: Exception) -> UserError:
    return UserError(
        f"{model_file} is not a model of this pipeline ({one_line(error)}); give the one that fine_tune wrote, "
        "models/model.keras"
    )
