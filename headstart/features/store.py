"""The feature store: features are kept under a fingerprint of their inputs, so that nothing is computed twice.

There is an SQLite database per fingerprint, beside DVC's own temporary files: shared by the workspace and all its
experiments, by several processes at once, and untouched by what DVC does to outputs. What is written survives a kill at
any moment. Databases can be deleted at any time, also by `headstart features prune`: their features are computed again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from blake3 import blake3

from headstart import paths
from headstart.sqlite import ERRORS, is_damaged, open_wal, placeholders, remove

KEY_BYTES, CHECK_BYTES = 16, 8
SECONDS_TO_WAIT = 60.0  # for another process that is writing
_KEYS_PER_QUERY = 500
_PAGE_SIZE = 16384  # bytes; a row of 1,280 float32 takes a third of it


def folder() -> Path:
    """Return the folder of the databases."""
    return paths.cache_path("features")


def fingerprint(inputs: dict[str, Any]) -> str:
    """Name everything that shapes a feature, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


class DamagedStoreError(Exception):
    """A database was damaged beyond single rows, and is removed."""


class FeatureStore:
    """The features of one fingerprint: rows of the same length and dtype, under keys of KEY_BYTES bytes.

    Zeros at the end of a row take no space: rows of short texts are padded to the length of long ones.

    Args:
        file: the database.
        inputs: what the features are computed from; kept in the database for people to read.
        dtype: of the rows, float32 or float16.

    Raises:
        sqlite3.Error: here and in the methods, if the file is damaged, locked or cannot be written.
    """

    def __init__(self, file: Path, inputs: dict[str, Any], feature_dim: int, dtype: str) -> None:
        self.file = file
        self._dim, self.dtype = feature_dim, np.dtype(dtype).newbyteorder("<")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db = open_wal(file, SECONDS_TO_WAIT, autocommit=True, page_size=_PAGE_SIZE)
        self._db.executescript(
            """
            BEGIN IMMEDIATE;
            CREATE TABLE IF NOT EXISTS features (key BLOB UNIQUE NOT NULL, feature BLOB NOT NULL, digest BLOB NOT NULL);
            CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
            INSERT OR IGNORE INTO about VALUES ('computed', 0), ('seconds', 0.0);
            COMMIT;
            """
        )
        self._db.execute("INSERT OR REPLACE INTO about VALUES ('inputs', ?)", (json.dumps(inputs),))
        os.utime(file)  # the time of its last use

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the places in `keys` of those that are not in the store; of equal ones the first."""
        wanted: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            wanted.setdefault(key, place)
        for part in _parts(list(wanted)):
            for (key,) in self._db.execute(f"SELECT key FROM features WHERE key IN ({placeholders(part)})", part):
                wanted.pop(key, None)  # a damaged index can return any key
        return list(wanted.values())

    def put(self, keys: Sequence[bytes], features: np.ndarray, seconds: float) -> None:
        """Store (n, feature_dim) features, which took that long to compute, under n keys: all or none of them."""
        blobs = [row.tobytes().rstrip(b"\0") for row in features.astype(self.dtype, copy=False)]
        rows = [(key, blob, _digest(key, blob)) for key, blob in zip(keys, blobs, strict=True)]
        with self._db:  # commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            self._db.execute("UPDATE about SET value = value + ? WHERE name = 'computed'", (len(rows),))
            self._db.execute("UPDATE about SET value = value + ? WHERE name = 'seconds'", (seconds,))

    def get(self, keys: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
        """Return the features of `keys`, (n, feature_dim), and the places of those that are missing or damaged."""
        features, found = np.zeros((len(keys), self._dim), self.dtype), {}
        size = self._dim * self.dtype.itemsize
        for part in _parts(keys):
            query = f"SELECT key, feature, digest FROM features WHERE key IN ({placeholders(part)})"
            for key, feature, digest in self._db.execute(query, part):
                if is_intact(key, feature, digest) and len(feature) <= size:
                    found[key] = feature
        for place, key in enumerate(keys):
            if key in found:
                features[place] = np.frombuffer(found[key].ljust(size, b"\0"), self.dtype)
        return features, [place for place, key in enumerate(keys) if key not in found]

    def seconds_per_row(self) -> float:
        """Return how long a row took to compute, on average; 0 if none was."""
        about = dict(self._db.execute("SELECT name, value FROM about WHERE name != 'inputs'"))
        try:
            rate = about["seconds"] / about["computed"]
        except (LookupError, TypeError, ZeroDivisionError):
            return 0.0
        return rate if math.isfinite(rate) else 0.0  # these two have no checksum

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._db.close()


@contextmanager
def open_store(inputs: dict[str, Any], feature_dim: int, dtype: str) -> Iterator[FeatureStore]:
    """Open the store of features that are computed from `inputs`; a temporary one if it cannot be kept.

    A database that is damaged beyond single rows is removed.

    Raises:
        DamagedStoreError: if the damage shows later; the database is removed, and another try begins with an empty one.
        sqlite3.Error: if the disk is full, or another process has locked the database for too long.
    """
    file = folder() / f"{fingerprint(inputs)}.sqlite"
    with ExitStack() as stack:
        try:
            try:
                store = FeatureStore(file, inputs, feature_dim, dtype)
            except ERRORS as error:
                if not is_damaged(error):
                    raise
                print(f"{file}: damaged ({error}); everything in it is computed again", file=sys.stderr)
                remove(file)
                store = FeatureStore(file, inputs, feature_dim, dtype)
        except (*ERRORS, OSError) as error:
            if "full" in str(error) or "locked" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
                raise
            print(f"{file}: cannot be used ({error}); features are not kept for the next run", file=sys.stderr)
            elsewhere = Path(stack.enter_context(TemporaryDirectory())) / file.name
            store = FeatureStore(elsewhere, inputs, feature_dim, dtype)
        try:
            yield stack.enter_context(store)
        except ERRORS as error:
            if not is_damaged(error):
                raise
            stack.close()
            remove(store.file)
            raise DamagedStoreError(f"{store.file} is damaged ({error}) and removed") from error


def is_intact(key: object, feature: object, digest: object) -> bool:
    """Whether a row, of whatever a damaged file returns, is as it was stored."""
    return isinstance(key, bytes) and isinstance(feature, bytes) and _digest(key, feature) == digest


def _digest(key: bytes, feature: bytes) -> bytes:
    return blake3(key + feature).digest(length=CHECK_BYTES)


def _parts(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        yield keys[start : start + _KEYS_PER_QUERY]
