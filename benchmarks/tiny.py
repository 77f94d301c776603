"""Accuracy on the features of `tiny`, against random weights, raw pixels and, if they are here, ImageNet weights.

Command: python benchmarks/tiny.py SOURCE[:IMAGES_A_CLASS]... [--seeds 5] [--weights FILE] [--size 64]

A SOURCE is a folder or a .zip of class folders. For each seed a quarter of the images of each class is for testing; the
classifier is trained on IMAGES_A_CLASS of the rest, or on all of it.

tiny       the backbone's weights in the repository, or FILE
random     the same network with its initial weights, drawn by the seed
pixels     the images themselves, at most 32 x 32 pixels
imagenet   MobileNetV2 of the same width, 0.35, with ImageNet weights at 224 pixels, if Keras' cache has them

The classifier is scikit-learn's LogisticRegression on standardised features, its C one of five, chosen on a quarter of
the training images and then fitted to all of them. A difference is a mean over the seeds, paired, with its standard
error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from paired import difference, spread
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from headstart.backbones import BACKBONES, get_backbone
from headstart.backbones.keras_applications import KerasApplication, keras_folders
from headstart.data.files import Source
from headstart.data.sources import open_source
from headstart.errors import UserError
from headstart.framework import device_name, keras
from headstart.modalities.image import pixels
from headstart.training import networks

CHOICES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of C
PIXELS, IMAGENET_SIZE, WIDTH = 32, 224, 0.35
WAYS = ("tiny", "random", "pixels", "imagenet")


def images_of(source: Source, files: list[str], size: int) -> Iterator[np.ndarray]:
    """Batches (b, size, size, 3) uint8, as the pipeline decodes them."""
    for start in range(0, len(files), networks.PREDICTION_BATCH):
        batch = files[start : start + networks.PREDICTION_BATCH]
        yield np.stack([pixels.resize(pixels.pixels(source.read(file), size), size) for file in batch])


def features_of(encoder: keras.Model, source: Source, files: list[str]) -> np.ndarray:
    """(N, D) float32: what `encoder`, from RGB in [0, 255] to (N, D), makes of each image."""
    batches = images_of(source, files, encoder.inputs[0].shape[1])
    return np.concatenate([networks.predict(encoder, batch, networks.PREDICTION_BATCH) for batch in batches])


def imagenet() -> keras.Model | None:
    """None if the weights are not on this machine."""
    file = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{WIDTH}_{IMAGENET_SIZE}_no_top.h5"
    if not (keras_folders()[0] / "models" / file).is_file():
        return None
    shape = (IMAGENET_SIZE, IMAGENET_SIZE, 3)
    base = keras.applications.MobileNetV2(shape, alpha=WIDTH, include_top=False, weights="imagenet", pooling="avg")
    image = keras.Input(shape)
    mobilenet = get_backbone("mobilenetv2")
    assert isinstance(mobilenet, KerasApplication)
    return keras.Model(image, base(mobilenet.preprocess(image), training=False))


def accuracy(features: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """On the rows `test`, of a classifier trained on the rows `train`."""

    def fitted(rows: np.ndarray, judged: np.ndarray, choice: float) -> float:
        scaler = StandardScaler().fit(features[rows])
        model = LogisticRegression(C=choice, max_iter=300).fit(scaler.transform(features[rows]), targets[rows])
        return float(model.score(scaler.transform(features[judged]), targets[judged]))

    some, others = train_test_split(train, test_size=0.25, stratify=targets[train], random_state=seed)
    return fitted(train, test, max(CHOICES, key=lambda choice: fitted(some, others, choice)))


def draw_rows(targets: np.ndarray, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, `count` of each class or all, and rows to test on."""
    rest, test = train_test_split(np.arange(len(targets)), test_size=0.25, stratify=targets, random_state=seed)
    if count is None:
        return rest, test
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(rest[targets[rest] == one])[:count] for one in np.unique(targets)]), test


def judge(text: str, counts: list[int | None], seeds: int, weights: str, size: int) -> None:
    """Print a row for each number of images a class."""
    with open_source(text) as opened:
        source = opened.scan()
        files = sorted(source.files)
        targets = np.unique([Path(file).parent.name for file in files], return_inverse=True)[1]
        side = min(PIXELS, *(min(pixels.pixels(source.read(file), PIXELS).shape[:2]) for file in files))
        raw = np.concatenate([batch.reshape(len(batch), -1) for batch in images_of(source, files, side)])
        tiny = get_backbone("tiny")
        fixed = {"tiny": features_of(tiny.build(weights, size, "avg", 0), source, files), "pixels": np.float32(raw)}
        pretrained = imagenet()
        if pretrained:
            fixed["imagenet"] = features_of(pretrained, source, files)
        found: dict[int | None, dict[str, list[float]]] = {count: {way: [] for way in WAYS} for count in counts}
        trained = {}
        for seed in range(seeds):
            drawn = features_of(tiny.build("none", size, "avg", seed), source, files)
            for count in counts:
                train, test = draw_rows(targets, count, seed)
                trained[count] = len(train)
                for way, features in {**fixed, "random": drawn}.items():
                    found[count][way].append(accuracy(features, targets, train, test, seed))
    for count, ways in found.items():
        name = f"{Path(text).stem}{'' if count is None else f', {count} a class'} ({trained[count]:,})"
        columns = [spread(one) if one else "" for one in ways.values()]
        print(
            f"{name:<32} "
            + " ".join(f"{column:>15}" for column in columns)
            + "".join(f" {difference(ways['tiny'], ways[other]):>17}" for other in ("random", "pixels")),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE[:IMAGES_A_CLASS]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weights", default="pretrained", help="a weights file of the same network")
    parser.add_argument("--size", type=int, default=BACKBONES["tiny"].default_size, help="image side in pixels")
    arguments = parser.parse_args()
    wanted: dict[str, list[int | None]] = {}
    for text in arguments.sources:
        name, _, count = text.partition(":")
        wanted.setdefault(name, []).append(int(count) if count else None)
    print(f"on {device_name()}, {arguments.seeds} seeds; test accuracy, mean and deviation")
    print(f"{'':<32} " + " ".join(f"{way:>15}" for way in WAYS) + "     tiny - random     tiny - pixels", flush=True)
    try:
        for name, counts in wanted.items():
            judge(name, counts, arguments.seeds, arguments.weights, arguments.size)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
