"""Choose a head by cross-validation: from which depths it takes features, how much it decays, linear or hidden.

Every candidate is a logistic regression on the square roots of features, each tensor scaled to the same variance
(power normalization, Perronnin et al., Improving the Fisher kernel, 2010). The last layer alone is kept unless another
candidate has a lower log loss by more than a standard error: the lowest of several is often so by chance.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from headstart.training import calibration, linear
from headstart.training.examples import FeatureSet
from headstart.training.linear import Linear, Rotation
from headstart.training.scaling import Scaling

LENGTH = 10.0  # of scaled features, the root of their mean sum of squares
# Decays, of which that of lowest loss is looked for among the neighbours of the best one, beginning at START.
DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001)
START = DECAYS.index(0.01)
MAX_AXES = 1024  # of the largest variance, which are used in cross-validation
MEMORY = 2**31  # bytes for coordinates of a large training set
AVERAGE, HIDDEN = "average", "hidden"  # the former of the linear heads of all depths, which is a linear head, too
# Of the hidden head. It is trained on fewer axes, and with decay, which stands for dropout.
HIDDEN_UNITS, HIDDEN_AXES, HIDDEN_DECAY, HIDDEN_EPOCHS = 128, 256, 1.0, 20
HALFWAY = 100  # examples for which a temperature is halfway to 1, in logarithms

Folds = Sequence[tuple[np.ndarray, np.ndarray]]  # rows to train on, and held-out rows


@dataclass(frozen=True)
class Candidate:
    """A head in cross-validation.

    Attributes:
        depth: down to which it takes features.
        logits: (N, n_classes) of each example by a head that has not seen it.
        losses: (N,), the log loss of these.
        decay: of a linear head; 0: it is none, or an average.
    """

    name: str
    depth: str
    logits: np.ndarray
    losses: np.ndarray
    decay: float = 0.0

    @classmethod
    def scored(cls, name: str, depth: str, logits: np.ndarray, targets: np.ndarray, decay: float = 0.0) -> Candidate:
        """Return a candidate with the log loss of its logits."""
        return cls(name, depth, logits, calibration.log_loss(logits, targets), decay)

    def beats(self, other: Candidate) -> bool:
        """Whether its mean loss is lower by more than a standard error of the paired difference."""
        gain = other.losses - self.losses
        return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


@dataclass(frozen=True)
class Depth:
    """Features down to a depth: their number, and the examples with them on principal axes."""

    name: str
    dim: int
    scaling: Scaling
    rotation: Rotation
    examples: FeatureSet

    def axes(self, count: int) -> FeatureSet:
        """Return the examples with at most `count` axes, those of the largest variance."""
        return self.examples.prefix(min(count, self.examples.dim))

    def project(self, examples: FeatureSet, count: int) -> FeatureSet:
        """Return other examples, and their views, on the first axes."""
        count, part = min(count, self.examples.dim), examples.prefix(self.dim)
        basis, views = self.rotation.basis(count), part.views.shape[1]
        rotated = np.empty((1 + views, len(part), count), np.float32)
        for rows in part.blocks(0):
            numbers = np.arange(len(part))[rows]
            for view in range(1 + views):
                drawn = np.full(len(numbers), view) if view else None
                rotated[view, rows] = self.scaling.apply(part.rows(numbers, drawn)) @ basis
        return FeatureSet(rotated[0], examples.targets, rotated[1:].transpose(1, 0, 2))

    def unrotated(self, head: Linear) -> Linear:
        """Return the head that gives for roots of features what `head` gives on the first axes."""
        return self.scaling.unscaled(Linear(self.rotation.unrotate(head.kernel), head.bias))


@dataclass(frozen=True)
class Selection:
    """What cross-validation found.

    Attributes:
        best: the candidate that is selected.
        found: all candidates by name, the linear head of each depth first.
        depths: by name, from the last layer downwards.
        epochs: of the hidden head.
    """

    best: Candidate
    found: dict[str, Candidate]
    depths: dict[str, Depth]
    epochs: int = 0

    @property
    def parts(self) -> list[str]:
        """The depths whose linear heads are averaged; one if there is no average."""
        return list(self.depths) if self.best.name == AVERAGE else [self.best.depth]

    @property
    def depth(self) -> Depth:
        """The depth down to which the selected head takes features."""
        return self.depths[self.best.depth]

    def summary(self) -> dict[str, Any]:
        """Return what reports/train_head.json says about the choice."""
        losses = {name: float(candidate.losses.mean()) for name, candidate in self.found.items()}
        decays = {name: self.found[name].decay for name in self.depths}
        return {"head": self.best.name, "depth": self.best.depth, "losses": losses, "decays": decays}


def select(
    examples: FeatureSet,
    folds: Folds,
    weights: np.ndarray,
    widths: dict[str, list[int]],
    smoothing: float,
    seed: int | None,
) -> Selection:
    """Select a head for the examples by cross-validation.

    Args:
        weights: (n_classes,) float32, of the classes.
        widths: by depth, see `backbones.depths.widths`.
        smoothing: of labels.
        seed: of the hidden head, which is tried if examples and classes count the same, and have no views; None: it is
            not tried.
    """
    depths = {depth.name: depth for depth in _rotate(examples, widths)}
    found: dict[str, Candidate] = {}
    start = START
    for name, depth in depths.items():
        found[name] = _cross_validate(depth, folds, weights, smoothing, start)
        start = DECAYS.index(found[name].decay)
    last, *others = found.values()
    if others:
        mean = np.mean([each.logits for each in found.values()], axis=0)
        found[AVERAGE] = Candidate.scored(AVERAGE, others[-1].depth, mean, examples.targets)
    better = [candidate for candidate in found.values() if candidate.beats(last)]
    best, epochs = min([last, *better], key=lambda candidate: candidate.losses.mean()), 0
    depth, alike = depths[best.depth], not smoothing and bool((weights == 1).all())
    if seed is not None and alike and depth.examples.dim and not examples.views.shape[1]:
        hidden, epochs = _cross_validate_hidden(depth, folds, best, seed)
        if hidden:
            found[HIDDEN] = hidden
            best = hidden if hidden.beats(best) else best
    return Selection(best, found, depths, epochs)


def train_selected(selection: Selection, weights: np.ndarray, smoothing: float, seed: int) -> list[Linear]:
    """Train the selected head on all examples of the selection.

    Returns:
        Its dense layers, with ReLU between them, for roots of features.
    """
    if selection.best.name == HIDDEN:
        return _fit_hidden(selection.depth, len(weights), selection.epochs, seed)
    heads = []
    for name in selection.parts:
        depth = selection.depths[name]
        head = linear.fit(depth.examples, weights, selection.found[name].decay, smoothing, rough=True)
        heads.append(depth.unrotated(head))
    return [_mean(heads)]


def train_on_all(selection: Selection, train_set: FeatureSet, weights: np.ndarray, smoothing: float) -> list[Linear]:
    """Train the selected linear head on a training set of which the examples of the selection are a sample.

    Features are those on the axes of the sample, as many as fit into memory.
    """
    heads = []
    for name in selection.parts:
        depth = selection.depths[name]
        count = MEMORY // (4 * len(train_set) * (1 + train_set.views.shape[1]))
        examples = depth.project(train_set, max(1, min(MAX_AXES, count)))
        # The decay counts against the sum of all losses.
        decay = selection.found[name].decay * len(depth.examples) / len(train_set)
        heads.append(depth.unrotated(linear.fit(examples, weights, decay, smoothing, rough=True)))
    return [_mean(heads)]


def shrink(temperature: float, count: int) -> float:
    """Return a temperature nearer to 1, the more so the fewer examples it was fitted on: of few it is mostly noise."""
    return float(temperature ** (count / (count + HALFWAY)))


def _rotate(examples: FeatureSet, widths: dict[str, list[int]]) -> Iterator[Depth]:
    """Yield the depths, on the principal axes of the examples as they are; views are projected onto these."""
    scaling, dim = Scaling.of(examples, widths), 0
    features = scaling.apply(examples.rows(slice(None)))
    for name, added in widths.items():
        dim += sum(added)
        length = LENGTH / max(float(np.sqrt((features[:, :dim] ** 2).sum(axis=1).mean())), 1e-12)
        rotation = linear.rotate(features[:, :dim] * np.float32(length))
        none = np.empty((len(examples), 0, rotation.coordinates.shape[1]), np.float32)
        plain = FeatureSet(rotation.coordinates, examples.targets, none)
        depth = Depth(name, dim, scaling.prefix(dim, length), rotation, plain)
        if examples.views.shape[1]:
            views = depth.project(examples, none.shape[2]).views
            depth = replace(depth, examples=replace(plain, views=views))
        yield depth


def _cross_validate(depth: Depth, folds: Folds, weights: np.ndarray, smoothing: float, start: int) -> Candidate:
    """Return the linear head of a depth with the decay that is best; `start` is the place in DECAYS to begin at."""
    examples = depth.axes(MAX_AXES)
    parts = [(examples.subset(rows), held_out) for rows, held_out in folds]
    heads: list[Linear | None] = [None] * len(parts)

    def score(decay: float) -> Candidate:
        logits = np.zeros((len(examples), len(weights)))
        for number, (part, held_out) in enumerate(parts):
            head = linear.fit(part, weights, decay, smoothing, heads[number], rough=True)
            logits[held_out], heads[number] = head.logits(examples.features[held_out]), head
        return Candidate.scored(depth.name, depth.name, logits, examples.targets, decay)

    best, place = score(DECAYS[start]), start
    for step in (1, -1):  # weaker decays first, which begin with the heads of stronger ones
        while 0 <= place + step < len(DECAYS):
            candidate = score(DECAYS[place + step])
            if candidate.losses.mean() >= best.losses.mean():
                break
            best, place = candidate, place + step
        if place != start:
            break
    return best


def _mean(heads: list[Linear]) -> Linear:
    """Return the average of linear heads, of which each takes the first of the features that the last one takes."""
    kernel = np.zeros_like(heads[-1].kernel)
    for head in heads:
        kernel[: len(head.kernel)] += head.kernel / len(heads)
    return Linear(kernel, np.mean([head.bias for head in heads], axis=0))


# --- the hidden head


def _cross_validate_hidden(depth: Depth, folds: Folds, best: Candidate, seed: int) -> tuple[Candidate | None, int]:
    """Return a hidden head and how many epochs are best for it; None as soon as it is no better than `best`."""
    examples = depth.axes(HIDDEN_AXES)
    features, targets, n_classes = examples.features, examples.targets, best.logits.shape[1]
    logits, seen = np.zeros((HIDDEN_EPOCHS, *best.logits.shape)), np.zeros(len(targets), bool)
    epochs = HIDDEN_EPOCHS
    for rows, held_out in folds:
        with threadpool_limits(1, user_api="blas"):  # for small matrices threads cost more than they bring
            for epoch, network in enumerate(_hidden_epochs(features[rows], targets[rows], n_classes, seed)):
                logits[epoch, held_out] = linear.forward(_layers(network, n_classes), features[held_out])
        seen[held_out] = True
        losses = [calibration.log_loss(epoch[seen], targets[seen]).mean() for epoch in logits]
        epochs = int(np.argmin(losses)) + 1
        if losses[epochs - 1] >= best.losses[seen].mean():
            return None, 0
    return Candidate.scored(HIDDEN, depth.name, logits[epochs - 1], targets), epochs


def _hidden_epochs(features: np.ndarray, targets: np.ndarray, n_classes: int, seed: int) -> Iterator[MLPClassifier]:
    """Train a hidden head; yield it after each of HIDDEN_EPOCHS."""
    network = MLPClassifier((HIDDEN_UNITS,), alpha=HIDDEN_DECAY, batch_size=min(32, len(targets)), random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(HIDDEN_EPOCHS):
            yield network.partial_fit(features, targets, classes=np.arange(n_classes))


def _fit_hidden(depth: Depth, n_classes: int, epochs: int, seed: int) -> list[Linear]:
    """Train the hidden head on all examples, for as many epochs as were best; return its layers."""
    examples = depth.axes(HIDDEN_AXES)
    trained = _hidden_epochs(examples.features, examples.targets, n_classes, seed)
    first, last = _layers(next(itertools.islice(trained, epochs - 1, None)), n_classes)
    return [depth.unrotated(first), last]


def _layers(network: MLPClassifier, n_classes: int) -> list[Linear]:
    """Return the two layers of a hidden head, whose probabilities would be rounded to 0 far from the boundary."""
    first, last = (Linear(*map(np.float64, pair)) for pair in zip(network.coefs_, network.intercepts_, strict=True))
    if n_classes == 2:  # scikit-learn has one logit for two classes
        last = Linear(np.hstack([0 * last.kernel, last.kernel]), np.array([0.0, last.bias.item()]))
    return [first, last]
