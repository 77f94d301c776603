"""When fine-tuning counts as better than the head, by paired scores of held-out examples."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.training.verdict import PairedScores


def paired_scores(targets: np.ndarray, *logits: np.ndarray) -> PairedScores:
    scores = PairedScores.empty(targets)
    for each in logits:
        scores.add(each)
    return scores


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray]:
    """Targets of 200 examples, and logits of a head that is correct more often than not."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 200).astype(np.int32)
    return targets, random.normal(0, 1, (200, 3)) + 2 * np.eye(3)[targets]


def test_better_is_decided_by_a_paired_test(noisy):
    targets, head = noisy
    better = head + 0.7 * np.eye(3)[targets]
    assert paired_scores(targets, head, better).verdict(0.99) == (True, pytest.approx(1, abs=0.01))
    assert paired_scores(targets, better, head).verdict(0.5)[0] is False
    # Confidence alone makes no difference, nor does the same network.
    assert paired_scores(targets, head, 5 * head).verdict(0.99)[0] is False
    assert paired_scores(targets, head, head).verdict(0.0) == (False, 0.0)


def test_a_lower_score_with_fewer_correct_examples_is_not_better():
    """A head that is always correct but often unsure, against one that is sure and sometimes wrong."""
    targets = (np.arange(300) % 3).astype(np.int32)
    sound = np.eye(3)[targets] * np.where(np.arange(300) % 2, 5, 0.05)[:, None]
    wrong = np.where((np.arange(300) % 10 == 0)[:, None], 1.2 * np.eye(3)[(targets + 1) % 3], 4 * np.eye(3)[targets])
    scores = paired_scores(targets, sound, wrong)
    assert scores.brier_scores[1].mean() < scores.brier_scores[0].mean()
    assert scores.verdict(0.5)[0] is False
    assert scores.verdict(0.5)[1] > 0.9


def test_folds_end_early_where_the_network_is_clearly_worse(noisy):
    targets, head = noisy
    assert paired_scores(targets, head, head - np.eye(3)[targets]).hopeless()
    assert not paired_scores(targets, head, head + np.eye(3)[targets]).hopeless()
    one = np.zeros(1, np.int32)
    assert not paired_scores(one, np.array([[3.0, 0, 0]]), np.array([[0, 3.0, 0]])).hopeless()  # it may be chance


def test_a_verdict_is_settled_by_a_standard_error_either_way_or_by_what_is_asked_for(noisy):
    targets, head = noisy
    random = np.random.default_rng(2)
    better, similar = head + 0.3 * np.eye(3)[targets], head + random.normal(0, 0.05, head.shape)
    assert paired_scores(targets, head, better).settled(0.5)
    assert paired_scores(targets, better, head).settled(0.5)
    assert not paired_scores(targets, head, head).settled(0.5)
    scores = paired_scores(targets, head, similar)
    assert not scores.settled(0.5)
    assert abs(scores.verdict(0.5)[1] - 0.5) < 0.34
    few = paired_scores(targets[:30], head[:30], better[:30])
    assert few.settled(0.5)
    assert not few.settled(few.verdict(0.5)[1] + 1e-12)  # nor clearly worse


def test_the_last_state_counts_not_the_best_one(noisy):
    targets, head = noisy
    better, worse = head + np.eye(3)[targets], head - np.eye(3)[targets]
    assert paired_scores(targets, head, better, worse).verdict(0.5) == (False, 0.0)
    assert paired_scores(targets, head, worse, better).verdict(0.5)[0] is True


def test_a_few_confident_mistakes_do_not_outweigh_the_others():
    """Of 120 examples ten more are correct, and the wrong ones are wrong with more confidence."""
    order, targets = np.random.default_rng(0).permutation(120), (np.arange(120) % 3).astype(np.int32)

    def logits(n_wrong: int, confidence: float) -> np.ndarray:
        wrong = confidence * np.eye(3)[(targets + 1) % 3]
        return np.where((order < n_wrong)[:, None], wrong, 3 * np.eye(3)[targets])

    scores = paired_scores(targets, logits(20, 0.9), logits(10, 2.7))
    assert scores.losses[1].mean() > scores.losses[0].mean()
    assert scores.verdict(0.75)[0] is True


def test_hopeless_is_worse_by_more_than_a_standard_error(noisy):
    targets, head = noisy
    random = np.random.default_rng(1)
    similar, worse = head + random.normal(0, 0.3, head.shape), head - 0.5 * np.eye(3)[targets]
    assert paired_scores(targets, head, worse).hopeless()
    assert not paired_scores(targets, worse, head).hopeless()
    assert not paired_scores(targets, head, head).hopeless()
    for one, other in ((head, similar), (similar, head)):
        scores = paired_scores(targets, one, other)
        loss = scores.brier_scores[1] - scores.brier_scores[0]
        assert scores.hopeless() == (loss.mean() > loss.std() / np.sqrt(200))


def test_a_network_that_is_no_better_is_seldom_selected():
    random, selected = np.random.default_rng(0), 0
    for _ in range(100):
        targets = random.integers(0, 3, 60).astype(np.int32)
        signal = 1.5 * np.eye(3)[targets]
        head, other = (random.normal(0, 1, (60, 3)) + signal for _ in range(2))
        selected += paired_scores(targets, head, other).verdict(0.9)[0]
    assert selected <= 15
