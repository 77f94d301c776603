"""Train the head of train_head: one that cross-validation chooses, or the one that params.yaml asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from headstart.head_config import ResolvedHead, TrainHead
from headstart.training import calibration, head_choice, linear
from headstart.training.examples import FeatureSet, class_weights, concat, possible_folds, split_folds
from headstart.training.head_choice import Selection
from headstart.training.head_settings import resolve_head
from headstart.training.history import COLUMNS
from headstart.training.linear import Linear
from headstart.training.linear_file import write_linear
from headstart.training.roots import root

if TYPE_CHECKING:
    import keras

MAX_SAMPLE = 5000  # examples that take part in cross-validation; of more, a sample of train does


@dataclass(frozen=True)
class TrainedHead:
    """A head, and what shows how good it is.

    Attributes:
        head: its dense layers, for roots of features, or the network of one that params.yaml asks for; a temperature is
            in its weights.
        settings: with which heads like it are trained on the last layer's features: fine-tuning starts from those.
        curves: a row per epoch or iteration of a training on train, scored on val.
        best_epoch: the epoch of these whose weights are kept.
        held_out: (N, n_classes) float32 logits of train, then val, each by a head that has not seen it; NaN where there
            is none.
        temperature: by which logits were divided.
        choice: what cross-validation found; empty if the head was asked for.
        refitted: whether it was trained on train and val.
    """

    head: list[Linear] | keras.Model
    settings: ResolvedHead
    curves: pd.DataFrame
    best_epoch: int
    held_out: np.ndarray
    temperature: float
    choice: dict[str, Any]
    refitted: bool = False

    @property
    def dim(self) -> int:
        """How many features it takes."""
        return len(self.head[0].kernel) if isinstance(self.head, list) else int(self.head.input_shape[1])

    def save(self, file: Path, classes: Sequence[str]) -> None:
        """Write it as .keras: (N, dim) float32 features -> (N, n_classes) probabilities."""
        head = self.head
        if isinstance(head, list):
            if len(head) == 1 and write_linear(head[0], file, classes):
                return
            _prepare_keras(0)
        from headstart.training import networks

        networks.save(networks.from_layers(head) if isinstance(head, list) else head, file, classes)


def train_as_asked(
    train_set: FeatureSet, val_set: FeatureSet, n_classes: int, settings: ResolvedHead, seed: int
) -> TrainedHead:
    """Train the head that params.yaml asks for on train; val chooses the epoch and the temperature."""
    from headstart.training import heads, networks  # most heads need no TensorFlow, which takes seconds to load

    _prepare_keras(seed)
    network, history = heads.train(train_set, val_set, n_classes, settings, seed)
    logits = heads.logits(network, val_set)
    temperature = calibration.fit_temperature(logits, val_set.targets)
    networks.divide_logits(network, temperature)
    held_out = _held_out(len(train_set), logits / np.float32(temperature))
    return TrainedHead(network, settings, history.curves(), history.kept["epoch"], held_out, temperature, {})


def train_chosen(
    train_set: FeatureSet,
    val_set: FeatureSet,
    groups: np.ndarray,
    n_classes: int,
    widths: dict[str, list[int]],
    params: TrainHead,
    refit: bool,
    seed: int,
) -> TrainedHead:
    """Choose a head by cross-validation and train it.

    Args:
        groups: (N,) of train, then val; examples of a group are in one fold.
        widths: by depth, see `backbones.depths.widths`.
        refit: whether the head is chosen and trained on train and val; else val is kept apart.
    """
    pool = concat(train_set, val_set) if refit else train_set
    sample, groups = _sample(pool, groups[: len(pool)], seed)
    n_folds = possible_folds(sample.targets, groups)
    if n_folds < 2:
        print(
            "train_head: a linear head on the last layer's features; to choose one by cross-validation takes two "
            "examples of a class that are neither copies nor of one group"
        )
        dim = sum(widths["last"])
        settings = resolve_head(params.choice(hidden=[]), n_classes)
        return train_as_asked(train_set.prefix(dim), val_set.prefix(dim), n_classes, settings, seed)
    smoothing = params.label_smoothing
    folds = split_folds(sample.targets, groups, n_folds, seed, "folds of train_head:")
    weights = class_weights(pool.targets, n_classes, params.class_weight)
    small = len(sample) == len(pool)
    selection = head_choice.select(sample, folds, weights, widths, smoothing, seed if small else None)
    choice = {"folds": n_folds, **selection.summary()}
    curves = _curves(selection, train_set if small else sample, val_set, weights, smoothing)
    decay = choice["decays"]["last"] * len(sample) / len(pool)  # it counts against the sum of all losses
    decay = start_decay(train_set.prefix(sum(widths["last"])), decay)
    settings = resolve_head(params.choice(hidden=[], weight_decay=decay), n_classes)
    head: list[Linear] | keras.Model
    if small:
        head = head_choice.train_selected(selection, weights, smoothing, seed)
        temperature = head_choice.shrink(calibration.fit_temperature(selection.best.logits, pool.targets), len(pool))
        head[-1] = Linear(head[-1].kernel / temperature, head[-1].bias / temperature)
        held_out = np.float32(selection.best.logits / temperature)
        if not refit:
            unseen = val_set.prefix(selection.depth.dim)
            parts = [linear.forward(head, root(unseen.rows(rows))) for rows in unseen.blocks(n_classes)]
            held_out = np.concatenate([held_out, *parts])
    else:
        head, choice["head"], temperature, val_logits = _train_large(
            selection, train_set, val_set, weights, params, seed
        )
        held_out = _held_out(len(train_set), val_logits)
    return TrainedHead(head, settings, curves, len(curves), held_out, temperature, choice, refit)


def start_decay(last: FeatureSet, decay: float) -> float:
    """Return the weight decay of a head on features as they are that means the same as `decay` on scaled ones."""
    total, squares = np.zeros(last.dim), 0.0
    for rows in last.blocks(0):
        features = last.rows(rows).astype(np.float64)
        total, squares = total + features.sum(axis=0), squares + (features**2).sum()
    variance = squares / len(last) - ((total / len(last)) ** 2).sum()
    return float(np.clip(decay * variance / head_choice.LENGTH**2, 0, 1))


def _sample(pool: FeatureSet, groups: np.ndarray, seed: int) -> tuple[FeatureSet, np.ndarray]:
    """Return at most MAX_SAMPLE examples, each class by its share, and their groups."""
    if len(pool) <= MAX_SAMPLE:
        return pool, groups
    counts = np.bincount(pool.targets)
    fits = counts[counts > 0].min() > 1 and (counts > 0).sum() <= min(MAX_SAMPLE, len(pool) - MAX_SAMPLE)
    stratify = pool.targets if fits else None
    rows, _ = train_test_split(np.arange(len(pool)), train_size=MAX_SAMPLE, random_state=seed, stratify=stratify)
    return pool.subset(np.sort(rows)), groups[np.sort(rows)]


def _train_large(
    selection: Selection,
    train_set: FeatureSet,
    val_set: FeatureSet,
    weights: np.ndarray,
    params: TrainHead,
    seed: int,
) -> tuple[list[Linear] | keras.Model, str, float, np.ndarray]:
    """Train the linear head and a hidden one on all of train; return the one that val shows to be better.

    The linear one is kept unless the other has a lower log loss on val by more than a standard error.

    Returns:
        The head, its name, its temperature, and its logits of val, calibrated.
    """
    from headstart.training import heads, networks

    _prepare_keras(seed)
    part = val_set.prefix(selection.depth.dim)
    layers = head_choice.train_on_all(selection, train_set, weights, params.label_smoothing)
    settings = resolve_head(params.choice(), len(weights))
    hidden, _ = heads.train(train_set.prefix(selection.depth.dim), part, len(weights), settings, seed)
    found: list[tuple[head_choice.Candidate, keras.Model, float]] = []
    for network in (networks.from_layers(layers), hidden):
        logits = heads.logits(network, part)
        temperature = calibration.fit_temperature(logits, val_set.targets)
        networks.divide_logits(network, temperature)
        logits /= np.float32(temperature)
        found.append((head_choice.Candidate.scored("", "", logits, val_set.targets), network, temperature))
    is_hidden = found[1][0].beats(found[0][0])
    candidate, network, temperature = found[is_hidden]
    return network, head_choice.HIDDEN if is_hidden else selection.best.name, temperature, candidate.logits


def _prepare_keras(seed: int) -> None:
    from headstart.framework import make_repeatable, take_gpus

    take_gpus("train_head")
    make_repeatable(seed)


def _held_out(n_train: int, val_logits: np.ndarray) -> np.ndarray:
    unknown = np.full((n_train, val_logits.shape[1]), np.nan, np.float32)
    return np.concatenate([unknown, val_logits.astype(np.float32)])


def _curves(
    selection: Selection, train_set: FeatureSet, val_set: FeatureSet, weights: np.ndarray, smoothing: float
) -> pd.DataFrame:
    """Return the curves of the linear head of the selected depth: trained on train, scored on val."""
    depth = selection.depth
    part, val = (depth.project(examples, head_choice.MAX_AXES) for examples in (train_set, val_set))
    rows: list[tuple[float, ...]] = []

    def record(kernel: np.ndarray, bias: np.ndarray, loss: float, accuracy: float) -> None:
        logits = Linear(kernel, bias).logits(val.features)
        val_loss = calibration.log_loss(logits, val_set.targets).mean()
        val_accuracy = (logits.argmax(axis=1) == val_set.targets).mean()
        rows.append((len(rows) + 1, loss, accuracy, val_loss, val_accuracy))

    linear.fit(part, weights, selection.found[depth.name].decay, smoothing, rough=True, on_iteration=record)
    return pd.DataFrame(rows, columns=COLUMNS[:5]).reindex(columns=COLUMNS)
