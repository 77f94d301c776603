"""The optimizers of heads and of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.framework import keras, tf


class FusedAdam(keras.optimizers.Adam):
    """Adam with a fused step: TensorFlow's one kernel per variable instead of a dozen, with the same results."""

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
    """AdamW with a learning rate per variable: the common one times `scales`, in the order of the variables.

    Only matrices decay: biases and the like do not.
    """

    scales: Sequence[float] = ()
    decay = 0.0

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        rate = learning_rate * self.scales[self._get_variable_index(variable)]
        if self.decay and len(variable.shape) > 1:
            self.assign_sub(variable, self.decay * tf.cast(rate, variable.dtype) * variable)
        super().update_step(gradient, variable, rate)
