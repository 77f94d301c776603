"""What the feature store holds: list, verify and prune it."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from headstart.errors import UserError
from headstart.features.store import SECONDS_TO_WAIT, folder, is_whole
from headstart.sqlite import files_of, is_damaged, remove


def verify(file: Path) -> tuple[int, int]:
    """Read every row; returns how many are whole, and how many were damaged and are removed."""
    used = file.stat()
    with sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=SECONDS_TO_WAIT) as db:
        total = db.execute("SELECT count(*) FROM features").fetchone()[0]
        rows = db.execute("SELECT rowid, key, feature, digest FROM features")
        bar = tqdm(rows, total=total, desc=file.stem, unit=" rows", disable=None)
        bad = [(rowid,) for rowid, key, feature, digest in bar if not is_whole(key, feature, digest)]
        db.executemany("DELETE FROM features WHERE rowid = ?", bad)
    db.close()
    os.utime(file, ns=(used.st_atime_ns, used.st_mtime_ns))  # by an extraction, that is
    return total - len(bad), len(bad)


def describe(file: Path) -> dict[str, Any]:
    """What a database holds: ingredients, rows, bytes on disk, and days since it was last used."""
    db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS_TO_WAIT)
    try:
        rows = db.execute("SELECT count(*) FROM features").fetchone()[0]
        ingredients = json.loads(db.execute("SELECT value FROM about WHERE name = 'ingredients'").fetchone()[0])
    finally:
        db.close()
    return {"rows": rows, "bytes": size_of(file), "days": (time.time() - file.stat().st_mtime) / 86400, **ingredients}


def size_of(file: Path) -> int:
    """Bytes of a database with what SQLite keeps beside it."""
    return sum(part.stat().st_size for part in files_of(file))


_COLUMNS = ("backbone", "weights_sha256", "size", "pooling", "precision", "engine", "storage")


def list_features() -> int:
    """Print what each database holds, and its size; return how many cannot be read."""
    files, damaged, total = _databases(), 0, 0
    if not files:
        print(f"{folder()} is empty; extract fills it")
        return 0
    print(f"{'fingerprint':<17} {'rows':>10} {'MB':>9} {'days':>6}  " + ", ".join(_COLUMNS))
    for file in files:
        try:
            about = describe(file)
        except (sqlite3.Error, TypeError, ValueError) as error:
            damaged += 1
            broken = not isinstance(error, sqlite3.Error) or is_damaged(error)
            print(f"{file.stem:<17} " + (_removal(file, error) if broken else f"cannot be opened: {error}"))
            continue
        total += about["bytes"]
        words = ", ".join(str(about.get(name, "?"))[:16] for name in _COLUMNS)
        print(f"{file.stem:<17} {about['rows']:>10,} {about['bytes'] / 1e6:>9,.1f} {about['days']:>6.1f}  {words}")
    print(f"{total / 1e6:,.1f} MB in {folder()}; days: since it was last used")
    return damaged


def verify_features() -> int:
    """Read every row and remove damaged ones, which are computed again when needed; return how many databases had any.

    Raises:
        UserError: if a database cannot be written.
    """
    damaged = 0
    for file in _databases():
        try:
            good, bad = verify(file)
        except sqlite3.Error as error:
            if not is_damaged(error):
                raise UserError(f"{file}: {error}; check that you may write it and that no extraction runs") from error
            damaged += 1
            print(f"{file.stem}: {_removal(file, error)}")
            continue
        damaged += bad > 0
        print(f"{file.stem}: {good:,} rows are whole" + (f", {bad:,} damaged rows were removed" if bad else ""))
    return damaged


def prune_features(fingerprints: Sequence[str] = (), unused_for: float | None = None, everything: bool = False) -> None:
    """Remove databases; no extraction may use them meanwhile.

    Args:
        fingerprints: of those to remove.
        unused_for: also remove what was not used for so many days.

    Raises:
        UserError: if a fingerprint is unknown, nothing is asked for, or a file cannot be removed.
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
            freed += size_of(file)
            try:
                remove(file)
            except OSError as error:
                raise UserError(f"{file}: cannot be removed: {error.strerror}") from error
            print(f"{file.stem}: removed")
    print(f"{freed / 1e6:,.1f} MB freed")


def _databases() -> list[Path]:
    return sorted(file for file in folder().glob("*.sqlite") if file.is_file())


def _removal(file: Path, error: Exception) -> str:
    return f"damaged ({error}); `headstart features prune {file.stem}` removes it"
