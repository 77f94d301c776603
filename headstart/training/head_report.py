"""What train_head found, as fine_tune needs it: how heads are trained, how good they are, whether there is more."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from headstart import paths
from headstart.errors import UserError, damaged
from headstart.head_config import ResolvedHead

# So few errors leave nothing to gain: within standard errors of none, and as a share.
CEILING, MAX_ERRORS = 2.0, 0.04
GOOD = 0.9  # accuracy from which on a last layer that no other features improve is good enough


@dataclass(frozen=True)
class HeadReport:
    """What reports/train_head.json and predictions/head.npy say.

    Attributes:
        settings: how heads on the last layer's features are trained, to start from.
        choice: what cross-validation found; empty if the head was asked for.
        logits: (N, n_classes) float32 of train, then val, by heads that have not seen them; NaN where there is none.
    """

    settings: ResolvedHead
    choice: dict[str, Any]
    logits: np.ndarray

    def nothing_to_gain(self, targets: np.ndarray) -> str:
        """Return why fine-tuning would hardly pay, in words; empty if it may.

        Args:
            targets: (N,) of train, then val.
        """
        if not self.choice or not np.isfinite(self.logits).all():
            return ""
        wrong = int((self.logits.argmax(axis=1) != targets).sum())
        if wrong <= CEILING * math.sqrt(wrong) and wrong <= MAX_ERRORS * len(targets):
            return f"the head classifies {len(targets) - wrong:,} of {len(targets):,} correctly in cross-validation"
        losses = self.choice["losses"]
        accuracy = 1 - wrong / len(targets)
        if len(self.choice["decays"]) > 1 and min(losses, key=losses.get) == "last" and accuracy >= GOOD:
            return f"features below the last layer do not help, and the accuracy is {accuracy:.3f} without them"
        return ""


def read_head_report(n_examples: int, n_classes: int) -> HeadReport:
    """Read what train_head wrote.

    Raises:
        UserError: if it is damaged, or not of this manifest.
    """
    file = paths.report("train_head")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        settings, choice = ResolvedHead(**report["settings"]), dict(report["choice"])
        if choice:
            choice = {"losses": dict(choice["losses"]), "decays": dict(choice["decays"])}
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} does not say how the head was trained; run `dvc repro --force train_head`") from error
    try:
        logits = np.load(paths.HELD_OUT, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise damaged(paths.HELD_OUT, "must be a complete .npy file of numbers", "train_head") from error
    if logits.shape != (n_examples, n_classes) or logits.dtype != np.float32:
        expected, found = (n_examples, n_classes), logits.shape
        raise damaged(paths.HELD_OUT, f"must be float32 of the shape {expected}, got {found}", "train_head")
    return HeadReport(settings, choice, logits)
