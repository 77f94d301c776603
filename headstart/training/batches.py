"""Batches for fine-tuning, of examples or of cached activations: shuffled, augmented, mixed."""

from __future__ import annotations

import numpy as np

from headstart.features.activations import Inputs
from headstart.framework import keras, tf
from headstart.modalities.batch import Batch

# The examples of so many batches are sorted by length, if short ones are padded to the longest of a batch: the order
# of an epoch stays random enough, and there is little padding.
GROUPED = 16


class Batches(keras.utils.PyDataset):
    """The batches of an epoch: inputs (b, ...) by name, targets (b, n_classes) and weights (b,).

    Targets are shares of the classes, each row summing to 1. The weights of examples add up to 1 over a batch if those
    of the classes are 1, so that a sum of weighted losses is their mean. Epoch n is the same whatever came before it.
    Examples of about the same length are in a batch, if their lengths differ.

    Args:
        inputs, targets: of n examples; targets are (n,) int32.
        rows: (N,), those that are used.
        weights: (n_classes,) float32, of the classes.
        views: how many augmented views there are; epochs take the plain examples, then view after view, and again.
        seed: of the order, which is another in each epoch; None: examples come in order, or the longest first, and are
            not mixed.
        mixup: alpha of the Beta distribution from which a batch's mixing share is drawn; a batch, inputs and targets,
            is mixed with itself in another order (https://arxiv.org/abs/1710.09412). 0: no mixup. If training starts
            from activations, those are mixed (https://arxiv.org/abs/1806.05236).
    """

    def __init__(
        self,
        inputs: Inputs,
        targets: np.ndarray,
        rows: np.ndarray,
        weights: np.ndarray,
        batch_size: int,
        views: int,
        seed: int | None,
        mixup: float = 0.0,
    ) -> None:
        super().__init__(workers=inputs.workers, max_queue_size=8)
        self.targets = targets[rows]
        self._inputs, self._rows, self._weights, self._views, self._seed = inputs, rows, weights, views, seed
        self._mixup = mixup if inputs.mixes else 0.0
        self._lengths = None if inputs.lengths is None else inputs.lengths[rows]
        self._batch_size = self._full_batch_size = batch_size
        self.set_epoch(0)

    def set_parts(self, parts: int) -> None:
        """Divide the batch size by `parts` from here on."""
        self._batch_size = -(-self._full_batch_size // parts)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 0."""
        self._epoch = epoch
        in_order, seed, lengths = np.arange(len(self._rows)), self._seed, self._lengths
        if seed is not None:
            random = np.random.default_rng([seed, epoch])
            shuffled = random.permutation(in_order)
            self._order = shuffled if lengths is None else _group(shuffled, lengths, self._batch_size, random)
        else:
            self._order = in_order if lengths is None else np.argsort(-lengths, kind="stable")

    def source(self) -> keras.utils.PyDataset | tf.data.Dataset:
        """Return what Keras reads these batches from.

        Keras takes the shapes of the first two batches for those of all, so that it has to be told where they differ.
        """
        if self._lengths is None:
            return self
        inputs, *others = self[0]
        signature = (
            {name: tf.TensorSpec([None, None, *array.shape[2:]], array.dtype) for name, array in inputs.items()},
            *(tf.TensorSpec([None, *array.shape[1:]], array.dtype) for array in others),
        )
        batches = tf.data.Dataset.from_generator(lambda: iter(self), output_signature=signature)
        return batches.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(tf.data.AUTOTUNE)

    def sort_back(self, outputs: np.ndarray) -> np.ndarray:
        """Return outputs (N, ...) for all batches in the order of the examples."""
        return outputs[np.argsort(self._order)]

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Batch, np.ndarray, np.ndarray]:
        places = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        inputs = self._inputs.read(self._rows[places], self._epoch % (1 + self._views))
        targets = self.targets[places]
        weighted = np.zeros((len(places), len(self._weights)), np.float32)
        weighted[np.arange(len(places)), targets] = self._weights[targets]
        if self._mixup and self._seed is not None:
            random = np.random.default_rng([self._seed, self._epoch, index])
            share, other = np.float32(random.beta(self._mixup, self._mixup)), random.permutation(len(places))
            inputs = {name: share * array + (1 - share) * array[other] for name, array in inputs.items()}
            weighted = share * weighted + (1 - share) * weighted[other]
        weights = weighted.sum(axis=1)
        return inputs, weighted / weights[:, None], weights / np.float32(len(places))


def _group(order: np.ndarray, lengths: np.ndarray, batch_size: int, random: np.random.Generator) -> np.ndarray:
    """Return another order in which each full batch, taken from GROUPED of them, has texts of about the same length."""
    full = order[: len(order) // batch_size * batch_size]  # the last batch may be smaller: any lengths are in it
    parts = np.split(full, range(GROUPED * batch_size, len(full), GROUPED * batch_size))
    grouped = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    return np.concatenate([random.permutation(grouped.reshape(-1, batch_size)).ravel(), order[len(full) :]])
