"""Train the backbone `tiny` on formula images, to tell them apart and to describe them, and write its weights.

Reads:   pretraining/params.yaml
Writes:  pipeline/weights/tiny.weights.h5; while it runs, pretraining/checkpoint-....keras: killed at any moment, the
         next call with the same params goes on from there.
Command: python -m pretraining.train [--steps 100] [--seed 2] ...
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import yaml
from tqdm import trange

from pipeline.backbones import BACKBONES, TINY_WEIGHTS
from pretraining.formula_images import draw

PARAMS = Path(__file__).parent / "params.yaml"
CHECKPOINT_STEPS = 200
AHEAD = 8  # batches that are drawn ahead of the network


def make_batch(step: int, batch_size: int, classes: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (batch_size, size, size, 3) uint8 and categories (batch_size,) of one step, the same on any machine."""
    cv2.setNumThreads(1)  # a process a core draws already
    categories = np.random.default_rng([seed, 0, step]).integers(0, classes, batch_size)
    images = [draw(int(category), step * batch_size + n, size, seed) for n, category in enumerate(categories)]
    return np.stack(images), categories


def batches(start: int, stop: int, *arguments: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of the steps from `start` to `stop`, drawn in processes of their own."""
    # Spawned, not forked: the threads of TensorFlow, JAX and PyTorch do not survive a fork.
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) // 2), get_context("spawn")) as pool:
        queue: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
        for step in range(start, stop):
            queue.append(pool.submit(make_batch, step, *arguments))
            if len(queue) > AHEAD:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


def build(params: argparse.Namespace):
    """The backbone under its preprocessing, with a linear layer over the categories and one over the descriptors."""
    import keras

    from pretraining.descriptors import build_describer

    keras.utils.set_random_seed(params.seed)
    row, size = BACKBONES["tiny"], params.size
    base = getattr(keras.applications, row.constructor)(
        include_top=False, weights=None, input_shape=(size, size, 3), **dict(row.arguments)
    )
    base.name = "backbone"
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99  # its 0.999 suits runs of a hundred thousand steps
    image = keras.Input((size, size, 3))
    features = keras.layers.GlobalAveragePooling2D()(base(keras.applications.mobilenet_v2.preprocess_input(image)))
    described = build_describer(size).output_shape[1]
    outputs = [
        keras.layers.Dense(params.classes, name="category")(features),
        keras.layers.Dense(described, name="descriptors")(features),
    ]
    model = keras.Model(image, outputs)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, params.steps, warmup_target=params.learning_rate, warmup_steps=max(1, params.steps // 20)
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=params.weight_decay),
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mean_squared_error"],
        metrics=[["accuracy"], []],
        loss_weights=[1.0, params.describe],
    )
    return model


def train(params: argparse.Namespace) -> None:
    """Run what is left of the steps, then write the weights."""
    import keras

    from pretraining.descriptors import build_describer

    model = keras.models.load_model(params.checkpoint) if params.checkpoint.is_file() else build(params)
    describer = build_describer(params.size)
    start = int(model.optimizer.iterations)
    bar = trange(start, params.steps, initial=start, total=params.steps, unit=" steps", disable=None)
    data = batches(start, params.steps, params.batch_size, params.classes, params.size, params.seed)
    for step, (images, categories) in zip(bar, data, strict=True):
        logs = model.train_on_batch(images, [categories, describer.predict_on_batch(images)], return_dict=True)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            partial = params.checkpoint.with_name(f".{params.checkpoint.stem}.partial.keras")
            model.save(partial)
            os.replace(partial, params.checkpoint)
            print(f"step {step + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in logs.items()), flush=True)
            model.reset_metrics()
    partial = params.out.with_name(f".{params.out.name.split('.')[0]}.partial.weights.h5")
    model.get_layer("backbone").save_weights(partial)
    os.replace(partial, params.out)
    params.checkpoint.unlink(missing_ok=True)
    sha256 = hashlib.sha256(params.out.read_bytes()).hexdigest()
    print(f"{params.out}: {params.out.stat().st_size:,} bytes; weights_sha256 for pipeline/backbones.py: {sha256}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The params, with what the command line changes; `out`; and `checkpoint`, a file of these params alone."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.train", description=__doc__.split("\n")[0])
    for name, value in yaml.safe_load(PARAMS.read_text()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--out", type=Path, default=TINY_WEIGHTS)
    parser.add_argument("--checkpoints", type=Path, default=Path(__file__).parent, help="a folder")
    found = parser.parse_args(argv)
    of_training = {name: value for name, value in vars(found).items() if name not in ("out", "checkpoints")}
    digest = hashlib.sha256(repr(sorted(of_training.items())).encode()).hexdigest()[:8]
    return argparse.Namespace(**of_training, out=found.out, checkpoint=found.checkpoints / f"checkpoint-{digest}.keras")


def main(argv: list[str] | None = None) -> None:
    """Train as params.yaml and the command line say."""
    train(parse(argv))


if __name__ == "__main__":
    sys.exit(main())
