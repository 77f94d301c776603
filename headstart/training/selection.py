"""Fine-tune and select: the fine-tuned network if it is better, else the head on the frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.training import calibration
from headstart.training.fine_tuning import OnEpochEnd, TrainResult
from headstart.training.folds import CrossValResult
from headstart.training.plan import Plan


@dataclass(frozen=True)
class FineTuneResult:
    """The result of fine-tuning.

    Attributes:
        trained: the training on train; `finished` if it reached its last epoch.
        cross_val: None if val was used instead.
        better: whether the fine-tuned network is better than the head, and is selected.
        confidence: that it is better, in [0, 1].
        temperature: of its logits.
        refitted: whether it was trained again on train and val.
    """

    plan: Plan
    trained: TrainResult
    cross_val: CrossValResult | None
    better: bool
    confidence: float
    temperature: float
    finished: bool
    refitted: bool

    @property
    def val_logits(self) -> np.ndarray:
        """(N, n_classes) calibrated logits of val, by the network that has not seen it."""
        return self.trained.logits / self.temperature

    def report(self) -> dict[str, Any]:
        """Return the figures of reports/fine_tune.json that describe it."""
        brier_scores = (self.cross_val or self.trained).scores.brier_scores
        tuned = calibration.val_metrics(self.val_logits, self.trained.scores.targets)
        return {
            **(self.cross_val.metrics() if self.cross_val else {}),
            **{f"tuned_{name}": value for name, value in tuned.items()},
            "head_brier_score": float(brier_scores[0].mean()),
            "tuned_brier_score": float(brier_scores[-1].mean()),
            "tuned_confidence": self.confidence,
            "last_epoch": self.trained.last_epoch,
            "finished": self.finished,
            "refitted": self.refitted,
            "temperature": self.temperature,
        }


def fine_tune(plan: Plan, on_epoch_end: OnEpochEnd) -> FineTuneResult:
    """Train on train, compare with the head on val or by cross-validation, and refit on train and val if better.

    Args:
        on_epoch_end: called after each epoch of the training on train.
    """
    cross_val = plan.cross_validate() if plan.folds else None
    trained = plan.train(on_epoch_end)
    finished = trained.last_epoch == plan.epochs
    better, found = (cross_val or trained).scores.verdict(plan.settings.confidence)
    if cross_val:
        temperature = cross_val.temperature
        better = better and finished  # folds show nothing about a training that stopped
    else:
        temperature = calibration.fit_temperature(trained.logits, trained.scores.targets)
    refitted = better and finished and plan.refits and plan.refit(trained)
    return FineTuneResult(plan, trained, cross_val, better, found, temperature, finished, refitted)


def explain(report: dict[str, Any], better: bool, required: float) -> str:
    """Return a sentence that says why the head or the fine-tuned network was selected.

    Args:
        report: of FineTuneResult, with the figures of the head.
        better: whether the fine-tuned network was selected.
        required: the confidence with which it had to be better.
    """
    by_folds = "tuned_folds_loss" in report
    epoch = report["last_epoch"]
    if not report["finished"]:
        stopped = f"training stopped after epoch {epoch}, since its loss was NaN"
        if by_folds or not epoch:
            return stopped
    kind = "folds" if by_folds else "val"
    tuned, head = (
        [f"{report[name]:.4f}" for name in (f"{who}_{kind}_loss", f"{who}_{kind}_accuracy", f"{who}_brier_score")]
        for who in ("tuned", "head")
    )
    sentences = [
        f"{'in cross-validation' if by_folds else 'on val'} the fine-tuned network has log loss {tuned[0]}, accuracy "
        f"{tuned[1]} and Brier score {tuned[2]}, the head {head[0]}, {head[1]} and {head[2]}; confidence "
        f"{report['tuned_confidence']:.3f}, required {required}"
    ]
    if not better and report["tuned_confidence"] and report["tuned_confidence"] >= required:
        sentences.append("but it classifies fewer examples correctly")
    if not report["finished"]:
        sentences.append(stopped)
    if report["refitted"]:
        sentences.append("refitted on train + val")
    return "; ".join(sentences)
