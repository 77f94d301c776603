"""What the SQLite databases beside DVC's temporary files share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sized
from pathlib import Path

_PASSING = ("locked", "readonly", "full", "unable to open", "disk I/O")


def is_damaged(error: Exception) -> bool:
    """Whether the database itself is broken: it is not locked, or not to be written, and the disk is not full."""
    ours = (sqlite3.ProgrammingError, sqlite3.InterfaceError)  # mistakes of the caller
    return (
        isinstance(error, sqlite3.Error)
        and not isinstance(error, ours)
        and not any(word in str(error) for word in _PASSING)
    )


def write_ahead(db: sqlite3.Connection, seconds: float) -> None:
    """Turn on the journal that readers and a writer share; SQLite does not wait for others here by itself.

    Raises:
        sqlite3.OperationalError: where another process holds the database for longer than `seconds`.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.05)


def files_of(database: Path) -> list[Path]:
    """The files of a database: itself, and what SQLite keeps beside it."""
    names = [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm")]
    return [file for file in names if file.exists()]


def remove(database: Path) -> None:
    """Remove a database.

    Raises:
        OSError: where that is not allowed.
    """
    for file in files_of(database):
        file.unlink(missing_ok=True)


def marks(values: Sized) -> str:
    """A question mark for each of `values`, for a query."""
    return ", ".join("?" * len(values))
