"""Locks between processes, such as the workers of DVC's queue: what one at a time may compute, and which GPUs it has.

GPUs: a stage of the workspace takes all that no other run of this repository holds, a queued or temporary experiment
one, so that several experiments share several GPUs. HEADSTART_GPUS says otherwise: how many a stage takes at most, or
`shared`: all of them, whoever else uses them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from headstart.errors import UserError
from headstart.paths import cache_path, workspace_root

GPUS, SHARED = "HEADSTART_GPUS", "shared"
SECONDS_BETWEEN_TRIES = 1.0
_held: list[FileLock] = []  # until the process ends, however it ends


@contextmanager
def exclusive_lock(lock: Path, message: str) -> Iterator[None]:
    """Hold the file `lock` against all other processes; if one of them holds it, print `message` and wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = FileLock(lock)
    try:
        file.acquire(timeout=0)
    except Timeout:
        print(message, flush=True)
        file.acquire()
    try:
        yield
    finally:
        file.release()


def claim_gpus(count: int, stage: str) -> list[int]:
    """Claim some of `count` visible GPUs for this process, and return which; waits while other runs hold all of them.

    Raises:
        UserError: if HEADSTART_GPUS is neither a number nor `shared`.
    """
    most = _most(count)
    if most is None:
        return list(range(count))
    # Numbers count what is visible; two processes that see others must not call them alike.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = [re.sub(r"\W", "-", name.strip()) for name in visible.split(",")][:count]
    folder = cache_path("gpus")
    folder.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        taken = []
        for place, name in enumerate(names):
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            taken.append(place)
            if len(taken) == most:
                break
        if taken:
            return taken
        if not told:
            print(f"{stage}: waiting for a GPU that no other run uses ({GPUS}={SHARED} shares them)", flush=True)
            told = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def _most(count: int) -> int | None:
    """How many GPUs are taken at most; None: all of them without asking."""
    asked = os.environ.get(GPUS, "").strip()
    if asked == SHARED:
        return None
    if not asked:
        return count if Path.cwd().resolve() == workspace_root() else 1
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"{GPUS} must be {SHARED} or the number of GPUs that a stage takes at most, got {asked!r}")
    return int(asked)
