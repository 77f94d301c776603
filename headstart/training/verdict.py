"""Whether fine-tuning is better than the head it started from, as far as held-out examples can tell."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import ttest_rel

from headstart.training import calibration

LEAST_GAIN = 1e-4  # of the Brier score: below it, rounding can be as systematic as anything


@dataclass
class PairedScores:
    """Scores of two states of a network on the same examples: the one to beat, and the latest, which is the candidate.

    The examples are two halves. Each half is scored with the temperature of the other one, so that overconfidence alone
    makes no difference, and no example judges a temperature that was fitted to it.

    Attributes:
        targets: (N,) int32.
        second: (N,) bool: which examples are in the second half.
        losses: (N,) float64, of both: the log loss.
        scores: (N,) float64, of both: the Brier score.
        correct: (N,) bool, of both: whether the most probable class is the label.
    """

    targets: np.ndarray
    second: np.ndarray
    losses: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def empty(cls, targets: np.ndarray) -> PairedScores:
        """No scores yet, for examples in two random halves."""
        order = np.random.default_rng(0).permutation(len(targets))
        return cls(targets, order % 2 == 1)

    def add(self, logits: np.ndarray) -> tuple[float, float]:
        """Take (N, n_classes) logits as those of the latest state; returns its mean log loss and its accuracy."""
        scaled = np.zeros(logits.shape)
        for half in (self.second, ~self.second):
            if half.any():
                other = ~half if (~half).any() else half
                scaled[half] = logits[half] / calibration.temperature(logits[other], self.targets[other])
        for values in (self.losses, self.scores, self.correct):
            del values[1:]  # only the first and the latest are compared
        self.losses.append(calibration.log_loss(scaled, self.targets))
        self.scores.append(calibration.brier_score(scaled, self.targets))
        self.correct.append(logits.argmax(axis=1) == self.targets)
        return float(self.losses[-1].mean()), float(self.correct[-1].mean())

    def verdict(self, confidence: float) -> tuple[bool, float]:
        """Whether the latest state is better than the first, with the confidence that is asked for.

        Its Brier score must be lower by LEAST_GAIN at least, by a one-sided paired t-test over examples, and no fewer
        examples may be classified correctly. The Brier score is bounded: a few wrong answers given with great
        confidence do not drown the others, as they do in the log loss.

        Returns:
            The verdict, and the confidence that the score is lower, in [0, 1].
        """
        before, after = self.scores[0], self.scores[-1]
        if len(before) < 2 or before.mean() - after.mean() < LEAST_GAIN:
            return False, 0.0
        found = 1 - float(ttest_rel(before, after, alternative="greater").pvalue)
        return bool(found >= confidence and self.correct[-1].sum() >= self.correct[0].sum()), found
