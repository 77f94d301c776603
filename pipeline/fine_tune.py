"""Train the last layers of the backbone with the head, on augmented images; keep it only where val_loss falls.

Reads:   data/prepared, the images, features/meta.json, models/head.keras.
Writes:  models/model.keras: (N, height, width, 3) RGB in [0, 255] -> (N, n_classes), resize and preprocessing inside;
         plots/fine_tune.csv; metrics/fine_tune.json (head_val_accuracy, head_val_loss: before fine-tuning).
Params:  backbone, weights, seed, data, fine_tune.
Command: python -m pipeline.fine_tune

Training the head first, then both, is LP-FT (https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from pipeline import networks, paths, stage
from pipeline.dataset import load_split
from pipeline.engine import keras, make_repeatable
from pipeline.errors import UserError
from pipeline.files import Source
from pipeline.machine import cores
from pipeline.outputs import Outputs
from pipeline.params import Params
from pipeline.pixels import read_images
from pipeline.sources import open_source
from pipeline.training import KeepBest, verbosity

WARM_UP = 0.1  # share of the steps in which the learning rate rises from zero


class ImageBatches(keras.utils.PyDataset):
    """Batches of images (b, size, size, 3) uint8 and targets (b,) int32, decoded anew in each epoch.

    Args:
        images: rows of the manifest with `target`.
        seed: shuffles every epoch anew; None keeps the order.
    """

    def __init__(self, source: Source, images: pd.DataFrame, image_size: int, batch_size: int, seed: int | None):
        super().__init__(workers=cores(), max_queue_size=8)
        self._source, self._images, self._size, self._batch_size = source, images, image_size, batch_size
        self._random = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(images))
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._images.iloc[self._order[index * self._batch_size : (index + 1) * self._batch_size]]
        batch = next(read_images(self._source, list(rows.path), list(rows.file_hash), self._size, len(rows), workers=1))
        return batch, rows.target.to_numpy()

    def on_epoch_end(self) -> None:
        if self._random is not None:
            self._order = self._random.permutation(len(self._images))


def fine_tune(
    trunk: keras.Model,
    head: keras.Model,
    train_set: keras.utils.PyDataset,
    val_set: keras.utils.PyDataset,
    unfreeze: float,
    augment: float,
    learning_rate: float,
    epochs: int,
) -> tuple[KeepBest, dict[str, float], int]:
    """Adam on the cross-entropy, warmed up, then decayed to zero by a cosine; `trunk` and `head` change in place.

    They are left as they were after their best epoch on val, where the head before fine-tuning counts as epoch 0.

    Returns:
        The curves; loss and accuracy on val before fine-tuning; how many layers of the backbone were trained.
    """
    layers = networks.unfreeze(trunk, unfreeze)
    image = keras.Input(trunk.input_shape[1:], name="image")
    trainer = keras.Model(image, head(trunk(_augmentation(augment)(image) if augment else image)))
    steps = epochs * len(train_set)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=learning_rate, warmup_steps=max(1, round(WARM_UP * steps))
    )
    trainer.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    keep = KeepBest()
    keep.set_model(trainer)
    before = trainer.evaluate(val_set, verbose=0, return_dict=True)
    keep.note(0, {f"val_{name}": value for name, value in before.items()})
    if layers:
        trainer.fit(train_set, validation_data=val_set, epochs=epochs, callbacks=[keep], verbose=verbosity())
    return keep, before, layers


def _augmentation(strength: float) -> keras.Layer:
    """Random shift, zoom and contrast by up to `strength`, on images in [0, 255]; the identity outside training."""
    layers = [
        keras.layers.RandomTranslation(strength, strength, fill_mode="nearest"),
        keras.layers.RandomZoom((-strength, strength), fill_mode="nearest"),
        keras.layers.RandomContrast(strength, value_range=(0, 255)),
    ]
    return keras.Sequential(layers, name="augmentation")


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    model_file = outputs.path(paths.MODEL)
    make_repeatable(params.seed)
    meta: dict[str, Any] = json.loads(paths.FEATURES_META.read_text(encoding="utf-8"))
    trunk = networks.build_trunk(params.backbone, params.weights, meta["image_size"], meta["pooling"], params.seed)
    if networks.weights_sha256(trunk) != meta["weights_sha256"]:
        raise UserError(
            f"the weights of {params.backbone} are not those that the features were made by; "
            "run `dvc repro --force extract`"
        )
    head, classes = networks.load(paths.HEAD)
    train_images, val_images = load_split("train"), load_split("val")
    batch_size = params.fine_tune.batch_size
    with open_source(params.data.source, params.data.root) as source:
        keep, before, layers = fine_tune(
            trunk,
            head,
            ImageBatches(source, train_images, meta["image_size"], batch_size, params.seed),
            ImageBatches(source, val_images, meta["image_size"], batch_size, None),
            params.fine_tune.unfreeze,
            params.fine_tune.augment,
            params.fine_tune.learning_rate,
            params.fine_tune.epochs,
        )
    outputs.csv(paths.curves("fine_tune"), keep.curves())
    networks.save(networks.join(trunk, head), model_file, classes)
    outputs.json(
        paths.metrics("fine_tune"),
        {
            "val_accuracy": keep.best["val_accuracy"],
            "val_loss": keep.best["val_loss"],
            "head_val_accuracy": before["accuracy"],
            "head_val_loss": before["loss"],
            "best_epoch": keep.best["epoch"],
            "layers_trained": layers,
        },
    )
    reason = "no epoch had a lower loss" if layers else "fine_tune.unfreeze leaves no layer to train"
    print(f"fine_tune: {keep.summary()}" + ("" if keep.best["epoch"] else f": the head as it was, {reason}"))


if __name__ == "__main__":
    stage.run("fine_tune", main)
