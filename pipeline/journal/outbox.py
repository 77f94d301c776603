"""What a store could not take: records with copies of their files, kept until it can."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipeline.journal.records import Record
from pipeline.journal.tracker import line, warn
from pipeline.paths import kept

SERVER_REFUSES = range(400, 500)
ASKS_TO_TRY_AGAIN = {401, 403, 408, 429}  # answers that another moment or another login may change
TUPLES = ("curves", "samples")


def entries() -> list[Path]:
    """The kept records, oldest first."""
    return sorted(entry for entry in _folder().glob("*") if entry.name[0].isdigit())


def keep(item: Record) -> None:
    """Put a record with copies of its files into the outbox; it appears there at once or not at all."""
    name = f"{time.time_ns()}-{item.stage}"
    partial = _folder() / f".{name}.partial"
    for path in {*item.artifacts, *item.shown}:
        (partial / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / "files" / path)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "record.json").write_text(json.dumps(asdict(item)), encoding="utf-8")
    os.replace(partial, _folder() / name)


def send(entry: Path, deliver: Callable[[Record, Path], None]) -> None:
    """Deliver a kept record and forget it; one that can never be sent is put aside.

    Args:
        deliver: takes the record and the folder that its paths start from.
    """
    from mlflow.exceptions import RestException

    try:
        values = json.loads((entry / "record.json").read_text(encoding="utf-8"))
        values |= {name: [tuple(point) for point in values.get(name, [])] for name in TUPLES}
        item = Record(**values)
        missing = [path for path in (*item.artifacts, *item.shown) if not (entry / "files" / path).is_file()]
        if missing:
            raise ValueError(f"without its file {missing[0]}")
        deliver(item, entry / "files")
    except RestException as error:
        status = error.get_http_status_code()
        if status not in SERVER_REFUSES or status in ASKS_TO_TRY_AGAIN:
            raise
        _put_aside(entry, error)
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        _put_aside(entry, error)
    else:
        shutil.rmtree(entry)


def _folder() -> Path:
    return kept("tracking-outbox")


def _put_aside(entry: Path, error: Exception) -> None:
    aside = _folder() / f"damaged-{entry.name}"
    os.replace(entry, aside)
    warn(f"a kept record cannot be sent and was put aside as {aside}: {line(error)}")
