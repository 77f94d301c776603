"""Features, kept for ever under what they are made from: no image goes through the same network twice.

A SQLite database per fingerprint, beside DVC's own temporary files: shared by the workspace and all its experiments, by
several processes at once, and untouched by what DVC does to outputs. What is written survives a kill at any moment.
Each may be deleted at any time, also by `headstart features prune`: its features are then computed again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from blake3 import blake3

from headstart import paths
from headstart.sqlite import is_damaged, marks, remove, write_ahead

KEY_BYTES, CHECK_BYTES = 16, 8
SECONDS_TO_WAIT = 60.0  # for another process that is writing
_AT_ONCE = 500  # keys a query
_PAGE = 16384  # bytes; a row of 1,280 float32 takes a third of it


def folder() -> Path:
    """Where the databases lie."""
    return paths.cache_path("features")


def fingerprint(ingredients: dict[str, Any]) -> str:
    """The name of everything that shapes a feature, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]


class DamagedStoreError(Exception):
    """A database that was damaged beyond its rows, and is removed."""


class FeatureStore:
    """The features of one fingerprint: rows of one length and dtype, under keys of KEY_BYTES bytes.

    Args:
        file: the database.
        ingredients: what the features are made from; kept in it, to be read.
        dtype: of what is kept, float32 or float16.

    Raises:
        sqlite3.Error: here and in the methods, where the file is damaged, locked or cannot be written.
    """

    def __init__(self, file: Path, ingredients: dict[str, Any], feature_dim: int, dtype: str) -> None:
        self.file = file
        self._dim, self.dtype = feature_dim, np.dtype(dtype).newbyteorder("<")
        file.parent.mkdir(parents=True, exist_ok=True)
        # Threads may take turns.
        self._db = sqlite3.connect(file, SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False)
        self._db.execute(f"PRAGMA page_size = {_PAGE}")
        write_ahead(self._db, SECONDS_TO_WAIT)
        self._db.execute("PRAGMA synchronous = NORMAL")  # a power failure can lose the last rows, a kill none
        self._db.executescript(
            """
            BEGIN IMMEDIATE;
            CREATE TABLE IF NOT EXISTS features (key BLOB UNIQUE NOT NULL, feature BLOB NOT NULL, digest BLOB NOT NULL);
            CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
            INSERT OR IGNORE INTO about VALUES ('computed', 0), ('seconds', 0.0);
            COMMIT;
            """
        )
        self._db.execute("INSERT OR REPLACE INTO about VALUES ('ingredients', ?)", (json.dumps(ingredients),))
        os.utime(file)  # when it was last used

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The places in `keys` of those that are not kept; of equal ones the first."""
        wanted: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            wanted.setdefault(key, place)
        for some in _slices(list(wanted)):
            for (key,) in self._db.execute(f"SELECT key FROM features WHERE key IN ({marks(some)})", some):
                wanted.pop(key, None)  # a damaged index gives any key
        return list(wanted.values())

    def put(self, keys: Sequence[bytes], features: np.ndarray, seconds: float) -> None:
        """Keep (n, feature_dim) features, which took that long to compute, under n keys: all or none of them."""
        blobs = [row.tobytes() for row in features.astype(self.dtype, copy=False)]
        rows = [(key, blob, _digest(key, blob)) for key, blob in zip(keys, blobs, strict=True)]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            self._db.execute("UPDATE about SET value = value + ? WHERE name = 'computed'", (len(rows),))
            self._db.execute("UPDATE about SET value = value + ? WHERE name = 'seconds'", (seconds,))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def get(self, keys: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
        """The features of `keys`, (n, feature_dim), and the places of those that are missing or damaged."""
        features = np.zeros((len(keys), self._dim), self.dtype)
        found: dict[bytes, bytes] = {}
        for some in _slices(keys):
            rows = self._db.execute(f"SELECT key, feature, digest FROM features WHERE key IN ({marks(some)})", some)
            found |= {key: feature for key, feature, digest in rows if self._is_whole(key, feature, digest)}
        bad = []
        for place, key in enumerate(keys):
            if key in found:
                features[place] = np.frombuffer(found[key], self.dtype)
            else:
                bad.append(place)
        return features, bad

    def _is_whole(self, key: bytes, feature: bytes, digest: bytes) -> bool:
        return is_whole(key, feature, digest) and len(feature) == self._dim * self.dtype.itemsize

    def seconds_per_row(self) -> float:
        """What a row took to compute, on average; 0 where none was."""
        about = dict(self._db.execute("SELECT name, value FROM about WHERE name != 'ingredients'"))
        return about["seconds"] / about["computed"] if about["computed"] else 0.0

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def open_store(ingredients: dict[str, Any], feature_dim: int, dtype: str) -> Iterator[FeatureStore]:
    """The store of what is made from `ingredients`; one for this time alone where none can be kept.

    What is damaged beyond its rows, as against a damaged row, is removed.

    Raises:
        DamagedStoreError: where damage shows later; the database is removed, and another try begins with an empty one.
        sqlite3.Error: where the disk is full, or another process holds the database for too long.
    """
    file = folder() / f"{fingerprint(ingredients)}.sqlite"
    with ExitStack() as stack:
        try:
            try:
                store = FeatureStore(file, ingredients, feature_dim, dtype)
            except sqlite3.Error as error:
                if not is_damaged(error):
                    raise
                print(f"{file}: is damaged ({error}): all of it is computed anew", file=sys.stderr)
                remove(file)
                store = FeatureStore(file, ingredients, feature_dim, dtype)
        except (sqlite3.Error, OSError) as error:
            if "full" in str(error) or "locked" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
                raise
            print(f"{file}: cannot be used ({error}): nothing is kept for the next time", file=sys.stderr)
            elsewhere = Path(stack.enter_context(TemporaryDirectory())) / file.name
            store = FeatureStore(elsewhere, ingredients, feature_dim, dtype)
        try:
            yield stack.enter_context(store)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            store.close()
            remove(store.file)
            raise DamagedStoreError(f"{store.file} is damaged ({error}) and removed") from error


def is_whole(key: object, feature: object, digest: object) -> bool:
    """Whether a row, of whatever a damaged file gives, is as it was put."""
    return isinstance(key, bytes) and isinstance(feature, bytes) and _digest(key, feature) == digest


def _digest(key: bytes, feature: bytes) -> bytes:
    return blake3(key + feature).digest(length=CHECK_BYTES)


def _slices(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _AT_ONCE):
        yield keys[start : start + _AT_ONCE]
