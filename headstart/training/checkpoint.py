"""The state of a training, kept after each epoch, so that what was stopped goes on from there to the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headstart.framework import keras
from headstart.training.history import Epochs
from headstart.training.verdict import States

LEFT_SECONDS = 7 * 86400.0
OF_STATES = ("losses", "scores", "right")  # what is known of both


def write(file: Path, **arrays: np.ndarray) -> None:
    """Write an .npz that appears whole or not at all.

    Raises:
        OSError: where it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.partial.{os.getpid()}.npz")
    try:
        np.savez(partial, **arrays)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


class Checkpoint:
    """What an epoch leaves, in a file that appears whole or not at all.

    Args:
        file: under a name that stands for everything that shapes the result.
    """

    def __init__(self, file: Path) -> None:
        self.file, self._works = file, True
        for other in file.parent.glob("*.npz"):
            if time.time() - other.stat().st_mtime > LEFT_SECONDS:  # by trainings that nobody went on with
                other.unlink(missing_ok=True)

    def save(self, variables: Sequence[keras.Variable], epochs: Epochs, states: States) -> None:
        """Keep the state after the last of `epochs`; where that cannot be, say so, once."""
        if not self._works:
            return
        try:
            self._save(variables, epochs, states)
        except OSError as error:
            self._works = False
            print(f"{self.file}: cannot be written ({error}): a kill would cost the whole training", file=sys.stderr)

    def _save(self, variables: Sequence[keras.Variable], epochs: Epochs, states: States) -> None:
        arrays = {f"v{number:05}": keras.ops.convert_to_numpy(v) for number, v in enumerate(variables)}
        arrays |= {f"w{number:05}": value for number, value in enumerate(epochs.weights)}
        arrays |= {name: np.array(getattr(states, name)) for name in OF_STATES}
        text = json.dumps({"rows": epochs.rows, "kept": epochs.kept})
        write(self.file, text=np.frombuffer(text.encode(), np.uint8), **arrays)

    def load(self, variables: Sequence[keras.Variable], epochs: Epochs, states: States) -> bool:
        """Take up the state that is kept; False where there is none."""
        try:
            if not self.file.is_file():
                return False
            with np.load(self.file, allow_pickle=False) as kept:
                values = [kept[f"v{number:05}"] for number in range(len(variables))]
                weights = [kept[name] for name in sorted(kept) if name.startswith("w")]
                of_states = {name: list(kept[name]) for name in OF_STATES}
                text = json.loads(kept["text"].tobytes())
            if any(value.shape != tuple(v.shape) for value, v in zip(values, variables, strict=True)):
                raise ValueError("of another network")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{self.file}: cannot be used ({error}): fine-tuning begins anew", file=sys.stderr)
            self.remove()
            return False
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        epochs.rows, epochs.kept, epochs.weights = text["rows"], text["kept"], weights
        for name, lists in of_states.items():
            setattr(states, name, lists)
        return True

    def remove(self) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)
