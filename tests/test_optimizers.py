"""The optimizers: the numbers of Keras' Adam, and a learning rate per variable."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from headstart.training.optimizers import FusedAdam, LayerwiseAdamW


def test_the_fused_step_is_that_of_adam():
    found = []
    for kind in (keras.optimizers.Adam, FusedAdam):
        variable, optimizer, random = keras.Variable(np.ones(4, np.float32)), kind(0.1), np.random.default_rng(0)
        for _ in range(5):
            optimizer.apply([random.normal(size=4).astype(np.float32)], [variable])
        found.append(variable.numpy())
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_each_variable_has_its_own_learning_rate():
    variables = [keras.Variable(np.zeros(3, np.float32)) for _ in range(3)]
    optimizer = LayerwiseAdamW(0.1)
    optimizer.scales = [1.0, 0.5, 0.0]
    optimizer.apply([np.ones(3, np.float32)] * 3, variables)
    assert [float(-variable.numpy()[0]) for variable in variables] == pytest.approx([0.1, 0.05, 0.0], abs=1e-6)


def test_matrices_decay_at_their_own_rate_and_biases_do_not():
    variables = [keras.Variable(np.ones(shape, np.float32)) for shape in ((2, 2), (2, 2), (2,))]
    optimizer = LayerwiseAdamW(0.1)
    optimizer.scales, optimizer.decay = [1.0, 0.5, 1.0], 0.2
    optimizer.apply([np.zeros(variable.shape, np.float32) for variable in variables], variables)
    assert [float(variable.numpy().ravel()[0]) for variable in variables] == pytest.approx([0.98, 0.99, 1.0])
