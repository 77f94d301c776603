"""Whether one classifier is better than another on the same images, as far as those can tell."""

from __future__ import annotations

import numpy as np
from scipy.stats import ttest_rel

from pipeline import calibration


def is_better(head: np.ndarray, tuned: np.ndarray, targets: np.ndarray, confidence: float) -> tuple[bool, float]:
    """Whether the fine-tuned network is surely better than the head, by their logits for the same images of val.

    Image by image: the log loss must be lower by a one-sided paired t-test, and no fewer answers right. Both come with
    their temperature: confidence alone makes no difference.

    Returns:
        The verdict, and how sure the lower loss is, in [0, 1].
    """
    losses = calibration.log_loss(head, targets), calibration.log_loss(tuned, targets)
    if len(targets) < 2 or np.array_equal(*losses):
        return False, 0.0
    sure = 1 - float(ttest_rel(*losses, alternative="greater").pvalue)
    right = [int((logits.argmax(axis=1) == targets).sum()) for logits in (head, tuned)]
    return sure >= confidence and right[1] >= right[0], sure
