"""How often the results page points at the place that decides the class, of a vision transformer (pointing game).

Command: python benchmarks/pointing.py

A ViT of 4 blocks is trained from scratch on drawn images of 96 pixels: squares of colour, and in one of 36 patches a
pattern, which is the class. Of 100 further images it counts how often the highest place of the map for the label is
that patch (Zhang 2016, https://arxiv.org/abs/1608.00507), by attention rollout and by gradient times token, which the
page shows if attention cannot be read. By chance that is 3 %.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import keras
import numpy as np
from hub_images import write_vit

from headstart.backbones import get_backbone
from headstart.backbones.hub_images import CLASS, MEAN, ImageEncoder
from headstart.modalities import get_modality
from headstart.report import attention
from headstart.training import networks

SIZE, PATCH = 96, 16
CLASSES = ["rows", "columns", "dot"]
EPOCHS, EXAMPLES, BATCH, RATE = 4, 1500, 50, 1e-3


def draw(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, (count, SIZE, SIZE, 3) uint8, the places of their classes, and the number of the patch in each."""
    side = SIZE // PATCH
    squares = rng.integers(60, 200, (count, side, side, 3)).repeat(PATCH, 1).repeat(PATCH, 2)
    images = squares + rng.normal(0, 20, squares.shape)
    patterns = np.full((len(CLASSES), PATCH, PATCH, 1), 128.0)
    patterns[0, ::4], patterns[0, 2::4] = 255, 0
    patterns[1, :, ::4], patterns[1, :, 2::4] = 255, 0
    patterns[2, 4:12, 4:12], patterns[2, :4] = 255, 0
    labels, places = rng.integers(0, len(CLASSES), count), rng.integers(0, side * side, count)
    for image, label, place in zip(images, labels, places, strict=True):
        y, x = (PATCH * at for at in divmod(place, side))
        image[y : y + PATCH, x : x + PATCH] = patterns[label]
    return images.clip(0, 255).astype(np.uint8), labels, places


def train(encoder: keras.Model, head: keras.Model, rng: np.random.Generator) -> float:
    """Train both; returns the accuracy of the last epoch, on images that were drawn for it."""
    encoder.trainable = encoder.get_layer("backbone").trainable = True
    image = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(image, networks.without_softmax(head)(encoder({"image": image})))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(RATE), loss, metrics=["accuracy"])
    for _ in range(EPOCHS):
        images, labels, _ = draw(EXAMPLES, rng)
        history = model.fit(images.astype(np.float32), labels, batch_size=BATCH, verbose=0).history
    return history["accuracy"][-1]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        row = get_backbone(str(write_vit(Path(temporary) / "vit", SIZE, 64, 4, 4)))
        assert isinstance(row, ImageEncoder)
        for pooled, words in ((CLASS, "the class token"), (MEAN, "the mean of the tokens")):
            rng = np.random.default_rng(0)
            encoder = dataclasses.replace(row, pooled=pooled).build("pretrained", SIZE, "avg", 0)
            head, modality = networks.build_head(encoder.output_shape[1], len(CLASSES), []), get_modality("image")
            accuracy = train(encoder, head, rng)
            classifier = networks.Classifier(
                networks.join(modality.front(SIZE), encoder, head), CLASSES, modality, SIZE
            )
            images, labels, places = draw(100, rng)
            batch, columns = {"image": images}, labels[:, None]
            maps = {"gradient times token": np.maximum(attention.signed_maps(classifier, batch, columns), 0)}
            maps["attention rollout"], _ = attention.maps(classifier, batch, columns)
            print(f"features: {words}; accuracy while training: {accuracy:.3f}")
            for name, found in maps.items():
                hits = (found.reshape(len(images), -1).argmax(axis=1) == places).mean()
                print(f"  {name:<20} points at the pattern in {100 * hits:.0f} % of the images", flush=True)


if __name__ == "__main__":
    main()
