"""What a model file says about itself, read without TensorFlow."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from headstart.errors import UserError, one_line
from headstart.modalities import Modality, get_modality

ABOUT = "headstart.json"  # written by headstart.training.networks.save
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
        UserError: if it is not a classifier of this pipeline.
    """
    if not model_file.is_file():
        raise UserError(f"{model_file} does not exist; run `dvc repro`, or `dvc pull` if a remote has it")
    try:
        with zipfile.ZipFile(model_file) as archive:
            classes, about = (json.loads(archive.read(name)) for name in ("classes.json", ABOUT))
        modality = get_modality(about["modality"], about.get("reading"))
        return ModelInfo(list(classes), modality, int(about["size"]), float(about.get("margin", 0)))
    except (*DAMAGES, UserError) as error:
        raise UserError(
            f"{model_file} is not a model of this pipeline ({one_line(error)}); give the one that fine_tune wrote, "
            "models/model.keras"
        ) from error
