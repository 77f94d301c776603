"""What a store could not take: records with copies of their files, kept until it can."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from headstart.paths import cache_path
from headstart.tracking.records import Record
from headstart.tracking.store import RefusedError, line, warn

TUPLES = ("curves", "samples")


def entries() -> list[Path]:
    """The kept records, oldest first."""
    return sorted(entry for entry in _folder().glob("*") if entry.name[0].isdigit())


def keep(item: Record) -> Path:
    """Put a record with copies of its files into the outbox, its place; it appears there at once or not at all."""
    name = f"{time.time_ns()}-{item.stage}"
    partial = _folder() / f".{name}.partial"
    for path in {*item.artifacts, *item.shown}:
        (partial / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / "files" / path)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "record.json").write_text(json.dumps(asdict(item)), encoding="utf-8")
    return partial.rename(_folder() / name)


def send(entry: Path, deliver: Callable[[Record, Path], None]) -> None:
    """Deliver a kept record and forget it; one that can never be sent is put aside.

    Args:
        deliver: takes the record and the folder that its paths start from.
    """
    try:
        values = json.loads((entry / "record.json").read_text(encoding="utf-8"))
        values |= {name: [tuple(point) for point in values.get(name, [])] for name in TUPLES}
        item = Record(**values)
        missing = [path for path in (*item.artifacts, *item.shown) if not (entry / "files" / path).is_file()]
        if missing:
            raise ValueError(f"without its file {missing[0]}")
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError) as error:
        put_aside(entry, error)
        return
    try:
        deliver(item, entry / "files")
    except RefusedError as error:
        put_aside(entry, error)
    else:
        shutil.rmtree(entry)


def put_aside(entry: Path, error: Exception) -> None:
    """Take a kept record that can never be sent out of the others' way."""
    aside = _folder() / f"damaged-{entry.name}"
    if aside.exists():
        aside = aside.with_name(f"{aside.name}-{time.time_ns()}")
    os.replace(entry, aside)
    warn(f"a kept record cannot be sent and was put aside as {aside}: {line(error)}")


def _folder() -> Path:
    return cache_path("tracking-outbox")
