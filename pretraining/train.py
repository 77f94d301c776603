"""Train the backbone `tiny` to tell formula images apart, and write its weights.

Writes:  pipeline/weights/tiny.weights.h5; while it runs, pretraining/checkpoint.keras: killed at any moment, the next
         call goes on from there.
Command: python -m pretraining.train [--steps 2500] [--classes 400] ...
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import trange

from pipeline.backbones import BACKBONES, TINY_WEIGHTS
from pretraining.formula_images import draw

CHECKPOINT = Path(__file__).parent / "checkpoint.keras"
CHECKPOINT_STEPS = 200
AHEAD = 8  # batches that are drawn ahead of the network


def make_batch(step: int, batch_size: int, classes: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (batch_size, size, size, 3) uint8 and categories (batch_size,) of one step, the same on any machine."""
    categories = np.random.default_rng([seed, 0, step]).integers(0, classes, batch_size)
    images = [draw(int(category), step * batch_size + n, size, seed) for n, category in enumerate(categories)]
    return np.stack(images), categories


def batches(start: int, stop: int, *arguments: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of the steps from `start` to `stop`, drawn in processes of their own."""
    # Spawned, not forked: TensorFlow's threads do not survive a fork.
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) // 2), get_context("spawn")) as pool:
        queue: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
        for step in range(start, stop):
            queue.append(pool.submit(make_batch, step, *arguments))
            if len(queue) > AHEAD:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


def build(classes: int, size: int, steps: int, learning_rate: float, seed: int):
    """The backbone under its preprocessing and a linear layer over the categories, compiled."""
    from pipeline.learning.engine import keras

    keras.utils.set_random_seed(seed)
    row = BACKBONES["tiny"]
    base = getattr(keras.applications, row.constructor)(
        include_top=False, weights=None, input_shape=(size, size, 3), **dict(row.arguments)
    )
    base.name = "backbone"
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99  # its 0.999 suits runs of a hundred thousand steps
    image = keras.Input((size, size, 3))
    features = keras.layers.GlobalAveragePooling2D()(base(keras.applications.mobilenet_v2.preprocess_input(image)))
    model = keras.Model(image, keras.layers.Dense(classes)(features))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=learning_rate, warmup_steps=max(1, steps // 20)
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(arguments: argparse.Namespace) -> None:
    """Run what is left of the steps, then write the weights."""
    from pipeline.learning.engine import keras

    if arguments.checkpoint.is_file():
        model = keras.models.load_model(arguments.checkpoint)
    else:
        model = build(arguments.classes, arguments.size, arguments.steps, arguments.learning_rate, arguments.seed)
    start = int(model.optimizer.iterations)
    bar = trange(start, arguments.steps, initial=start, total=arguments.steps, unit=" steps", disable=None)
    data = batches(start, arguments.steps, arguments.batch_size, arguments.classes, arguments.size, arguments.seed)
    for step, (images, categories) in zip(bar, data, strict=True):
        logs = model.train_on_batch(images, categories, return_dict=True)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            partial = arguments.checkpoint.with_name(f".{arguments.checkpoint.stem}.partial.keras")
            model.save(partial)
            os.replace(partial, arguments.checkpoint)
            print(f"step {step + 1}: loss {logs['loss']:.3f}, accuracy {logs['accuracy']:.3f}", flush=True)
            model.reset_metrics()
    partial = arguments.out.with_name(f".{arguments.out.name.split('.')[0]}.partial.weights.h5")
    model.get_layer("backbone").save_weights(partial)
    os.replace(partial, arguments.out)
    arguments.checkpoint.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.train", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--size", type=int, default=BACKBONES["tiny"].default_size, help="image side in pixels")
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=TINY_WEIGHTS)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    train(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
