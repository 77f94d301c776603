"""Model files, as predict, serve, export and ood open them; what they say of themselves is read without TensorFlow."""

from __future__ import annotations

import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headstart.errors import UserError, one_line
from headstart.modalities import Modality, get_modality
from headstart.model_archive import ABOUT, CLASSES, is_recorded, read_texts

if TYPE_CHECKING:
    from headstart.training.networks import Classifier

MAX_SIZE = 4096  # of extract.size

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
        if not 1 <= (size := int(about["size"])) <= MAX_SIZE:
            raise ValueError(f"its size is {size}, not in [1, {MAX_SIZE}]")
        return ModelInfo(list(texts[CLASSES]), modality, size, float(about.get("margin", 0)))
    except (*DAMAGES, UserError) as error:
        raise _foreign(model_file, error) from error


def warn_of_other_model(model_file: Path, command: str) -> None:
    """Print a line if a model is not the one that dvc.lock records, as after `git checkout` without `dvc checkout`.

    Args:
        command: the subcommand that uses the model.
    """
    if is_recorded(model_file) is False:
        print(
            f"{command}: warning: {model_file} is not the model that dvc.lock records; to use that one, run "
            f"`dvc checkout {model_file}`, or `dvc repro` if that fails",
            file=sys.stderr,
        )


def load_classifier(model_file: Path) -> Classifier:
    """Load a model. Raises UserError as `read_model_info` and `networks.load_classifier`."""
    from headstart.training import networks  # TensorFlow

    read_model_info(model_file)
    return networks.load_classifier(model_file)


def _foreign(model_file: Path, error: Exception) -> UserError:
    return UserError(
        f"{model_file} is not a model of this pipeline ({one_line(error)}); give the one that fine_tune wrote, "
        "models/model.keras"
    )
