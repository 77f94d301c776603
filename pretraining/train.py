"""Pretrain the backbone `tiny` on formula images, to classify and to describe them, and write its weights.

Reads:   pretraining/params.yaml
Writes:  pretraining/tiny.weights.h5, or --out; while it runs, pretraining/checkpoint-....keras every CHECKPOINT_STEPS
         steps: the same command, with the same params and code, resumes from there, whenever it was killed.
Command: python -m pretraining.train [--steps 100] [--seed 2] ... [--out FILE.weights.h5]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import cv2
import numpy as np
import yaml
from pydantic import Field
from tqdm import trange

from headstart.backbones import get_backbone
from headstart.backbones.base import BACKBONE_LAYER
from headstart.backbones.keras_applications import KerasApplication
from headstart.errors import UserError
from headstart.outputs import Outputs
from headstart.validation import Float, Int, Rule, Section, check, read_yaml
from pretraining import formula_images

if TYPE_CHECKING:
    import keras

HERE = Path(__file__).parent
PARAMS = HERE / "params.yaml"
CHECKPOINT_STEPS = 200
AHEAD = 8  # batches that are drawn in advance
Drawn = TypeVar("Drawn")  # a batch


class Settings(Section):
    """The content of params.yaml."""

    classes: Annotated[Int, Field(ge=2, le=100_000)]
    size: Annotated[Int, Field(ge=32, le=128, multiple_of=16), Rule("a multiple of 16 in [32, 128]")]
    batch_size: Annotated[Int, Field(ge=2, le=65536)]
    steps: Annotated[Int, Field(ge=1, le=10_000_000)]
    learning_rate: Annotated[Float, Field(gt=0, le=1)]
    weight_decay: Annotated[Float, Field(ge=0, le=1)]
    describe: Annotated[Float, Field(ge=0, le=1_000_000)]
    seed: Annotated[Int, Field(ge=0, le=4_294_967_295)]

    def checkpoint(self, folder: Path) -> Path:
        """Return the file in `folder` for a training with these settings and this code."""
        code = [file.read_bytes() for file in sorted(HERE.glob("*.py"))]
        digest = hashlib.sha256(b"".join([repr(self).encode(), *code])).hexdigest()[:8]
        return folder / f"checkpoint-{digest}.keras"


def make_batch(step: int, batch_size: int, classes: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the images, (batch_size, size, size, 3) uint8, and categories, (batch_size,), of one step.

    They are the same in any process.
    """
    cv2.setNumThreads(1)  # there is a process per core already
    categories = np.random.default_rng([seed, 0, step]).integers(0, classes, batch_size)
    images = [
        formula_images.draw(int(category), step * batch_size + n, size, seed) for n, category in enumerate(categories)
    ]
    return np.stack(images), categories


