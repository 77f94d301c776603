"""Arrays in files of our own, with a checksum: what a failing disk has changed is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from blake3 import blake3

_CHECK = "blake3"  # the name of the checksum among the arrays


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file, whole or not at all. Raises OSError if it cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.partial.{os.getpid()}.npz")
    try:
        np.savez(partial, **(arrays | {_CHECK: _checksum(arrays)}))  # type: ignore[arg-type]
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return what `write_arrays` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or is not as it was written.
    """
    try:
        with np.load(file, allow_pickle=False) as saved:
            arrays = dict(saved)
        intact = np.array_equal(arrays.pop(_CHECK), _checksum(arrays))
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds, and say what only programmers can use
        raise ValueError("it is damaged") from error
    if not intact:
        raise ValueError("it is damaged")
    return arrays


def _checksum(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return 32 bytes, uint8, of the arrays and their names, types and shapes."""
    digest = blake3()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
