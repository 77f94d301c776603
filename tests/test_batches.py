"""Batches for fine-tuning: their order, views, class weights and mixup."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.training.batches import Batches

CLASSES, COUNT = 3, 48
TARGETS = np.arange(COUNT) % CLASSES
ONES = np.ones(CLASSES, np.float32)


class OneHot:
    """Example n is 1 at place n, plus ten for each view: what is mixed can be read off."""

    workers, mixes, lengths = 1, True, None

    def read(self, rows: np.ndarray, view: int) -> dict[str, np.ndarray]:
        return {"x": np.eye(COUNT, dtype=np.float32)[rows] + 10 * view}


def make_batches(weights=ONES, views: int = 0, seed: int | None = 3, mixup: float = 0.0) -> Batches:
    return Batches(OneHot(), TARGETS, np.arange(COUNT), weights, 16, views, seed, mixup)


def test_an_epoch_is_the_same_whatever_came_before_it():
    straight, jumped = make_batches(views=2), make_batches(views=2)
    views, orders = [], []
    for epoch in range(4):
        straight.set_epoch(epoch)
        if epoch == 3:
            jumped.set_epoch(3)
            for index in range(len(straight)):
                assert (straight[index][0]["x"] == jumped[index][0]["x"]).all()
                assert all(
                    (one == other).all() for one, other in zip(straight[index][1:], jumped[index][1:], strict=True)
                )
        rows = [(batch[0]["x"] % 10).argmax(axis=1) for batch in straight]
        assert sorted(np.concatenate(rows)) == list(range(COUNT))
        orders.append(np.concatenate(rows).tolist())
        views.append(straight[0][0]["x"].min() / 10)
    assert views == [0, 1, 2, 0]  # plain, view 1, view 2, and again
    assert len({tuple(order) for order in orders}) == 4


def test_mixup_mixes_examples_and_their_targets_by_the_same_share():
    weights = np.float32([1, 2, 4])
    mixed = make_batches(weights, mixup=0.7)
    contribution = np.diag(weights)[TARGETS] / 16  # of each example to the loss, by class
    shares = set()
    for inputs, targets, weight in mixed:
        x = inputs["x"]
        assert x.sum(axis=1) == pytest.approx(1)
        assert (np.count_nonzero(x, axis=1) <= 2).all()
        assert targets.sum(axis=1) == pytest.approx(1)
        assert targets * weight[:, None] == pytest.approx(x @ contribution)
        found = {round(float(max(row)), 5) for row in x} - {1.0}  # an example may be mixed with itself
        assert len(found) == 1
        shares |= found
    assert len(shares) == 3
    assert (mixed[1][0]["x"] == mixed[1][0]["x"]).all()
    assert (make_batches(weights, seed=None, mixup=0.7)[1][0]["x"] == np.eye(COUNT)[16:32]).all()


def test_examples_that_cannot_be_averaged_are_not_mixed():
    class Words(OneHot):
        mixes = False

    batches = Batches(Words(), TARGETS, np.arange(COUNT), ONES, 16, 0, 3, mixup=0.7)
    assert set(np.unique(batches[0][0]["x"])) == {0, 1}


def test_twenty_thousand_classes_take_no_more_memory_than_their_batch():
    """A matrix over pairs of classes would take 1.6 GB."""
    import tracemalloc

    n_classes = 20_000
    targets, weights = np.arange(COUNT) * 400, np.linspace(1, 2, n_classes, dtype=np.float32)
    tracemalloc.start()
    batches = Batches(OneHot(), targets, np.arange(COUNT), weights, 16, 0, 3, mixup=0.7)
    found = [batches[index] for index in range(len(batches))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 16 * n_classes * 4
    assert sum(weight.sum() for _, _, weight in found) == pytest.approx(weights[targets].sum() / 16, rel=1e-5)
