"""List, verify and prune the databases of the feature store: the command `headstart features`."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from headstart.errors import UserError
from headstart.features.store import SECONDS_TO_WAIT, folder, is_intact
from headstart.sqlite import ERRORS, files_of, is_damaged, remove

_COLUMNS = ("backbone", "weights_sha256", "size", "pooling", "precision", "engine", "storage")


def list_features() -> int:
    """Print a line for each database: fingerprint, rows, size, days since its last use, and what shaped its features.

    Returns:
        How many of them cannot be read.
    """
    files = _databases()
    if not files:
        print(f"{folder()} is empty; extract fills it")
        return 0
    damaged, total = 0, 0
    print(f"{'fingerprint':<17} {'rows':>10} {'MB':>9} {'days':>6}  " + ", ".join(_COLUMNS))
    for file in files:
        try:
            rows, inputs = _read(file)
        except (sqlite3.Error, TypeError, ValueError) as error:
            damaged += 1
            broken = not isinstance(error, sqlite3.Error) or is_damaged(error)
            print(f"{file.stem:<17} " + (_advice(file, error) if broken else f"cannot be opened: {error}"))
            continue
        size, days = _size(file), (time.time() - file.stat().st_mtime) / 86400
        total += size
        words = ", ".join(str(inputs.get(name, "?"))[:16] for name in _COLUMNS)
        print(f"{file.stem:<17} {rows:>10,} {size / 1e6:>9,.1f} {days:>6.1f}  {words}")
    print(f"{total / 1e6:,.1f} MB in {folder()}; days: since a run last used it")
    return damaged


def verify_features() -> int:
    """Read every row of every database, and remove those that are damaged: they are computed again when needed.

    Returns:
        How many databases were damaged.

    Raises:
        UserError: if a database cannot be opened or written.
    """
    damaged = 0
    for file in _databases():
        try:
            good, bad = _verify(file)
        except ERRORS as error:
            if not is_damaged(error):
                raise UserError(f"{file}: {error}; check that you may write it and that no run uses it") from error
            damaged += 1
            print(f"{file.stem}: {_advice(file, error)}")
            continue
        damaged += bad > 0
        print(f"{file.stem}: {good:,} rows are intact" + (f", {bad:,} damaged rows were removed" if bad else ""))
    return damaged


def prune_features(fingerprints: Sequence[str] = (), unused_for: float | None = None, everything: bool = False) -> None:
    """Remove databases, while no run uses them.

    Args:
        fingerprints: of those to remove.
        unused_for: days; also those that no run has used for so long.
        everything: remove all.

    Raises:
        UserError: if nothing or an unknown fingerprint is named, or a database cannot be removed.
    """
    files = _databases()
    unknown = set(fingerprints) - {file.stem for file in files}
    if unknown:
        raise UserError(f"unknown fingerprint {', '.join(sorted(unknown))}; `headstart features` lists them")
    if unused_for is not None and not unused_for >= 0:
        raise UserError(f"--unused-for must be a number of days, 0 or more, got {unused_for}")
    if not fingerprints and unused_for is None and not everything:
        raise UserError("nothing to prune; give FINGERPRINT..., --unused-for DAYS or --all")
    freed = 0
    for file in files:
        old = unused_for is not None and time.time() - file.stat().st_mtime > unused_for * 86400
        if everything or old or file.stem in fingerprints:
            freed += _size(file)
            try:
                remove(file)
            except OSError as error:
                raise UserError(f"{file}: cannot be removed: {error.strerror}") from error
            print(f"{file.stem}: removed")
    print(f"{freed / 1e6:,.1f} MB freed")


def _advice(file: Path, error: Exception) -> str:
    return f"damaged ({error}); `headstart features prune {file.stem}` removes it"


def _databases() -> list[Path]:
    return sorted(file for file in folder().glob("*.sqlite") if file.is_file())


def _connect(file: Path, mode: str) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=SECONDS_TO_WAIT))


def _read(file: Path) -> tuple[int, dict[str, Any]]:
    """Return how many rows a database has, and the inputs of its features."""
    with _connect(file, "ro") as db:
        rows = db.execute("SELECT count(*) FROM features").fetchone()[0]
        inputs = db.execute("SELECT value FROM about WHERE name = 'inputs'").fetchone()
    return rows, json.loads(inputs[0]) if inputs else {}


def _verify(file: Path) -> tuple[int, int]:
    """Return how many rows are intact, and how many were damaged and are removed."""
    used = file.stat()
    with _connect(file, "rw") as db, db:
        total = db.execute("SELECT count(*) FROM features").fetchone()[0]
        rows = db.execute("SELECT rowid, key, feature, digest FROM features")
        bar = tqdm(rows, total=total, desc=file.stem, unit=" rows", disable=None)
        bad = [(rowid,) for rowid, key, feature, digest in bar if not is_intact(key, feature, digest)]
        db.executemany("DELETE FROM features WHERE rowid = ?", bad)
    os.utime(file, ns=(used.st_atime_ns, used.st_mtime_ns))  # to verify it is not to use it
    return total - len(bad), len(bad)


def _size(file: Path) -> int:
    """Return the bytes of a database and of what SQLite keeps beside it."""
    return sum(part.stat().st_size for part in files_of(file))
