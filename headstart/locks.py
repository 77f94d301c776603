"""Locks between processes, such as the workers of DVC's queue: one computes at a time, and each GPU has one user.

A stage in the workspace claims all GPUs that no other run of this repository uses; a queued or temporary experiment
claims one, so that several experiments share several GPUs. The environment variable HEADSTART_GPUS changes that: a
number is the most that a stage claims, `shared` means all of them, whoever else uses them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from headstart.errors import UserError
from headstart.paths import cache_path, workspace_root

GPUS, SHARED = "HEADSTART_GPUS", "shared"
SECONDS_BETWEEN_TRIES, SECONDS_BETWEEN_LINES = 1.0, 60.0
_held: list[FileLock] = []  # until the process ends, in whatever way


@contextmanager
def exclusive_lock(lock: Path, message: str) -> Iterator[None]:
    """Hold the file `lock` against all other processes.

    While one of them holds it, wait, and print `message` and which one that is, at once and every minute.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file, patience = FileLock(lock), 0.0
    while True:
        try:
            file.acquire(timeout=patience)
            break
        except Timeout:
            print(message + holder(lock), flush=True)
            patience = SECONDS_BETWEEN_LINES
    try:
        _write_holder(lock)
        yield
    finally:
        _note(lock).unlink(missing_ok=True)
        file.release()


def holder(lock: Path) -> str:
    """Return which process holds `lock`, in brackets after a space; empty if it has not said so."""
    try:
        about = json.loads(_note(lock).read_bytes())
        host, pid, started = str(about["host"]), int(about["pid"]), float(about["started"])
        who = f"process {pid}, since {time.strftime('%Y-%m-%d %H:%M', time.localtime(float(about['since'])))}"
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return ""
    if host != socket.gethostname():
        return f" ({who}, on the machine {host}; if it does not run there any more, delete {lock})"
    with suppress(psutil.Error):
        if abs(psutil.Process(pid).create_time() - started) < 1:  # no later process of the same number
            return f" ({who})"
    return f" ({who}, which has ended; a process that it started may hold {lock}: end that one, or delete the file)"


def _write_holder(lock: Path) -> None:
    process = psutil.Process()
    about = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), "since": time.time()}
    with suppress(OSError):
        _note(lock).write_text(json.dumps(about), encoding="utf-8")


def _note(lock: Path) -> Path:
    """Return the file that says who holds `lock`; the lock itself is the operating system's."""
    return lock.with_suffix(".holder")


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
    next_line = time.monotonic()
    while True:
        taken = []
        for place, name in enumerate(names):
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            _write_holder(Path(lock.lock_file))
            taken.append(place)
            if len(taken) == limit:
                break
        if taken:
            return taken
        if time.monotonic() >= next_line:
            users = "".join(f"; {name}{holder(folder / f'{name}.lock')}" for name in names)
            print(f"{stage}: waiting for a GPU that no other run uses ({GPUS}={SHARED} shares them){users}", flush=True)
            next_line += SECONDS_BETWEEN_LINES
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
