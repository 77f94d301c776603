"""A cache of what inspection finds out about files: by name and version, and by content.

An SQLite database beside DVC's own temporary files. It can be deleted at any time: files are then inspected again. Each
row has a checksum: what a failing disk or memory has changed is noticed, and inspected again.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from headstart.sqlite import ERRORS, is_damaged, open_wal, placeholders, remove

MAX_CONTENTS = 5_000_000  # rows of each table, about a gigabyte: if there are more, the oldest are dropped
SECONDS_BETWEEN_COMMITS, SECONDS_TO_WAIT = 1.0, 10.0
_FORMAT, _CHECK_BYTES = 5, 8


class ItemInfo(NamedTuple):
    """What is known about one file.

    Attributes:
        reason: why it cannot be used, in one word, or empty; if not, everything but `detail` is empty.
        detail: the reason in words.
        item_id: a name of the decoded content, see `Modality.item_id`.
        measures: figures by name, see `Modality.measures` and `describe`.
        descriptor: (descriptor_dim,), see `Modality.describe`; empty if there is nothing to compare.
        file_hash: of the file's bytes, BLAKE3, 32 hexadecimal digits; empty if they cannot be read.
    """

    reason: str = ""
    detail: str = ""
    item_id: str = ""
    measures: dict[str, float] = {}  # noqa: RUF012  a named tuple's default, never changed
    descriptor: bytes = b""
    file_hash: str = ""


_COLUMNS = ", ".join(ItemInfo._fields)
_JOIN = (
    f"SELECT name, version, file_hash, versions.digest, {_COLUMNS}, contents.digest "
    "FROM versions JOIN contents USING (file_hash)"
)


class InspectionCache:
    """What is known about files. Threads may share it, and processes the database.

    Args:
        file: the database; a damaged one, or one of another `version`, is replaced. If it cannot be used, nothing is
            cached, and a line on stderr says so.
        version: names the code that inspects, by its results, see `inspection.fingerprint`.
    """

    def __init__(self, file: Path, version: str) -> None:
        self._file, self._version = file, version
        self._lock = threading.Lock()
        self._today = int(time.time() // 86400)
        self._committed = 0.0
        self._added = False
        self._damaged = False  # whether a line has said so
        self._db: sqlite3.Connection | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = self._open(file)
            except ERRORS as error:
                if not is_damaged(error):
                    raise
                print(f"{file}: damaged ({error}) and replaced; all files are inspected again", file=sys.stderr)
                remove(file)
                self._db = self._open(file)
        except (*ERRORS, OSError) as error:
            self._give_up(error)

    def _open(self, file: Path) -> sqlite3.Connection:
        db = open_wal(file, SECONDS_TO_WAIT)
        db.text_factory = partial(str, encoding="utf-8", errors="replace")  # the checksum judges damaged text
        db.execute("PRAGMA cache_size = -65536")  # KiB: hashes come in random order
        db.execute("CREATE TABLE IF NOT EXISTS code (version TEXT)")
        version = f"{_FORMAT} {self._version}"
        if db.execute("SELECT version FROM code").fetchall() != [(version,)]:
            db.executescript(
                f"""
                BEGIN IMMEDIATE;
                DELETE FROM code;
                DROP TABLE IF EXISTS contents;
                DROP TABLE IF EXISTS versions;
                CREATE TABLE contents (found, {_COLUMNS}, digest, PRIMARY KEY (file_hash)) WITHOUT ROWID;
                CREATE TABLE versions (
                    found, name, version, file_hash, digest, PRIMARY KEY (name, version)
                ) WITHOUT ROWID;
                COMMIT;
                """
            )
            db.execute("INSERT INTO code VALUES (?)", (version,))
            db.commit()
        db.execute(f"{_JOIN} LIMIT 1")
        return db

    def opener(self) -> Callable[[], InspectionCache]:
        """Return a function that opens the same cache in another process."""
        return partial(InspectionCache, self._file, self._version)

    def by_version(self, versions: dict[str, str | None]) -> dict[str, ItemInfo]:
        """Return what is known about files, given as name and version, that have not changed.

        Names are relative to the source: a copy of the repository, as DVC makes one for an experiment, has the same.
        """
        rows = self._select(f"{_JOIN} WHERE name IN ({placeholders(versions)})", tuple(versions))
        return {
            row[0]: _info(*row[4:-1])
            for row in rows
            if versions.get(row[0], 0) == row[1] and self._is_intact(row[:4]) and self._is_intact(row[4:])
        }

    def by_content(self, file_hashes: list[str]) -> dict[str, ItemInfo]:
        """Return what is known about those contents, by hash."""
        query = f"SELECT {_COLUMNS}, digest FROM contents WHERE file_hash IN ({placeholders(file_hashes)})"
        infos = (_info(*row[:-1]) for row in self._select(query, file_hashes) if self._is_intact(row))
        return {info.file_hash: info for info in infos}

    def put(self, rows: list[tuple[str, str | None, ItemInfo]]) -> None:
        """Add name, version and what is known of files; without a version only by content.

        Files that cannot be used are not added: another version of a library may read them.
        """
        good = [row for row in rows if not row[2].reason]
        contents = [(self._today, *_checked(*_as_row(info))) for *_, info in good]
        versions = [(self._today, *_checked(name, version, info.file_hash)) for name, version, info in good if version]
        with self._lock:
            try:
                self._insert(f"contents (found, {_COLUMNS}, digest)", contents)
                self._insert("versions", versions)
                if self._db and time.monotonic() - self._committed > SECONDS_BETWEEN_COMMITS:
                    self._db.commit()
                    self._committed = time.monotonic()
            except ERRORS as error:
                self._give_up(error)

    def _select(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall() if self._db else []
            except ERRORS as error:
                self._give_up(error)
                return []

    def _is_intact(self, row: tuple[Any, ...]) -> bool:
        """Whether a row is as it was stored; a line on stderr says once if one is not."""
        intact = _checked(*row[:-1]) == row
        if not intact and not self._damaged:
            self._damaged = True
            print(f"{self._file}: has damaged rows; their files are inspected again", file=sys.stderr)
        return intact

    def _insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Insert all rows by one statement: between statements other threads would take Python's lock."""
        if rows and self._db:
            self._added = True
            places = ", ".join([f"({placeholders(rows[0])})"] * len(rows))
            self._db.execute(
                f"INSERT OR REPLACE INTO {table} VALUES {places}", [value for row in rows for value in row]
            )

    def _give_up(self, error: Exception) -> None:
        """Continue without a cache; a damaged one is removed, so that the next run has one again."""
        print(f"{self._file}: cannot be used ({error}); all files are inspected again", file=sys.stderr)
        if self._db:
            with contextlib.suppress(*ERRORS):
                self._db.close()
            self._db = None
        if is_damaged(error):
            remove(self._file)

    def __enter__(self) -> InspectionCache:
        return self

    def __exit__(self, *exception: object) -> None:
        """Commit, and drop the oldest rows if there are too many."""
        if self._db:
            try:
                for table in ("contents", "versions") if self._added else ():
                    key = "file_hash" if table == "contents" else "name, version"
                    excess = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] - MAX_CONTENTS
                    if excess > 0:
                        oldest = f"SELECT {key} FROM {table} ORDER BY found LIMIT {excess}"
                        self._db.execute(f"DELETE FROM {table} WHERE ({key}) IN ({oldest})")
                self._db.commit()
                self._db.close()
            except ERRORS as error:
                self._give_up(error)


def _as_row(info: ItemInfo) -> list[object]:
    return [json.dumps(value) if isinstance(value, dict) else value for value in info]


def _checked(*row: object) -> tuple[object, ...]:
    """Return a row with its checksum."""
    return *row, blake3(repr(row).encode("utf-8", "replace")).digest(length=_CHECK_BYTES)


def _info(reason: str, detail: str, item_id: str, measures: str, descriptor: bytes, file_hash: str) -> ItemInfo:
    return ItemInfo(reason, detail, item_id, json.loads(measures), descriptor, file_hash)
