"""What can be said of the params of the data before a run, without reading the data."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from pathlib import Path

from headstart import paths
from headstart.config import Params
from headstart.data.listing import printable
from headstart.data.sources import check_source, is_manifest
from headstart.errors import UserError, readable


def check_data(params: Params) -> None:
    """Check data.source, data.root and prepare.group_by; raises UserError naming the key, the rule and the value.

    Of a folder the files are checked, too, without reading them: on some DVC would fail, or wait forever.
    """
    source, group_by = params.data.source, params.prepare.group_by
    check_source(source, params.data.root)
    if not paths.is_address(source) and paths.PREPARED.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(
            f"params.yaml: data.source {source!r} contains {paths.PREPARED}/, where prepare writes; put the examples "
            "into a folder of their own, e.g. data/photos"
        )
    if group_by and not is_manifest(source):  # of a manifest it may be a column
        compile_group_by(group_by)
    if not paths.WATCHED.is_dir():
        raise UserError(f"{paths.WATCHED}/ does not exist; bring it back: git checkout HEAD -- {paths.WATCHED}")
    if os.path.isdir(source):
        check_files(source)


def check_files(folder: str) -> None:
    """Check that DVC can hash all files below `folder`; like DVC, it does not look behind links to folders.

    Raises:
        UserError: naming the first file that is a pipe, a socket or a device, a link that leads nowhere, not readable,
            or named in another encoding than UTF-8; with what to do.
    """
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{readable(str(error.filename))}: {error.strerror}; make it readable") from error
        for entry in found:
            problem = ""
            if printable(entry.name) != entry.name:
                problem = "its name is not UTF-8, which DVC needs; rename it"
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not os.path.exists(entry.path):
                problem = (
                    "a link that leads nowhere, on which DVC fails; mend it, or remove all such links: "
                    f"find {shlex.quote(folder)} -type l ! -exec test -e '{{}}' ';' -delete"
                )
            elif entry.is_dir():
                continue
            elif not entry.is_file():
                problem = "a pipe, a socket or a device, for which DVC would wait forever; remove it"
            elif not os.access(entry.path, os.R_OK):
                problem = "it may not be read; make it readable"
            if problem:
                raise UserError(f"{readable(printable(entry.path))}: {problem}")


def compile_group_by(pattern: str) -> re.Pattern[str]:
    """Compile the regular expression `prepare.group_by`.

    Raises:
        UserError: if it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what later versions of Python may read differently
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            "params.yaml: prepare.group_by must be a column of the manifest or a regular expression, got "
            f"{pattern!r} ({error})"
        ) from error
