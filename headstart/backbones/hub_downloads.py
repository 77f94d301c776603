"""Downloads of the files of encoders, see `hub_ways`.

A file is downloaded into STAGING, and moved to its place when it is whole and has the sha256 that it should have.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from headstart.backbones import hub_files
from headstart.backbones.hub_files import CONFIG, TOKENIZER, Origin
from headstart.backbones.hub_ways import RefusedError, Way, find_ways, pickles
from headstart.config import PARAMS_FILE
from headstart.errors import UserError, one_line
from headstart.locks import exclusive_lock

STAGING = ".download"
_ONLY_PICKLES = {"hf:microsoft/deberta-v3-": "deberta-v3-small, or a preset of KerasHub such as hub:deberta_v3_base_en"}


def fetch(origin: Origin) -> Path:
    """Return the folder with the files of an encoder; those that are missing are downloaded.

    Raises:
        UserError: if that is impossible, saying which files belong where, or if one is not what it was or should be.
    """
    folder = origin.folder()
    missing = origin.missing(folder)
    if origin.is_folder:
        if missing:
            raise UserError(
                f"params.yaml: backbone {origin.place!r}: the folder lacks {' and '.join(missing)}; give the folder of "
                "a model as Hugging Face or KerasHub has it, with weights as .safetensors or .h5"
            )
        return folder
    if origin.lacking(folder):
        _download(origin, folder, origin.lacking)
    hub_files.check(origin, folder, _small_files(origin, folder))
    return folder


def fetch_config(origin: Origin) -> Path:
    """Return the folder with the config of an encoder, which is downloaded if it is missing; raises as `fetch`."""
    if origin.is_folder:
        if not (Path(origin.place) / CONFIG).is_file():
            return fetch(origin)  # which says what else is missing
        return Path(origin.place)
    folders = origin.folders()
    folder = next((folder for folder in folders if (folder / CONFIG).is_file()), folders[-1])

    def lacking(folder: Path) -> list[str]:
        return [name for name in origin.lacking(folder) if name in (CONFIG, hub_files.processor_name(folder))]

    if lacking(folder):
        _download(origin, folder, lacking)
    hub_files.check(origin, folder, _small_files(origin, folder))
    return folder


def check_weights(origin: Origin, folder: Path) -> str:
    """Return revision and sha256 of the weights; raises UserError if they are not what they were or should be."""
    name = origin.file or hub_files.weights_file(folder).name
    return hub_files.check(origin, folder, [name])[name]


def _small_files(origin: Origin, folder: Path) -> list[str]:
    """Return the names of the files besides the weights, as far as they are there."""
    names = (*origin.names(folder)[1:], hub_files.processor_name(folder))
    return [name for name in names if (folder / name).is_file()]


def _download(origin: Origin, folder: Path, find_lacking: Callable[[Path], list[str]]) -> None:
    """Download the files of an encoder that a folder lacks; raises as `fetch`."""
    for start, other in _ONLY_PICKLES.items():
        if origin.place.startswith(start):
            raise UserError(f"{PARAMS_FILE}: backbone {origin.place!r}: {pickles('')}; use {other}")
    errors: list[Exception] = []
    for way in find_ways(origin):
        try:
            with exclusive_lock(folder.with_name(f".{folder.name}.lock"), f"{origin.place} is being downloaded"):
                if CONFIG in find_lacking(folder):  # it may say that the others are called otherwise
                    _take(way, origin, folder, [CONFIG])
                _take(way, origin, folder, find_lacking(folder))
                shutil.rmtree(folder / STAGING, ignore_errors=True)
        except UserError:
            raise
        except Exception as error:  # of many kinds, by library
            errors.append(error)
        if not find_lacking(folder):
            return
    commit = "" if origin.wanted == "main" else f" at revision {origin.wanted}"
    advice = "".join(f"{error.advice} " for error in errors if isinstance(error, RefusedError) and error.advice)
    raise UserError(
        f"the files of {origin.place} are not on this machine and could not be downloaded "
        f"({'; '.join(map(one_line, errors))}).\n"
        f"  files:  {', '.join(_names_by_hand(origin, folder))}{commit}\n"
        f"  folder: {folder} (another one: set KERAS_HOME, it holds models/)\n"
        f"{advice}Put the files there, or choose a backbone whose weights are here: `headstart backbones` shows them."
    )


def _names_by_hand(origin: Origin, folder: Path) -> list[str]:
    """Return the names of the files that can be put there by hand."""
    missing, processor = origin.missing(folder), hub_files.processor_name(folder)
    nothing = not (folder / CONFIG).is_file()
    unknown = nothing and origin.of_texts and not origin.sha256  # whether it takes images or texts
    if unknown or (nothing and origin.of_images) or processor in origin.lacking(folder):
        missing.append(f"{processor} if it has one")
    return [f"{name} if it takes texts" if unknown and name == TOKENIZER else name for name in missing]


def _take(way: Way, origin: Origin, folder: Path, names: list[str]) -> None:
    """Download files in one way, check them, and move them to their places; raises many kinds of errors."""
    if not names:
        return
    print(f"downloading {', '.join(names)} of {origin.place} to {folder}", file=sys.stderr)
    staging, known, processor = folder / STAGING, hub_files.read_lock(folder), hub_files.processor_name(folder)
    staging.mkdir(parents=True, exist_ok=True)
    revision, hashes = way(origin, names, staging, str(known.get(CONFIG, {}).get("revision") or ""))
    for name in names:
        if name in hashes:
            sha256, about = hub_files.file_sha256(staging / name), known.get(name, {})
            before = about["sha256"] if about.get("revision") else ""
            expected = origin.pinned(name) or before or hashes[name] or sha256
            if sha256 != expected:
                shutil.rmtree(staging)
                raise UserError(
                    f"{name}, as it was downloaded, is not the file of {origin.place}: its sha256 begins with "
                    f"{sha256[:8]}, expected {expected[:8]}; nothing was kept. Try again; if it stays so, what is "
                    f"offered has changed: to use it, download it yourself and {origin.by_name(Path('FOLDER'))}"
                )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            hub_files.record(origin, folder, name, sha256, revision)
            os.replace(staging / name, folder / name)
        elif name == processor:
            hub_files.record(origin, folder, name, None, revision)
    if absent := [name for name in names if name not in hashes and name != processor]:
        raise FileNotFoundError(f"{revision or origin.place} has no {' and no '.join(absent)}")
