"""Which network is shipped: the head on the frozen backbone, or the fine-tuned network if it is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headstart.training import calibration
from headstart.training.fine_tuning import OnEpochEnd, TrainResult
from headstart.training.folds import CrossValResult, Fold
from headstart.training.plan import Plan


@dataclass(frozen=True)
class FineTuneResult:
    """The outcome of fine-tuning.

    Attributes:
        trained: on train.
        cross_val: what folds say; None if val judges.
        better: whether the fine-tuned network is selected.
        confidence: that it is better than the head, in [0, 1].
        temperature: of its logits.
        refitted: whether the network was trained again on train and val.
    """

    plan: Plan
    trained: TrainResult
    cross_val: CrossValResult | None
    better: bool
    confidence: float
    temperature: float
    refitted: bool = False

    @property
    def finished(self) -> bool:
        """Whether training on train reached the last of its epochs."""
        return self.trained.last_epoch == self.plan.epochs

    @property
    def val_logits(self) -> np.ndarray:
        """(N, n_classes) of val, by the network that has not seen it, with the temperature."""
        return self.trained.logits / self.temperature

    def report(self) -> dict[str, Any]:
        """Its figures, by name."""
        scores = (self.cross_val or self.trained).scores.scores
        tuned = calibration.metrics(self.val_logits, self.trained.scores.targets)
        return {
            **(self.cross_val.metrics() if self.cross_val else {}),
            **{f"tuned_{name}": value for name, value in tuned.items()},
            "head_brier_score": float(scores[0].mean()),
            "tuned_brier_score": float(scores[-1].mean()),
            "tuned_confidence": self.confidence,
            "last_epoch": self.trained.last_epoch,
            "finished": self.finished,
            "refitted": self.refitted,
            "temperature": self.temperature,
        }


def fine_tune(plan: Plan, folds: Sequence[Fold], confidence: float, on_epoch_end: OnEpochEnd) -> FineTuneResult:
    """Train on train, judge by val or by folds, and refit on train and val if the network is better.

    Args:
        folds: those that the plan was built with; none if val judges.
        confidence: that is asked for.
        on_epoch_end: is given the row of each epoch of the training on train.
    """
    cross_val = plan.cross_validate(folds) if folds else None
    trained = plan.train(on_epoch_end)
    if cross_val:
        better, found = cross_val.scores.verdict(confidence)
        result = FineTuneResult(plan, trained, cross_val, better, found, cross_val.temperature)
        result = replace(result, better=better and result.finished)  # folds say nothing of a training that broke off
    else:
        better, found = trained.scores.verdict(confidence)
        temperature = calibration.temperature(trained.logits, trained.scores.targets)
        result = FineTuneResult(plan, trained, None, better, found, temperature)
    if result.better and result.finished and plan.refits:
        result = replace(result, refitted=plan.refit(trained))
    return result


def explain(report: dict[str, Any], better: bool, asked: float) -> str:
    """Why the head or the fine-tuned network was selected, in a sentence or two.

    Args:
        report: of FineTuneResult, with the figures of the head.
        better: whether the fine-tuned network was selected.
        asked: the confidence that is asked for.
    """
    by_folds = "tuned_folds_loss" in report
    epoch = report["last_epoch"]
    if not report["finished"]:
        broken = f"training stopped after epoch {epoch}, since its loss was NaN"
        if by_folds or not epoch:
            return broken
    kind = "folds" if by_folds else "val"
    figures = [
        f"log loss {report[f'{name}_{kind}_loss']:.4f} and accuracy {report[f'{name}_{kind}_accuracy']:.4f}"
        for name in ("tuned", "head")
    ]
    where = "cross-validation" if by_folds else "val"
    sentences = [
        f"on {where} it has {figures[0]}, the head {figures[1]}; Brier score {report['tuned_brier_score']:.4f} against "
        f"{report['head_brier_score']:.4f}, confidence {report['tuned_confidence']:.3f} of {asked} asked for"
    ]
    if not better and report["tuned_confidence"] and report["tuned_confidence"] >= asked:
        sentences.append("but it classifies fewer examples correctly")
    if not report["finished"]:
        sentences.append(broken)
    if report["refitted"]:
        sentences.append("refitted on train + val")
    return "; ".join(sentences)