def _start_drawing() -> None:
    """Set up a process that draws: it leaves Ctrl-C to the one that trains, and ends with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def draw_ahead(
    draw: Callable[..., Drawn], steps: range, processes: int, *arguments: object
) -> Generator[Drawn, None, None]:
    """Yield `draw(step, *arguments)` of each step, which other processes draw ahead."""
    # Spawned, not forked: the threads of TensorFlow, JAX and PyTorch do not survive a fork.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_drawing)
    try:
        queue: deque[Future[Drawn]] = deque()
        for step in steps:
            queue.append(pool.submit(draw, step, *arguments))
            if len(queue) > AHEAD:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batches(start: int, stop: int, *arguments: int) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yield the batches of the steps from `start` to `stop`, drawn by other processes."""
    yield from draw_ahead(make_batch, range(start, stop), max(1, (os.cpu_count() or 2) // 2), *arguments)


def build(settings: Settings) -> keras.Model:
    """Build the backbone with its preprocessing, a linear layer for the categories and one for the descriptors."""
    import keras

    from pretraining import descriptors

    keras.utils.set_random_seed(settings.seed)
    row, size = get_backbone("tiny"), settings.size
    assert isinstance(row, KerasApplication)
    base = getattr(keras.applications, row.constructor)(
        include_top=False, weights=None, input_shape=(size, size, 3), **dict(row.arguments)
    )
    base.name = BACKBONE_LAYER
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99  # its 0.999 suits runs of a hundred thousand steps
    image = keras.Input((size, size, 3))
    features = keras.layers.GlobalAveragePooling2D()(base(row.preprocess(image)))
    described = descriptors.build_describer(size).output_shape[1]
    outputs = [
        keras.layers.Dense(settings.classes, name="category")(features),
        keras.layers.Dense(described, name="descriptors")(features),
    ]
    model = keras.Model(image, outputs)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, settings.steps, warmup_target=settings.learning_rate, warmup_steps=max(1, settings.steps // 20)
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay),
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mean_squared_error"],
        metrics=[["accuracy"], []],
        loss_weights=[1.0, settings.describe],
    )
    return model


def _resume(settings: Settings, checkpoint: Path) -> keras.Model:
    """Load the model of `checkpoint` if it can be used, else build a new one."""
    import keras

    model = build(settings)
    if not checkpoint.exists():
        return model
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Skipping variable loading")  # of another optimizer
            found = keras.models.load_model(checkpoint)
        same = (found.input_shape, found.output_shape) == (model.input_shape, model.output_shape)
        if not same or int(found.optimizer.iterations) > settings.steps:
            raise ValueError("it belongs to another training")
    except Exception as error:  # Keras has many for a file that it cannot use
        reason = " ".join(str(error).split())[:200]
        print(f"{checkpoint}: cannot resume from it ({reason}); training starts from the beginning", file=sys.stderr)
        return model
    return found


def train(settings: Settings, out: Path, checkpoint: Path) -> None:
    """Run the remaining steps, then write the weights.

    Raises:
        UserError: if a file cannot be written, or the training diverges.
    """
    if not out.name.endswith(".weights.h5"):
        raise UserError(f"--out {out}: the name must end in .weights.h5, as Keras demands")
    outputs = Outputs()
    try:
        for file in (out, checkpoint):
            outputs.path(file)  # fails now, not after hours of work, if it cannot be written
    finally:
        outputs.discard()
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        import_module("headstart.framework")  # loads TensorFlow without its messages
    from pretraining import descriptors

    model, describer = _resume(settings, checkpoint), descriptors.build_describer(settings.size)
    start = saved = int(model.optimizer.iterations)
    print(
        f"pretraining: {settings.steps} batches of {settings.batch_size} images, {settings.size} px, "
        f"{settings.classes} categories" + (f"; resuming after batch {start}" if start else ""),
        flush=True,
    )
    bar = trange(start, settings.steps, initial=start, total=settings.steps, unit=" batches", disable=None)
    data = batches(start, settings.steps, settings.batch_size, settings.classes, settings.size, settings.seed)
    try:
        for step, (images, categories) in zip(bar, data, strict=True):
            targets = [categories, describer.predict_on_batch(images)]
            logs = model.train_on_batch(images, targets, return_dict=True)
            if not np.isfinite(logs["loss"]):
                raise UserError(f"loss is NaN at batch {step + 1}; lower learning_rate, or try another seed")
            if (step + 1) % CHECKPOINT_STEPS == 0:
                model.save(outputs.path(checkpoint))
                outputs.commit()
                saved = step + 1
                figures = ", ".join(f"{name} {value:.3f}" for name, value in logs.items())
                bar.write(f"batch {saved}: {figures}")
                model.reset_metrics()
    except (KeyboardInterrupt, SystemExit):
        place = f"resumes after batch {saved}" if saved else "starts from the beginning"
        print(f"pretraining: stopped; the same command {place}", file=sys.stderr)
        raise
    finally:
        data.close()
        outputs.discard()
    partial = outputs.path(out)
    weights = partial.with_name(f"{partial.name}.weights.h5")
    model.get_layer(BACKBONE_LAYER).save_weights(weights)
    os.replace(weights, partial)
    outputs.commit()
    checkpoint.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size:,} bytes, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}")
    print(f"To use it: backbone: tiny and weights: {out} in params.yaml.")


def parse(argv: list[str] | None = None) -> tuple[Settings, Path, Path]:
    """Return the settings, changed by the command line, the file to write, and the folder for checkpoints.

    Raises:
        UserError: if a value is not valid.
    """
    parser = argparse.ArgumentParser(prog="python -m pretraining.train", description=__doc__.split("\n")[0])
    for name in Settings.model_fields:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help="instead of the one in params.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "tiny.weights.h5", help="the weights; default: %(default)s")
    parser.add_argument("--checkpoints", type=Path, default=HERE, help="their folder; default: %(default)s")
    found = parser.parse_args(argv)
    in_file = read_yaml(PARAMS)
    settings = check(Settings, in_file, PARAMS, "pretraining/train.py")
    given = {name: text for name in Settings.model_fields if (text := getattr(found, name)) is not None}
    if given:
        changes = {name: _value(text) for name, text in given.items()}
        settings = check(Settings, in_file | changes, Path("command line"), "pretraining/train.py")
    return settings, found.out, found.checkpoints


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def main(argv: list[str] | None = None) -> int:
    """Train by params.yaml and the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        settings, out, checkpoints = parse(argv)
        train(settings, out, settings.checkpoint(checkpoints))
    except UserError as error:
        print(f"pretraining: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
