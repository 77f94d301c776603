"""Whether fine-tuning is better than what it started from, as far as held-out images can tell."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import ttest_rel

from headstart.training import calibration

LEAST_GAIN = 1e-4  # of the Brier score: below it, rounding can be as systematic as anything


@dataclass
class States:
    """What two states of a network make of the same images: the first is the one to beat, the latest is to beat it.

    The images are two halves. Each half is judged with the temperature of the other one, so that confidence alone makes
    no difference, and no image judges a temperature that was fitted on it.

    Attributes:
        targets: (N,) int32.
        second: (N,) bool: which images are of the second half.
        losses: (N,) float64, of both: the log loss.
        scores: (N,) float64, of both: the Brier score.
        right: (N,) bool, of both: where the answer is right.
    """

    targets: np.ndarray
    second: np.ndarray
    losses: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, targets: np.ndarray, seed: int) -> States:
        """None yet, for images in halves drawn by `seed`."""
        order = np.random.default_rng(seed).permutation(len(targets))
        return cls(targets, order % 2 == 1)

    def add(self, logits: np.ndarray) -> tuple[float, float]:
        """Take (N, n_classes) logits for those of the latest state; its mean loss and its accuracy."""
        scaled = np.zeros(logits.shape)
        for half in (self.second, ~self.second):
            if half.any():
                other = ~half if (~half).any() else half
                scale = calibration.temperature(logits[other], self.targets[other])
                scaled[half] = logits[half] / scale
        for values in (self.losses, self.scores, self.right):
            del values[1:]  # only the first and the latest are judged
        self.losses.append(calibration.log_loss(scaled, self.targets))
        self.scores.append(calibration.brier_score(scaled, self.targets))
        self.right.append(logits.argmax(axis=1) == self.targets)
        return float(self.losses[-1].mean()), float(self.right[-1].mean())

    def verdict(self, confidence: float) -> tuple[bool, float]:
        """Whether the latest state is better than the first, as surely as is asked.

        Its Brier score must be lower, image by image, by a one-sided paired t-test, by LEAST_GAIN at least, and no
        fewer answers right. That score is bounded: a few answers that are surely wrong do not drown what the others
        say, as they do in the log loss.

        Returns:
            The verdict, and how sure the lower score is, in [0, 1].
        """
        before, after = self.scores[0], self.scores[-1]
        if len(before) < 2 or before.mean() - after.mean() < LEAST_GAIN:
            return False, 0.0
        sure = 1 - float(ttest_rel(before, after, alternative="greater").pvalue)
        return bool(sure >= confidence and self.right[-1].sum() >= self.right[0].sum()), sure
