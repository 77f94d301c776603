"""What was found out about files, kept from run to run: by path, size and time, and by content.

An SQLite database beside DVC's own temporary files. It may be deleted at any time: all of it is found out anew.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from blake3 import blake3

from headstart.sqlite import is_damaged, marks, remove, write_ahead


class Facts(NamedTuple):
    """What is known about one file.

    Attributes:
        reason: why it cannot be used, in one word, or an empty text; all but `detail` is empty or 0 then.
        detail: the reason in words.
        item_id: see `images.item_id`.
        width, height: pixels, turned upright.
        brightness: mean luma in [0, 1].
        sharpness: standard deviation, in grey levels, of what is finer than an eighth of the image; low where blurred.
        descriptor: DESCRIPTOR_DIM float16, see `describe`; empty where the image is flat.
        file_hash: of the file's bytes, BLAKE3, 32 hexadecimal digits; empty where they cannot be read.
    """

    reason: str = ""
    detail: str = ""
    item_id: str = ""
    width: int = 0
    height: int = 0
    brightness: float = 0.0
    sharpness: float = 0.0
    descriptor: bytes = b""
    file_hash: str = ""


DAYS_KEPT = 365  # what was found out longer ago is forgotten, so that the file does not grow for ever
SECONDS_BETWEEN_COMMITS, SECONDS_TO_WAIT = 1.0, 10.0
_FORMAT = 2
# Facts are those that these modules find out: after a change of them all is found out anew.
_MODULES = ("modalities/image/decode.py", "data/inspection.py")
_COLUMNS = ", ".join(Facts._fields)


class Memory:
    """The facts about the files of one source. Threads may share it, and processes the file.

    Args:
        file: the database; one that is damaged, or of other code, is made anew. Where it cannot be used, nothing is
            remembered, and a line on stderr says so.
        source: what the paths are relative to.
    """

    def __init__(self, file: Path, source: str) -> None:
        self._file, self._source = file, source
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
        version = _code_version()
        if db.execute("SELECT version FROM code").fetchall() != [(version,)]:
            db.executescript(
                f"""
                BEGIN IMMEDIATE;
                DELETE FROM code;
                DROP TABLE IF EXISTS contents;
                DROP TABLE IF EXISTS versions;
                CREATE TABLE contents (found, {_COLUMNS}, PRIMARY KEY (file_hash)) WITHOUT ROWID;
                CREATE TABLE versions (source, name, version, file_hash, PRIMARY KEY (source, name)) WITHOUT ROWID;
                COMMIT;
                """
            )
            db.execute("INSERT INTO code VALUES (?)", (version,))
            db.commit()
        db.execute(f"SELECT source, name, version, {_COLUMNS} FROM versions JOIN contents USING (file_hash) LIMIT 1")
        return db

    def opener(self) -> Callable[[], Memory]:
        """What opens the same memory in another process."""
        return partial(Memory, self._file, self._source)

    def files(self) -> int:
        """How many files of the source are known, changed ones among them."""
        found = self._select("SELECT count(*) FROM versions WHERE source = ?", (self._source,))
        return found[0][0] if found else 0

    def recall_versions(self, versions: dict[str, str | None]) -> dict[str, Facts]:
        """The facts about those files, given as name and version, that have not changed."""
        found = self._select(
            f"SELECT name, version, {_COLUMNS} FROM versions JOIN contents USING (file_hash) "
            f"WHERE source = ? AND name IN ({marks(versions)})",
            (self._source, *versions),
        )
        return {name: Facts(*facts) for name, version, *facts in found if version == versions[name]}

    def recall_contents(self, file_hashes: list[str]) -> dict[str, Facts]:
        """The facts about those contents that are known, by hash."""
        found = self._select(f"SELECT {_COLUMNS} FROM contents WHERE file_hash IN ({marks(file_hashes)})", file_hashes)
        return {facts.file_hash: facts for facts in (Facts(*row) for row in found)}

    def remember(self, rows: list[tuple[str, str | None, Facts]]) -> None:
        """Keep name, version and facts of files that could be read; without a version the content alone is kept."""
        contents = [(self._today, *facts) for *_, facts in rows]
        versions = [(self._source, name, version, facts.file_hash) for name, version, facts in rows if version]
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

    def _insert(self, table: str, rows: list[tuple[object, ...]]) -> None:
        """One statement for all rows: between statements other threads would take Python's lock."""
        if rows and self._db:
            places = ", ".join([f"({marks(rows[0])})"] * len(rows))
            self._db.execute(
                f"INSERT OR REPLACE INTO {table} VALUES {places}", [value for row in rows for value in row]
            )

    def _do_without(self, error: Exception) -> None:
        """Go on without remembering; what is damaged is removed, so that the next run has a memory again."""
        print(f"{self._file}: cannot be used ({error}); all is found out anew", file=sys.stderr)
        if self._db:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        if is_damaged(error):
            remove(self._file)

    def close(self) -> None:
        """Keep all but what is old."""
        if self._db:
            try:
                self._db.execute("DELETE FROM contents WHERE found < ?", (self._today - DAYS_KEPT,))
                self._db.commit()
                self._db.close()
            except sqlite3.Error as error:
                self._do_without(error)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _code_version() -> str:
    code = b"".join((Path(__file__).parents[1] / name).read_bytes() for name in _MODULES)
    return f"{_FORMAT} {PIL.__version__} {blake3(code).hexdigest(length=16)}"
