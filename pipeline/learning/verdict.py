"""Whether fine-tuning is better than what it started from, as far as images of val can tell, which also chose it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import ttest_rel

from pipeline.learning import calibration

LEAST_GAIN = 1e-4  # of the log loss: below it, rounding can be as systematic as anything


@dataclass
class Candidates:
    """What each state of a network makes of the same images, the first being the one to beat.

    The images are two halves. Each half's losses come with the temperature of the other one, so that confidence alone
    makes no difference, and no image judges a temperature that was fitted on it.

    Attributes:
        targets: (N,) int32.
        second: (N,) bool: which images are of the second half.
        losses: (N,) float64, of each candidate.
        right: (N,) bool, of each candidate: where its answer is right.
    """

    targets: np.ndarray
    second: np.ndarray
    losses: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, targets: np.ndarray, seed: int) -> Candidates:
        """None yet, for images in halves drawn by `seed`."""
        order = np.random.default_rng(seed).permutation(len(targets))
        return cls(targets, order % 2 == 1)

    def add(self, logits: np.ndarray) -> tuple[float, float]:
        """Take (N, n_classes) logits for another candidate's; its mean loss and its accuracy."""
        losses = np.zeros(len(self.targets))
        for half in (self.second, ~self.second):
            if half.any():
                other = ~half if (~half).any() else half
                scale = calibration.temperature(logits[other], self.targets[other])
                losses[half] = calibration.log_loss(logits[half] / scale, self.targets[half])
        self.losses.append(losses)
        self.right.append(logits.argmax(axis=1) == self.targets)
        return float(losses.mean()), float(self.right[-1].mean())

    def verdict(self, confidence: float) -> tuple[bool, float]:
        """Whether choosing among the candidates is surely better than the first one.

        What is best is chosen on each half and judged on the other one, image by image: the log loss must be lower by a
        one-sided paired t-test, by LEAST_GAIN at least, and no fewer answers right. Where there is only one beside the
        first, nothing is chosen.

        Returns:
            The verdict, and how sure the lower loss is, in [0, 1].
        """
        losses, right = np.array(self.losses), np.array(self.right)
        chosen = np.full(len(self.targets), int(len(losses) == 2))
        for half in (self.second, ~self.second) if len(losses) > 2 else ():
            if half.any() and not half.all():
                chosen[~half] = losses[:, half].mean(axis=1).argmin()
        images = np.arange(len(self.targets))
        found, hits = losses[chosen, images], right[chosen, images]
        if len(images) < 2 or losses[0].mean() - found.mean() < LEAST_GAIN:
            return False, 0.0
        sure = 1 - float(ttest_rel(losses[0], found, alternative="greater").pvalue)
        return bool(sure >= confidence and hits.sum() >= right[0].sum()), sure
