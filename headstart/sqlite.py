"""What the SQLite databases beside DVC's temporary files have in common."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sized
from pathlib import Path

# What SQLite raises; of a damaged schema it can say what Python cannot decode.
ERRORS = (sqlite3.Error, UnicodeDecodeError)
_TEMPORARY = ("locked", "readonly", "full", "unable to open", "disk I/O")


def is_damaged(error: Exception) -> bool:
    """Whether the database itself is broken, as opposed to locked, read-only or on a full disk."""
    misuse = (sqlite3.ProgrammingError, sqlite3.InterfaceError)  # mistakes of the caller
    return (
        isinstance(error, ERRORS)
        and not isinstance(error, misuse)
        and not any(word in str(error) for word in _TEMPORARY)
    )


def open_wal(file: Path, seconds: float, autocommit: bool = False, page_size: int = 4096) -> sqlite3.Connection:
    """Open a database, for threads that take turns, with a write-ahead log: readers do not wait for a writer.

    A power failure can lose the last transactions, a killed process none.

    Args:
        seconds: how long to wait for another process that has locked it.
        autocommit: do not open transactions implicitly.
        page_size: bytes, if the database is new.

    Raises:
        sqlite3.OperationalError: if another process holds the database for longer than `seconds`.
    """
    db = sqlite3.connect(file, seconds, check_same_thread=False)
    if autocommit:
        db.isolation_level = None
    until = time.monotonic() + seconds
    try:
        db.execute(f"PRAGMA page_size = {page_size}")
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")  # here SQLite does not wait for others by itself
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)
        db.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        db.close()
        raise
    return db


def files_of(database: Path) -> list[Path]:
    """Return the files of a database that exist: itself, and what SQLite keeps beside it."""
    names = [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm")]
    return [file for file in names if file.exists()]


def remove(database: Path) -> None:
    """Remove a database.

    Raises:
        OSError: if that is not allowed.
    """
    for file in files_of(database):
        file.unlink(missing_ok=True)


def placeholders(values: Sized) -> str:
    """Return a question mark for each of `values`, for a query."""
    return ", ".join("?" * len(values))
