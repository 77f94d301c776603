"""Features, kept for ever under what they are made from: no image goes through the same network twice.

A SQLite database a fingerprint, beside DVC's own temporary files: shared by the workspace and all its experiments, by
several processes at once, and untouched by what DVC does to outputs. What is written survives a kill at any moment.
Each may be deleted at any time: its features are computed anew.

Command: python -m pipeline.feature_store                        # what is kept, and how large it is
         python -m pipeline.feature_store verify                 # read all of it; what is damaged is removed
         python -m pipeline.feature_store prune FINGERPRINT...   # remove; or: prune --unused-for DAYS, prune --all
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from blake3 import blake3
from tqdm import tqdm

from pipeline import paths
from pipeline.errors import UserError

KEY_BYTES, CHECK_BYTES = 16, 8
SECONDS_TO_WAIT = 60.0  # for another process that is writing
_AT_ONCE = 500  # keys a query
_PAGE = 16384  # bytes; a row of 1,280 float32 takes a third of it


def folder() -> Path:
    """Where the databases lie."""
    return paths.kept("features")


def fingerprint(ingredients: dict[str, Any]) -> str:
    """The name of everything that shapes a feature, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]


class FeatureStore:
    """The features of one fingerprint: rows of one length and dtype, under keys of KEY_BYTES bytes.

    Args:
        file: the database.
        ingredients: what the features are made from; kept in it, to be read.
        dtype: of what is kept, float32 or float16.

    Raises:
        sqlite3.Error: here and in the methods; `explain` says what to do about it.
    """

    def __init__(self, file: Path, ingredients: dict[str, Any], feature_dim: int, dtype: str) -> None:
        self.file = file
        self._dim, self.dtype = feature_dim, np.dtype(dtype).newbyteorder("<")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, timeout=SECONDS_TO_WAIT, isolation_level=None)
        self._db.execute(f"PRAGMA page_size = {_PAGE}")
        self._write_ahead()
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

    def _write_ahead(self) -> None:
        """Turn on the journal that readers and a writer share; SQLite does not wait for others here by itself."""
        until = time.monotonic() + SECONDS_TO_WAIT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The places in `keys` of those that are not kept; of equal ones the first."""
        wanted = {}
        for place, key in enumerate(keys):
            wanted.setdefault(key, place)
        for some in _slices(list(wanted)):
            for (key,) in self._db.execute(f"SELECT key FROM features WHERE key IN ({_marks(some)})", some):
                del wanted[key]
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
            rows = self._db.execute(f"SELECT key, feature, digest FROM features WHERE key IN ({_marks(some)})", some)
            found |= {key: feature for key, feature, digest in rows if self._is_whole(key, feature, digest)}
        bad = []
        for place, key in enumerate(keys):
            if key in found:
                features[place] = np.frombuffer(found[key], self.dtype)
            else:
                bad.append(place)
        return features, bad

    def _is_whole(self, key: bytes, feature: bytes, digest: bytes) -> bool:
        return len(feature) == self._dim * self.dtype.itemsize and _digest(key, feature) == digest

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
        yield stack.enter_context(store)


def remove(file: Path) -> None:
    """Remove a database with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, as against locked, not writable or on a full disk."""
    return isinstance(error, sqlite3.DatabaseError) and any(
        word in str(error) for word in ("malformed", "not a database", "no such table", "no such column", "corrupt")
    )


def _digest(key: bytes, feature: bytes) -> bytes:
    return blake3(key + feature).digest(length=CHECK_BYTES)


def _slices(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _AT_ONCE):
        yield keys[start : start + _AT_ONCE]


def _marks(keys: Sequence[bytes]) -> str:
    return ", ".join("?" * len(keys))


def verify(file: Path) -> tuple[int, int]:
    """Read every row; returns how many are whole, and how many were damaged and are removed."""
    with sqlite3.connect(file, timeout=SECONDS_TO_WAIT) as db:
        total = db.execute("SELECT count(*) FROM features").fetchone()[0]
        rows = db.execute("SELECT rowid, key, feature, digest FROM features")
        bar = tqdm(rows, total=total, desc=file.stem, unit=" rows", disable=None)
        bad = [(rowid,) for rowid, key, feature, digest in bar if _digest(key, feature) != digest]
        db.executemany("DELETE FROM features WHERE rowid = ?", bad)
    db.close()
    return total - len(bad), len(bad)


def describe(file: Path) -> dict[str, Any]:
    """What a database holds: ingredients, rows, bytes on disk, and days since it was last used."""
    db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS_TO_WAIT)
    try:
        rows = db.execute("SELECT count(*) FROM features").fetchone()[0]
        ingredients = json.loads(db.execute("SELECT value FROM about WHERE name = 'ingredients'").fetchone()[0])
    finally:
        db.close()
    parts = [file.with_name(file.name + suffix) for suffix in ("", "-wal", "-shm")]
    size = sum(part.stat().st_size for part in parts if part.exists())
    return {"rows": rows, "bytes": size, "days": (time.time() - file.stat().st_mtime) / 86400, **ingredients}


_COLUMNS = ("backbone", "image_size", "pooling", "precision", "engine", "storage")


def main(argv: list[str] | None = None) -> int:
    """Show, verify or prune the store; 1 where something is damaged or the command is wrong."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.feature_store", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="list | verify | prune")
    commands.add_parser("list", help="what is kept, and how large it is (the default)")
    commands.add_parser("verify", help="read every row; what is damaged is removed and computed anew when needed")
    prune = commands.add_parser("prune", help="remove what is named or long unused")
    prune.add_argument("fingerprints", nargs="*", metavar="FINGERPRINT")
    prune.add_argument("--unused-for", type=float, metavar="DAYS", help="also what no extraction has used for so long")
    prune.add_argument("--all", action="store_true", help="remove everything")
    arguments = parser.parse_args(argv)
    files = sorted(folder().glob("*.sqlite"))
    try:
        if arguments.command == "verify":
            return _verify(files)
        if arguments.command == "prune":
            return _prune(files, arguments.fingerprints, arguments.unused_for, arguments.all)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return _list(files)


