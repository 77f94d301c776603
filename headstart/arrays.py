"""Arrays in .npz files of our own, with a checksum at the end: what a failing disk has changed is noticed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from blake3 import blake3

_CHECK_BYTES = 32


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file, whole or not at all. Raises OSError if it cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.partial.{os.getpid()}.npz")
    try:
        np.savez(partial, **arrays)  # type: ignore[arg-type]
        checksum = blake3().update_mmap(partial).digest(_CHECK_BYTES)
        with partial.open("ab") as stream:
            stream.write(checksum)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return what `write_arrays` wrote.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not as it was written.
    """
    content = memoryview(file.read_bytes())
    if blake3(content[:-_CHECK_BYTES]).digest(_CHECK_BYTES) != content[-_CHECK_BYTES:]:
        raise ValueError("it is damaged")
    with np.load(io.BytesIO(content), allow_pickle=False) as saved:
        return dict(saved)
