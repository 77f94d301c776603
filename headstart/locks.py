"""Locks between processes, such as the workers of DVC's queue: one computes at a time, and each GPU has one user.

A stage in the workspace claims all GPUs that no other run of this repository uses; a queued or temporary experiment
claims one, so that several experiments share several GPUs. The environment variable HEADSTART_GPUS changes that: a
number is the most that a stage claims, `shared` means all of them, whoever else uses them.
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
_held: list[FileLock] = []  # until the process ends, in whatever way


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
    """Claim some of `count` visible GPUs for this process, and return their numbers; waits while all are in use.

    Raises:
        UserError: if HEADSTART_GPUS is neither a number nor `shared`.
    """
    limit = _limit(count)
    if limit is None:
        return list(range(count))
    # Numbers count visible GPUs: of two processes that see different ones, they would mean different GPUs.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = [re.sub(r"\W", "-", name.strip()) for name in visible.split(",")][:count]
    folder = cache_path("gpus")
    folder.mkdir(parents=True, exist_ok=True)
    waiting = False
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
            if len(taken) == limit:
                break
        if taken:
            return taken
        if not waiting:
            print(f"{stage}: waiting for a GPU that no other run uses ({GPUS}={SHARED} shares them)", flush=True)
            waiting = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def _limit(count: int) -> int | None:
    """Return how many GPUs to claim at most; None: use all of them without claiming any."""
    setting = os.environ.get(GPUS, "").strip()
    if setting == SHARED:
        return None
    if not setting:
        return count if Path.cwd().resolve() == workspace_root() else 1
    if not setting.isdecimal() or int(setting) < 1:
        raise UserError(f"{GPUS} must be {SHARED} or the number of GPUs that a stage takes at most, got {setting!r}")
    return int(setting)
