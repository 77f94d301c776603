"""Fine-tune and select: the fine-tuned network if it is better, else the head on the frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from headstart.training import calibration
from headstart.training.fine_tuning import OnEpochEnd, TrainResult
from headstart.training.folds import Comparison
from headstart.training.plan import Plan


@dataclass(frozen=True)
class FineTuneResult:
    """The result of fine-tuning.

    Attributes:
        trained: the training on train.
        compared: it and the head, on held-out examples.
        better: whether the fine-tuned network is better than the head, and is selected.
        confidence: that it is better, in [0, 1].
        val_logits: (N, n_classes) calibrated logits of val, by the network that has not seen it.
        refitted: whether it was trained on train and val.
    """

    plan: Plan
    trained: TrainResult
    compared: Comparison
    better: bool
    confidence: float
    val_logits: np.ndarray
    refitted: bool

    @property
    def temperature(self) -> float:
        """Temperature of the logits of the network."""
        return self.compared.temperature

    def curves(self) -> pd.DataFrame:
        """Return a row per epoch of the training on train."""
        return self.trained.history.curves()

    def report(self) -> dict[str, Any]:
        """Return the figures of reports/fine_tune.json that describe it."""
        compared, trained = self.compared, self.trained
        metrics = calibration.val_metrics(self.val_logits, self.plan.targets[self.plan.n_train :])
        return {
            **compared.metrics(),
            **{f"tuned_{name}": value for name, value in metrics.items()},
            "head_brier_score": float(compared.scores.brier_scores[0].mean()),
            "tuned_brier_score": float(compared.scores.brier_scores[-1].mean()),
            "tuned_confidence": self.confidence,
            "folds_trained": compared.folds,
            "last_epoch": trained.last_epoch,
            "finished": trained.last_epoch == self.plan.epochs,
            "gave_up": trained.gave_up,
            "refitted": self.refitted,
            "temperature": self.temperature,
        }


def fine_tune(plan: Plan, on_epoch_end: OnEpochEnd) -> FineTuneResult:
    """Train on train, compare with the head on held-out examples, and go on with train and val if that is better.

    Args:
        on_epoch_end: called after each epoch of the training on train.
    """
    trained = plan.train(on_epoch_end)
    compared = plan.compare(trained)
    better, found = compared.scores.verdict(plan.settings.confidence)
    better = better and not trained.gave_up
    finished = trained.last_epoch == plan.epochs
    refitted = better and finished and plan.refits and plan.refit(trained)
    return FineTuneResult(plan, trained, compared, better, found, trained.logits / compared.temperature, refitted)


def explain(report: dict[str, Any], better: bool, required: float) -> str:
    """Return a sentence that says why the head or the fine-tuned network was selected.

    Args:
        report: of FineTuneResult, with the figures of the head.
        better: whether the fine-tuned network was selected.
        required: the confidence with which it had to be better.
    """
    epoch, folds = report["last_epoch"], report["folds_trained"]
    if report["gave_up"]:
        return f"training ended after epoch {epoch}, far behind the head"
    stopped = f"training stopped after epoch {epoch}, since its loss was NaN"
    if not report["finished"] and not epoch:
        return stopped
    kind = "held_out" if folds else "val"
    tuned, head = (
        [f"{report[name]:.4f}" for name in (f"{who}_{kind}_loss", f"{who}_{kind}_accuracy", f"{who}_brier_score")]
        for who in ("tuned", "head")
    )
    where = f"on val and {folds} fold{'' if folds == 1 else 's'} of train" if folds else "on val"
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
        sentences.append("refitted on train + val")
    return "; ".join(sentences)
