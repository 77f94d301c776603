"""The optimizers of heads and of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.framework import keras, tf


class FusedAdam(keras.optimizers.Adam):
    """Adam whose step is one kernel for each variable, not a dozen: TensorFlow's own, with the same numbers."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, variable.dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, variable.dtype), step),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class LayerwiseAdamW(FusedAdam):
    """AdamW with a rate of its own for each variable: the common one times `scales`, in the order of the variables.

    What is no matrix, biases above all, does not decay.
    """

    scales: Sequence[float] = ()
    decay = 0.0

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        rate = learning_rate * self.scales[self._get_variable_index(variable)]
        if self.decay and len(variable.shape) > 1:
            self.assign_sub(variable, self.decay * tf.cast(rate, variable.dtype) * variable)
        super().update_step(gradient, variable, rate)