def _list(files: list[Path]) -> int:
    if not files:
        print(f"{folder()}: nothing is kept yet; extract fills it")
        return 0
    damaged, total = 0, 0
    print(f"{'fingerprint':<17} {'rows':>10} {'MB':>9} {'days':>6}  " + ", ".join(_COLUMNS))
    for file in files:
        try:
            about = describe(file)
        except (sqlite3.Error, TypeError, ValueError) as error:
            damaged = 1
            print(f"{file.stem:<17} damaged: {error}; `prune {file.stem}` removes it")
            continue
        total += about["bytes"]
        words = ", ".join(str(about.get(name, "?")) for name in _COLUMNS)
        print(f"{file.stem:<17} {about['rows']:>10,} {about['bytes'] / 1e6:>9,.1f} {about['days']:>6.1f}  {words}")
    print(f"{total / 1e6:,.1f} MB in {folder()}; days: since an extraction last used it")
    return damaged


def _verify(files: list[Path]) -> int:
    damaged = 0
    for file in files:
        try:
            good, bad = verify(file)
        except sqlite3.Error as error:
            if not is_damaged(error):
                raise UserError(f"{file}: {error}; try again when no extraction is running") from error
            damaged = 1
            print(f"{file.stem}: cannot be read ({error}); `prune {file.stem}` removes it")
            continue
        damaged |= bad > 0
        print(f"{file.stem}: {good:,} rows are whole" + (f", {bad:,} were damaged and are removed" if bad else ""))
    return damaged


def _prune(files: list[Path], fingerprints: list[str], unused_for: float | None, everything: bool) -> int:
    unknown = set(fingerprints) - {file.stem for file in files}
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: not kept; `python -m pipeline.feature_store` lists what is")
    if not fingerprints and unused_for is None and not everything:
        raise UserError("prune: say what: FINGERPRINT..., --unused-for DAYS or --all")
    freed = 0
    for file in files:
        old = unused_for is not None and time.time() - file.stat().st_mtime > unused_for * 86400
        if everything or old or file.stem in fingerprints:
            freed += file.stat().st_size
            remove(file)
            print(f"{file.stem}: removed")
    print(f"{freed / 1e6:,.1f} MB are free again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
