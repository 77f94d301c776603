"""What can be said of the params of the data before a run, without reading the data."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

from headstart import paths
from headstart.config import Params
from headstart.data.files import is_hidden
from headstart.data.listing import printable
from headstart.data.sources import check_source, is_table
from headstart.errors import UserError, readable
from headstart.provenance import set_option


def check_data(params: Params) -> None:
    """Check data.source, data.root and prepare.group_by; raises UserError naming the key, the rule and the value.

    Of a folder the files are checked, too, without reading them: on some DVC would fail, or wait forever; and links to
    folders as prepare checks them.
    """
    source, group_by = params.data.source, params.prepare.group_by
    check_source(source, params.data.root)
    if not paths.is_address(source) and paths.PREPARED.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(
            f"params.yaml: data.source {source!r} contains {paths.PREPARED}/, where prepare writes; put the examples "
            "into a folder of their own, e.g. data/photos"
        )
    if group_by and not is_table(source):  # of a table it may be a column
        compile_group_by(group_by)
    if not paths.WATCHED.is_dir():
        raise UserError(f"{paths.WATCHED}/ does not exist; bring it back: git checkout HEAD -- {paths.WATCHED}")
    if os.path.isdir(source):
        check_linked(check_files(source), params)


def check_files(folder: str) -> list[str]:
    """Check that DVC can hash all files below `folder`; like DVC, it does not look behind links to folders.

    Returns:
        The links to folders elsewhere that DVC does not look behind, relative to `folder`, in the order of `os.walk`.

    Raises:
        UserError: naming the first file that is a pipe, a socket or a device, a link that leads nowhere, not readable,
            or named in another encoding than UTF-8; with what to do.
    """
    top = os.path.realpath(folder)
    waiting, targets, linked = [folder], {top}, []
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{readable(str(error.filename))}: {error.strerror}; make it readable") from error
        waiting += [entry.path for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]
        for entry in found:
            problem = ""
            if printable(entry.name) != entry.name:
                problem = "its name is not UTF-8, which DVC needs; rename it"
            elif entry.is_dir(follow_symlinks=False):
                continue
            elif not os.path.exists(entry.path):
                problem = (
                    "a link that leads nowhere, on which DVC fails; mend it, or remove all such links: "
                    f"find {shlex.quote(folder)} -type l ! -exec test -e '{{}}' ';' -delete"
                )
            elif entry.is_dir():
                name, target = os.path.relpath(entry.path, folder), os.path.realpath(entry.path)
                if not is_hidden(name) and target not in targets and not Path(target).is_relative_to(top):
                    linked.append(name)
                    targets.add(target)
            elif not entry.is_file():
                problem = "a pipe, a socket or a device, for which DVC would wait forever; remove it"
            elif not os.access(entry.path, os.R_OK):
                problem = "it may not be read; make it readable"
            if problem:
                raise UserError(f"{readable(printable(entry.path))}: {problem}")
    return linked


def check_linked(linked: Sequence[str], params: Params) -> None:
    """Check that links from data.source to folders elsewhere are watched.

    Args:
        linked: their paths, relative to data.source.

    Raises:
        UserError: naming the first, with the ways out.
    """
    if linked and "source" not in params.data.watch:
        others = f", and so are {len(linked) - 1} others" if linked[1:] else ""
        raise UserError(
            f"{readable(str(Path(params.data.source, linked[0])))} is a link to a folder{others}: DVC does not look "
            "behind such links, so that changed files there would go unnoticed. Give a folder that holds the files "
            f"themselves as data.source, or have them watched: dvc exp run {watch_option(params, 'source')}"
        )


def watch_option(params: Params, item: str) -> str:
    """Return what `dvc exp run` must be given to watch `item`, too."""
    return set_option("data.watch", sorted({*params.data.watch, item}))


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
