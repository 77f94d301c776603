"""Batches for fine-tuning, of examples or of cached activations: shuffled, augmented, mixed."""

from __future__ import annotations

import numpy as np

from headstart.features.activations import Inputs
from headstart.framework import keras
from headstart.modalities.base import Batch


class Batches(keras.utils.PyDataset):
    """Batches of an epoch: inputs (b, ...), shares of classes (b, n_classes) and weights (b,), whose mean is 1 / b.

    Epoch n is the same whatever came before it.

    Args:
        inputs: gives the images of rows.
        targets: (n,) int32, of all of its rows.
        rows: (N,), those that are used.
        weights: (n_classes,) float32, of the classes.
        views: how many augmented views there are: epochs take the images as they are, then view after view, and again.
        seed: shuffles every epoch anew; None keeps the order, and mixes nothing.
        mixup: alpha of the Beta distribution of the share by which a batch is mixed, inputs and targets, with itself in
            another order (https://arxiv.org/abs/1710.09412); 0: nothing is mixed. Where training starts at activations,
            those are mixed (https://arxiv.org/abs/1806.05236).
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
        self._inputs, self._rows, self._weights, self._batch_size = inputs, rows, weights, batch_size
        self._views, self._seed, self._mixup = views, seed, mixup if inputs.mixes else 0.0
        self._whole = batch_size
        self.begin(0)

    def split(self, parts: int) -> None:
        """Come in batches of a `parts`-th of the size, from here on."""
        self._batch_size = -(-self._whole // parts)

    def begin(self, epoch: int) -> None:
        """Turn to an epoch, counted from 0."""
        self._epoch = epoch
        count = len(self._rows)
        in_order, seed = np.arange(count), self._seed
        self._order = in_order if seed is None else np.random.default_rng([seed, epoch]).permutation(count)

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
