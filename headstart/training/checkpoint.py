"""Checkpoints: the state of a training after each epoch, from which a killed run resumes to the same bits."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headstart.arrays import read_arrays, write_arrays
from headstart.framework import keras
from headstart.training.history import History
from headstart.training.verdict import PairedScores

MAX_AGE_SECONDS = 7 * 86400.0
SCORES = ("losses", "brier_scores", "correct")  # fields of PairedScores


class Checkpoint:
    """The state of a training after an epoch, in one file, which is written whole or not at all.

    Args:
        file: its name must stand for everything that shapes the training, so that no other one resumes from it.
    """

    def __init__(self, file: Path) -> None:
        self.file, self._writable = file, True
        for other in file.parent.glob("*.npz"):
            with contextlib.suppress(OSError):  # another run may have removed or renamed it
                if time.time() - other.stat().st_mtime > MAX_AGE_SECONDS:  # nobody resumed it
                    other.unlink(missing_ok=True)

    def save(self, variables: Sequence[keras.Variable], history: History, scores: PairedScores) -> None:
        """Save the state after the last epoch of `history`; print a warning once if that fails."""
        if not self._writable:
            return
        arrays = {f"v{number:05}": keras.ops.convert_to_numpy(v) for number, v in enumerate(variables)}
        arrays |= {f"w{number:05}": value for number, value in enumerate(history.weights)}
        arrays |= {name: np.array(getattr(scores, name)) for name in SCORES}
        text = json.dumps({"rows": history.rows, "kept": history.kept})
        try:
            write_arrays(self.file, text=np.frombuffer(text.encode(), np.uint8), **arrays)
        except OSError as error:
            self._writable = False
            print(f"{self.file}: cannot be written ({error}); a killed run cannot resume", file=sys.stderr)

    def load(self, variables: Sequence[keras.Variable], history: History, scores: PairedScores) -> bool:
        """Restore the saved state; return False if there is none."""
        try:
            saved = read_arrays(self.file)
            values = [saved[f"v{number:05}"] for number in range(len(variables))]
            weights = [saved[name] for name in sorted(saved) if name.startswith("w")]
            saved_scores = {name: list(saved[name]) for name in SCORES}
            text = json.loads(saved["text"].tobytes())
            if any(value.shape != tuple(v.shape) for value, v in zip(values, variables, strict=True)):
                raise ValueError("it belongs to another network")
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError) as error:
            print(f"{self.file}: cannot be used ({error}); fine-tuning starts from the beginning", file=sys.stderr)
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)
            return False
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        history.rows, history.kept, history.weights = text["rows"], text["kept"], weights
        for name, lists in saved_scores.items():
            setattr(scores, name, lists)
        return True
