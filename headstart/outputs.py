"""Files that appear all at once, and only when the stage has succeeded."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pandas as pd

from headstart.errors import UserError

MAX_AGE_SECONDS = 86400  # of partial files that killed runs have left behind
DECIMALS = 6  # of metrics and probabilities in text files: beyond them is the noise of float32


def spreadsheet_safe(cell: Any) -> Any:
    """Return text that a spreadsheet would take for a formula with an apostrophe before it, and all else as it is.

    For files that people open; a stage would read another name. Source: OWASP, CSV Injection.
    """
    is_formula = isinstance(cell, str) and re.match(r"[=+\-@\t\r](?![\d.]+$)", cell)  # but for a plain number
    return f"'{cell}" if is_formula else cell


class Outputs:
    """Collects outputs under temporary names beside their final ones; `commit` renames them.

    Args:
        through_links: whether to write the file that a link points to; else the link is replaced, since it may lead
            into DVC's cache.

    Raises:
        UserError: if a folder cannot be made or a file cannot be written.
    """

    def __init__(self, through_links: bool = True) -> None:
        self._through_links = through_links
        self._partial: dict[Path, Path] = {}

    def path(self, final: Path) -> Path:
        """Return the temporary name to write `final` under, of the same suffix, in a folder that exists.

        It is `final` itself if that is a pipe or a device such as /dev/null, which must not be replaced by a file.
        """
        try:
            if self._through_links:
                if _is_stream(final):
                    return final
                final = _resolve_link(final)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.is_dir():
                raise IsADirectoryError(21, "there is a folder of that name")
            # With the process id: two runs at once do not write into one file.
            partial = final.with_name(f".{final.stem}.partial.{os.getpid()}{final.suffix}")
            for old in final.parent.glob(f".{final.stem}.partial.*{final.suffix}"):
                if time.time() - old.stat().st_mtime > MAX_AGE_SECONDS:
                    old.unlink(missing_ok=True)
            partial.open("wb").close()  # a folder that cannot be written is noticed before the work, not after it
        except OSError as error:
            raise UserError(
                f"{final}: cannot be written: {error.strerror}; make {final.parent}/ a folder that you may write to"
            ) from error
        self._partial[final] = partial
        return partial

    def json(self, final: Path, value: Any, exact: bool = False) -> Path:
        """Write `value` as JSON, its floats rounded unless `exact`; returns the temporary name."""
        text = json.dumps(value if exact else _rounded(value), indent=2, ensure_ascii=False, allow_nan=False)
        partial = self.path(final)
        partial.write_text(text + "\n", encoding="utf-8")
        return partial

    def csv(self, final: Path, table: pd.DataFrame) -> None:
        """Write `table` as CSV, its floats rounded."""
        # Many readers take a carriage return for the end of a row; Python before 3.13 does not quote it by itself.
        returns = any(
            table[name].astype(str).str.contains("\r").any() for name in table if table[name].dtype.kind == "O"
        )
        quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        table.round(DECIMALS).to_csv(self.path(final), index=False, lineterminator="\n", quoting=quoting)

    def commit(self) -> None:
        """Give every output its final name."""
        for final, partial in self._partial.items():
            os.replace(partial, final)
        self._partial.clear()

    def discard(self) -> None:
        """Remove what was written."""
        for partial in self._partial.values():
            partial.unlink(missing_ok=True)
        self._partial.clear()


def _is_stream(file: Path) -> bool:
    """Whether `file` is a stream: a pipe, a terminal, /dev/null.

    Raises:
        OSError: if it exists and cannot hold a file: a socket, a disk.
    """
    try:
        mode = file.stat().st_mode
    except OSError:  # it does not exist, or writing it will say why
        return False
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        if not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return True
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return False


def _resolve_link(file: Path) -> Path:
    """The target of a link, which need not exist; any other file as it is."""
    if not file.is_symlink():
        return file
    found = Path(os.path.realpath(file))
    if found.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DECIMALS) if isinstance(value, float) else value
