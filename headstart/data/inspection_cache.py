"""What inspection found out about files, kept from run to run: by path, size and time, and by content.

An SQLite database beside DVC's own temporary files. It can be deleted at any time: files are then inspected again.
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

from headstart.sqlite import is_damaged, marks, remove, write_ahead


class ItemInfo(NamedTuple):
    """What is known about one file.

    Attributes:
        reason: why it cannot be used, in one word, or empty; all but `detail` is empty then.
        detail: the reason in words.
        item_id: a name of the decoded content, see `Modality.item_id`.
        measures: figures by name, see `Modality.measures` and `describe`.
        descriptor: (descriptor_dim,) float16, see `Modality.describe`; empty if there is nothing to compare.
        file_hash: of the file's bytes, BLAKE3, 32 hexadecimal digits; empty if they cannot be read.
    """

    reason: str = ""
    detail: str = ""
    item_id: str = ""
    measures: dict[str, float] = {}  # noqa: RUF012  a named tuple's default, never changed
    descriptor: bytes = b""
    file_hash: str = ""


MAX_CONTENTS = 5_000_000  # rows, about a gigabyte: of more, the oldest are dropped
SECONDS_BETWEEN_COMMITS, SECONDS_TO_WAIT = 1.0, 10.0
SAMPLE = 500  # names of one query
_FORMAT = 3
_COLUMNS = ", ".join(ItemInfo._fields)


class InspectionCache:
    """What is known about files. Threads may share it, and processes the database.

    Args:
        file: the database; a damaged one, or one of another `version`, is made anew. If it cannot be used, nothing is
            kept, and a line on stderr says so.
        version: names what inspection finds out, see `inspection.fingerprint`.
    """

    def __init__(self, file: Path, version: str) -> None:
        self._file, self._version = file, f"{_FORMAT} {version}"
        self._using = threading.Lock()
        self._today = int(time.time() // 86400)
        self._committed = 0.0
        self._db: sqlite3.Connection | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = self._open(file)
            except sqlite3.DatabaseError as error:
                if not is_damaged(error):
                    raise
                remove(self._file)
                self._db = self._open(file)
        except (sqlite3.Error, OSError) as error:
            self._do_without(error)

    def _open(self, file: Path) -> sqlite3.Connection:
        db = sqlite3.connect(file, timeout=SECONDS_TO_WAIT, check_same_thread=False)
        write_ahead(db, SECONDS_TO_WAIT)
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -65536")  # KiB: digests come in no order
        db.execute("CREATE TABLE IF NOT EXISTS code (version TEXT)")
        if db.execute("SELECT version FROM code").fetchall() != [(self._version,)]:
            db.executescript(
                f"""
                BEGIN IMMEDIATE;
                DELETE FROM code;
                DROP TABLE IF EXISTS contents;
                DROP TABLE IF EXISTS versions;
                CREATE TABLE contents (found, {_COLUMNS}, PRIMARY KEY (file_hash)) WITHOUT ROWID;
                CREATE TABLE versions (name, version, file_hash, PRIMARY KEY (name, version)) WITHOUT ROWID;
                COMMIT;
                """
            )
            db.execute("INSERT INTO code VALUES (?)", (self._version,))
            db.commit()
        db.execute(f"SELECT name, version, {_COLUMNS} FROM versions JOIN contents USING (file_hash) LIMIT 1")
        return db

    def opener(self) -> Callable[[], InspectionCache]:
        """What opens the same cache in another process."""
        return partial(_reopen, self._file, self._version)

    def share_known(self, names: Sequence[str]) -> float:
        """About which share of these files is known, changed ones among them, in [0, 1]."""
        sample = names[:: -(-len(names) // SAMPLE) or 1]
        found = self._select(f"SELECT count(DISTINCT name) FROM versions WHERE name IN ({marks(sample)})", sample)
        return found[0][0] / len(sample) if found and sample else 0.0

    def by_version(self, versions: dict[str, str | None]) -> dict[str, ItemInfo]:
        """What is known about those files, given as name and version, that have not changed.

        The same path in a copy of the repository, as DVC makes one for an experiment, is the same name.
        """
        found = self._select(
            f"SELECT name, version, {_COLUMNS} FROM versions JOIN contents USING (file_hash) "
            f"WHERE name IN ({marks(versions)})",
            tuple(versions),
        )
        return {name: _info(*info) for name, version, *info in found if version == versions[name]}

    def by_content(self, file_hashes: list[str]) -> dict[str, ItemInfo]:
        """What is known about those contents, by hash."""
        found = self._select(f"SELECT {_COLUMNS} FROM contents WHERE file_hash IN ({marks(file_hashes)})", file_hashes)
        return {info.file_hash: info for info in (_info(*row) for row in found)}

    def put(self, rows: list[tuple[str, str | None, ItemInfo]]) -> None:
        """Keep name, version and what is known of files that could be read; without a version only by content."""
        contents = [(self._today, *_as_row(info)) for *_, info in rows]
        versions = [(name, version, info.file_hash) for name, version, info in rows if version]
        with self._using:
            try:
                self._insert(f"contents (found, {_COLUMNS})", contents)
                self._insert("versions", versions)
                if self._db and time.monotonic() - self._committed > SECONDS_BETWEEN_COMMITS:
                    self._db.commit()
                    self._committed = time.monotonic()
            except sqlite3.Error as error:
                self._do_without(error)

    def _select(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._using:
            try:
                return self._db.execute(query, values).fetchall() if self._db else []
            except sqlite3.Error as error:
                self._do_without(error)
                return []

    def _insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """One statement for all rows: between statements other threads would take Python's lock."""
        if rows and self._db:
            places = ", ".join([f"({marks(rows[0])})"] * len(rows))
            self._db.execute(
                f"INSERT OR REPLACE INTO {table} VALUES {places}", [value for row in rows for value in row]
            )

    def _do_without(self, error: Exception) -> None:
        """Go on without a cache; a damaged one is removed, so that the next run has one again."""
        print(f"{self._file}: cannot be used ({error}); all files are inspected again", file=sys.stderr)
        if self._db:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        if is_damaged(error):
            remove(self._file)

    def close(self) -> None:
        """Commit, and drop the oldest contents if there are too many."""
        if self._db:
            try:
                count = self._db.execute("SELECT count(*) FROM contents").fetchone()[0]
                if count > MAX_CONTENTS:
                    oldest = "SELECT file_hash FROM contents ORDER BY found LIMIT ?"
                    self._db.execute(f"DELETE FROM contents WHERE file_hash IN ({oldest})", (count - MAX_CONTENTS,))
                    self._db.execute("DELETE FROM versions WHERE file_hash NOT IN (SELECT file_hash FROM contents)")
                self._db.commit()
                self._db.close()
            except sqlite3.Error as error:
                self._do_without(error)

    def __enter__(self) -> InspectionCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _as_row(info: ItemInfo) -> list[object]:
    return [json.dumps(value) if isinstance(value, dict) else value for value in info]


def _reopen(file: Path, version: str) -> InspectionCache:
    return InspectionCache(file, version.removeprefix(f"{_FORMAT} "))


def _info(reason: str, detail: str, item_id: str, measures: str, descriptor: bytes, file_hash: str) -> ItemInfo:
    return ItemInfo(reason, detail, item_id, json.loads(measures), descriptor, file_hash)
