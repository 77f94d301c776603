"""Whether fine-tuning is better than the head it started from, as far as held-out examples can show."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headstart.training import calibration

A_STANDARD_ERROR = 0.84  # the confidence of a one-sided test in a difference of one standard error
LEAST_GAIN = 1e-4  # of the Brier score; rounding alone can make smaller differences look systematic


@dataclass
class PairedScores:
    """Scores of a network on the same examples in two states: at the start of training, and the latest.

    The examples are in two halves. Each half is scored with the temperature of the other one, so that overconfidence
    alone makes no difference, and no example is scored with a temperature that was fitted to it.

    Attributes:
        targets: (N,) int32.
        second_half: (N,) bool: which examples are in the second half.
        losses: (N,) float64, of each state: the log loss.
        brier_scores: (N,) float64, of each state.
        correct: (N,) bool, of each state: whether the most probable class is the target.
    """

    targets: np.ndarray
    second_half: np.ndarray
    losses: list[np.ndarray] = field(default_factory=list)
    brier_scores: list[np.ndarray] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def empty(cls, targets: np.ndarray) -> PairedScores:
        """Return an object without scores, the examples in two random halves."""
        order = np.random.default_rng(0).permutation(len(targets))
        return cls(targets, order % 2 == 1)

    def add(self, logits: np.ndarray) -> tuple[float, float]:
        """Score (N, n_classes) logits as those of the latest state; return mean log loss and accuracy."""
        scaled = np.zeros(logits.shape)
        for half in (self.second_half, ~self.second_half):
            if half.any():
                other = ~half if (~half).any() else half
                scaled[half] = logits[half] / calibration.fit_temperature(logits[other], self.targets[other])
        for values in (self.losses, self.brier_scores, self.correct):
            del values[1:]  # only the first and the latest state are compared
        self.losses.append(calibration.log_loss(scaled, self.targets))
        self.brier_scores.append(calibration.brier_score(scaled, self.targets))
        self.correct.append(logits.argmax(axis=1) == self.targets)
        return float(self.losses[-1].mean()), float(self.correct[-1].mean())

    def verdict(self, confidence: float) -> tuple[bool, float]:
        """Test whether the latest state is better than the first, with the confidence that is required.

        Its Brier score must be lower by at least LEAST_GAIN, by a one-sided paired t-test over examples, and at least
        as many examples must be classified correctly. The Brier score is bounded: unlike in the log loss, a few
        confident mistakes do not outweigh all other examples.

        Returns:
            Whether it is better, and the confidence in [0, 1] that its Brier score is lower.
        """
        before, after = self.brier_scores[0], self.brier_scores[-1]
        if len(before) < 2 or before.mean() - after.mean() < LEAST_GAIN:
            return False, 0.0
        from scipy.stats import ttest_rel  # takes a third of a second, and fine-tuning may be skipped

        found = 1 - float(ttest_rel(before, after, alternative="greater").pvalue)
        return bool(found >= confidence and self.correct[-1].sum() >= self.correct[0].sum()), found

    def hopeless(self) -> bool:
        """Whether the latest state is worse than the first by more than a standard error of the Brier score.

        A single example shows nothing.
        """
        loss = self.brier_scores[-1] - self.brier_scores[0]
        return bool(len(loss) > 1 and loss.mean() > loss.std() / np.sqrt(len(loss)))

    def settled(self, confidence: float) -> bool:
        """Whether more examples would hardly change the verdict: one state is clearly better than the other.

        Args:
            confidence: that the verdict requires; A_STANDARD_ERROR is the least.
        """
        return self.hopeless() or self.verdict(max(confidence, A_STANDARD_ERROR))[0]
