"""What the feature store holds; verify it, prune it.

Command: python -m headstart.features.admin                        # what is kept, and how large it is
         python -m headstart.features.admin verify                 # read all of it; what is damaged is removed
         python -m headstart.features.admin prune FINGERPRINT...   # remove; or: prune --unused-for DAYS, prune --all
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import time
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


_COLUMNS = ("backbone", "weights_sha256", "image_size", "pooling", "precision", "engine", "storage")


def main(argv: list[str] | None = None) -> int:
    """Show, verify or prune the store; 1 where something is damaged or the command is wrong."""
    parser = argparse.ArgumentParser(prog="python -m headstart.features.admin", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="list | verify | prune")
    commands.add_parser("list", help="what is kept, and how large it is (the default)")
    commands.add_parser("verify", help="read every row; what is damaged is removed and computed anew when needed")
    prune = commands.add_parser("prune", help="remove what is named or long unused, while no extraction uses it")
    prune.add_argument("fingerprints", nargs="*", metavar="FINGERPRINT")
    prune.add_argument("--unused-for", type=float, metavar="DAYS", help="also what no extraction has used for so long")
    prune.add_argument("--all", action="store_true", help="remove everything")
    arguments = parser.parse_args(argv)
    files = sorted(file for file in folder().glob("*.sqlite") if file.is_file())
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
            broken = not isinstance(error, sqlite3.Error) or is_damaged(error)
            what = f"damaged: {error}; `prune {file.stem}` removes it" if broken else f"cannot be opened: {error}"
            print(f"{file.stem:<17} {what}")
            continue
        total += about["bytes"]
        words = ", ".join(str(about.get(name, "?"))[:16] for name in _COLUMNS)
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
                raise UserError(f"{file}: {error}; is it yours to write, and is no extraction running?") from error
            damaged = 1
            print(f"{file.stem}: cannot be read ({error}); `prune {file.stem}` removes it")
            continue
        damaged |= bad > 0
        print(f"{file.stem}: {good:,} rows are whole" + (f", {bad:,} were damaged and are removed" if bad else ""))
    return damaged


def _prune(files: list[Path], fingerprints: list[str], unused_for: float | None, everything: bool) -> int:
    unknown = set(fingerprints) - {file.stem for file in files}
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: not kept; `python -m headstart.features.admin` lists what is")
    if unused_for is not None and not unused_for >= 0:
        raise UserError(f"prune: --unused-for must be days, 0 or more, got {unused_for}")
    if not fingerprints and unused_for is None and not everything:
        raise UserError("prune: say what: FINGERPRINT..., --unused-for DAYS or --all")
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
    print(f"{freed / 1e6:,.1f} MB are free again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
