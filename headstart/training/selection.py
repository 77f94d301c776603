"""Fine-tune and select: the fine-tuned network if it is better, else the head on the frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from headstart.training import calibration
from headstart.training.fine_tuning import OnEpochEnd, TrainResult
from headstart.training.folds import CrossValResult
from headstart.training.history import COLUMNS
from headstart.training.plan import Plan
from headstart.training.verdict import PairedScores


@dataclass(frozen=True)
class FineTuneResult:
    """The result of fine-tuning.

    Attributes:
        trained: the training on train, or after folds that on train and val; None if the folds showed no gain.
        cross_val: None if val was used instead.
        better: whether the fine-tuned network is better than the head, and is selected.
        confidence: that it is better, in [0, 1].
        temperature: of its logits.
        val_logits: (N, n_classes) calibrated logits of val, by a network that has not seen it.
        refitted: whether it was trained on train and val.
    """

    plan: Plan
    trained: TrainResult | None
    cross_val: CrossValResult | None
    better: bool
    confidence: float
    temperature: float
    val_logits: np.ndarray
    refitted: bool

    @property
    def scores(self) -> PairedScores:
        """Of the head and of the fine-tuned network."""
        scored = self.cross_val or self.trained
        assert scored
        return scored.scores

    def curves(self) -> pd.DataFrame:
        """Return a row per epoch of the training on train, or on train and val after folds; empty without one."""
        return self.trained.history.curves() if self.trained else pd.DataFrame(columns=COLUMNS)

    def report(self) -> dict[str, Any]:
        """Return the figures of reports/fine_tune.json that describe it."""
        by_folds, trained = self.cross_val, self.trained
        tuned = {}
        if not by_folds or by_folds.trained == len(self.plan.folds):
            targets = self.plan.targets[self.plan.n_train :]
            metrics = calibration.val_metrics(self.val_logits, targets)
            tuned = {f"tuned_{name}": value for name, value in metrics.items()}
        return {
            **(by_folds.metrics() if by_folds else {}),
            **tuned,
            "head_brier_score": float(self.scores.brier_scores[0].mean()),
            "tuned_brier_score": float(self.scores.brier_scores[-1].mean()),
            "tuned_confidence": self.confidence,
            "folds_trained": by_folds.trained if by_folds else 0,
            "last_epoch": trained.last_epoch if trained else 0,
            "finished": trained is None or trained.last_epoch == self.plan.epochs,
            "gave_up": trained is not None and trained.gave_up,
            "refitted": self.refitted,
            "temperature": self.temperature,
        }


def fine_tune(plan: Plan, on_epoch_end: OnEpochEnd) -> FineTuneResult:
    """Compare fine-tuning with the head by cross-validation or on val, and train on train and val if it is better.

    Args:
        on_epoch_end: called after each epoch of the training on train, or after folds of that on train and val.
    """
    return _by_folds(plan, on_epoch_end) if plan.folds else _by_val(plan, on_epoch_end)


def _by_folds(plan: Plan, on_epoch_end: OnEpochEnd) -> FineTuneResult:
    """Train in folds, and only if they show a gain a network to ship."""
    cross_val = plan.cross_validate()
    better, found = cross_val.scores.verdict(plan.settings.confidence)
    better = better and cross_val.trained == len(plan.folds)
    trained, logits = None, cross_val.logits[plan.n_train :] / cross_val.temperature
    if better:
        trained = plan.train_on_both(on_epoch_end) if plan.refits else plan.train(on_epoch_end)
        better = trained.last_epoch == plan.epochs  # folds show nothing about a training that stopped
    refitted = better and plan.refits
    return FineTuneResult(plan, trained, cross_val, better, found, cross_val.temperature, logits, refitted)


def _by_val(plan: Plan, on_epoch_end: OnEpochEnd) -> FineTuneResult:
    trained = plan.train(on_epoch_end)
    better, found = trained.scores.verdict(plan.settings.confidence)
    better = better and not trained.gave_up
    temperature = calibration.fit_temperature(trained.logits, trained.scores.targets)
    finished = trained.last_epoch == plan.epochs
    refitted = better and finished and plan.refits and plan.refit(trained)
    logits = trained.logits / temperature
    return FineTuneResult(plan, trained, None, better, found, temperature, logits, refitted)


def explain(report: dict[str, Any], better: bool, required: float) -> str:
    """Return a sentence that says why the head or the fine-tuned network was selected.

    Args:
        report: of FineTuneResult, with the figures of the head.
        better: whether the fine-tuned network was selected.
        required: the confidence with which it had to be better.
    """
    by_folds = "tuned_folds_loss" in report
    epoch = report["last_epoch"]
    if report["gave_up"]:
        return f"training ended after epoch {epoch}, far behind the head"
    if not report["finished"]:
        stopped = f"training stopped after epoch {epoch}, since its loss was NaN"
        if by_folds or not epoch:
            return stopped
    kind = "folds" if by_folds else "val"
    tuned, head = (
        [f"{report[name]:.4f}" for name in (f"{who}_{kind}_loss", f"{who}_{kind}_accuracy", f"{who}_brier_score")]
        for who in ("tuned", "head")
    )
    trained = report["folds_trained"] if by_folds else 0
    where = f"in {trained} fold{'' if trained == 1 else 's'}" if by_folds else "on val"
    sentences = [
        f"{where} the fine-tuned network has log loss {tuned[0]}, accuracy "
        f"{tuned[1]} and Brier score {tuned[2]}, the head {head[0]}, {head[1]} and {head[2]}; confidence "
        f"{report['tuned_confidence']:.3f}, required {required}"
    ]
    if not better and report["tuned_confidence"] and report["tuned_confidence"] >= required:
        sentences.append("but it classifies fewer examples correctly")
    if not report["finished"]:
        sentences.append(stopped)
    if report["refitted"]:
        sentences.append("trained on train + val" if by_folds else "refitted on train + val")
    return "; ".join(sentences)
