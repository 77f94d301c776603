"""What a model file says about itself, read without TensorFlow."""

from __future__ import annotations

import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from headstart import lockfile
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


def warn_of_other_model(model_file: Path, command: str) -> None:
    """Print a line if a model is not the one that dvc.lock records, as after `git checkout` without `dvc checkout`.

    Args:
        command: the subcommand that uses the model.
    """
    with suppress(UserError):  # a damaged dvc.lock says nothing about the model
        if lockfile.is_other_file(model_file):
            print(
                f"{command}: warning: {model_file} is not the model that dvc.lock records; to use that one, run "
                f"`dvc checkout {model_file}`, or `dvc repro` if that fails",
                file=sys.stderr,
            )


def _foreign(model_file: Path, error: Exception) -> UserError:
    return UserError(
        f"{model_file} is not a model of this pipeline ({one_line(error)}); give the one that fine_tune wrote, "
        "models/model.keras"
    )
