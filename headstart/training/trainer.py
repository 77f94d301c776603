"""The step of fine-tuning: loss, gradients in parts of a batch, and the optimizer with its schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headstart.fine_tune_config import ResolvedFineTune
from headstart.framework import keras, tf
from headstart.training.batches import Batches
from headstart.training.optimizers import LayerwiseAdamW


class Schedule:
    """Linear warm-up and cosine decay to zero, with the momentum of the average: variables, so that they may change."""

    def __init__(self, settings: ResolvedFineTune) -> None:
        self._warm_up, self.ema_momentum = settings.warm_up, tf.Variable(0.0)
        self.rate = keras.optimizers.schedules.CosineDecay(0.0, 1, warmup_target=0.0)
        self.rate.decay_steps, self.rate.warmup_steps = tf.Variable(1), tf.Variable(0)
        self.rate.warmup_target = tf.Variable(0.0)

    def assign(self, steps: int, learning_rate: float, ema_momentum: float) -> None:
        """Set what holds for the next training, of so many steps."""
        warm_up = round(self._warm_up * steps)
        self.rate.decay_steps.assign(max(1, steps - warm_up))
        self.rate.warmup_steps.assign(warm_up)
        self.rate.warmup_target.assign(learning_rate)
        self.ema_momentum.assign(ema_momentum)


def make_optimizer(
    settings: ResolvedFineTune, scales: Sequence[float], schedule: Schedule
) -> keras.optimizers.Optimizer:
    """Return AdamW with the rates of `schedule`, gradient clipping and, unless `ema` is 0, an average of the weights.

    Args:
        scales: the share of the learning rate of each variable.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    optimizer = LayerwiseAdamW(
        schedule.rate, global_clipnorm=settings.clip_norm and settings.clip_norm / replicas, use_ema=settings.ema != 0
    )
    optimizer.scales, optimizer.decay = scales, settings.weight_decay
    optimizer.ema_momentum = schedule.ema_momentum
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "float16" else optimizer


class Trainer(keras.Model):
    """Trains a network that gives logits, with gradient accumulation over `parts` of a batch.

    TensorFlow takes seconds to trace a step, so that all trainings of a network share one of these: `begin` makes it as
    new, and lets the next one have another length.

    The loss in the curves is the log loss without label smoothing, as that of val is, which it is drawn beside.

    The gradient is the weighted mean over the whole batch with any number of parts and devices. Keras' own
    `gradient_accumulation_steps` does not serve: it moves the exponential moving average after every part instead of
    every batch, float16's loss scale may change between parts, and an epoch's last, smaller batch would need as many
    parts as the others.
    """

    def __init__(self, network: keras.Model, settings: ResolvedFineTune, scales: Sequence[float]) -> None:
        super().__init__(name="trainer")
        self.network, self.parts = network, 1
        self._cross_entropy = keras.losses.CategoricalCrossentropy(True, settings.label_smoothing, reduction=None)
        self._loss = keras.metrics.Mean("loss")
        self._accuracy = keras.metrics.CategoricalAccuracy("accuracy")
        self._schedule = Schedule(settings)
        optimizer = make_optimizer(settings, scales, self._schedule)
        self.compile(optimizer, jit_compile=False)  # XLA times its kernels: the same bits would not come again
        self.optimizer.build(self.trainable_variables)
        self._unused = [keras.ops.convert_to_numpy(variable) for variable in self.optimizer.variables]

    def begin(self, steps: int, learning_rate: float, ema_momentum: float) -> None:
        """Forget the training before; the next one has so many steps. The weights of the network stay as they are."""
        for variable, value in zip(self.optimizer.variables, self._unused, strict=True):
            variable.assign(value)
        self._schedule.assign(steps, learning_rate, ema_momentum)

    def set_parts(self, parts: int) -> None:
        """Divide each batch into so many parts from here on."""
        self.parts, self.train_function = parts, None

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self._loss, self._accuracy]

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.network(inputs, training=training)

    def held_out_logits(self, held_out: Batches) -> np.ndarray:
        """Return the logits of held-out examples in their order, (N, n_classes) float32."""
        return held_out.sort_back(self.predict(held_out.source(), verbose=0))

    def train_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs, targets, weights = data
        variables = self.trainable_variables
        size = -(-tf.shape(targets)[0] // self.parts)

        def step(number: tf.Tensor, *gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
            rows = slice(number * size, (number + 1) * size)
            with tf.GradientTape() as tape:
                logits = self({name: array[rows] for name, array in inputs.items()}, training=True)
                losses = self._cross_entropy(targets[rows], logits)
                loss = self.optimizer.scale_loss(tf.reduce_sum(losses * weights[rows]))
            # What labels are smoothed by would hide what is learned: with ten classes and 0.1 no loss is below 0.5.
            self._loss.update_state(keras.losses.categorical_crossentropy(targets[rows], logits, from_logits=True))
            self._accuracy.update_state(targets[rows], logits)
            new = tape.gradient(loss, variables)
            return (number + 1, *(a + b for a, b in zip(gradients, new, strict=True)))

        start = (tf.constant(0), *(tf.zeros_like(variable) for variable in variables))
        _, *gradients = tf.while_loop(lambda number, *_: number < self.parts, step, start, parallel_iterations=1)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            # The optimizer clips before it sums over replicas, so each of them needs its share of the whole gradient.
            total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients = [gradient / replicas for gradient in total]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}
