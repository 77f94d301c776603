"""An epoch of fine-tuning a text encoder from cached activations, against the same layers by model.fit, in turns.

Command: python benchmarks/text_tuning.py TABLE [--backbone minilm-l6] [--each 20]

Of the table, a .csv with the texts in its first column and the labels in its second, so many texts of each class are
trained on, half as many score each epoch. model.fit takes tokens, padded to the longest text of a batch, or to 64.
Both train the layers of params.yaml. The first epoch of each turn, which compiles, does not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
from choices import ROOT, run, set_params
from trunk_cache import EPOCHS, TURNS, Clock, Way, ours  # first: sets the kernels that TensorFlow loads

from headstart import paths
from headstart.backbones import get_backbone, splitting
from headstart.backbones.base import BACKBONE_LAYER
from headstart.config import Params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_split
from headstart.features.views import ViewLoader
from headstart.features_meta import FeaturesMeta, read_meta
from headstart.framework import device_name, keras, tf
from headstart.modalities import get_modality
from headstart.training import defaults, networks
from headstart.training.planning import build_encoder
from pipeline import extract, prepare, train_head

BATCH, PADDED = 32, 64
CHANGES = ["extract.depth=last", "train_head.hidden=[]", "prepare.near_distance=0"]
TUNING = [f"fine_tune.{change}" for change in (f"epochs={EPOCHS}", "trunk_cache=on", "refit=false", "folds=0")]


def make_table(source: Path, each: int, tested: int = 5, seed: int | None = None) -> None:
    """Write texts.csv with the splits of the first texts of each class, or of any: train, then val, then test."""
    table = pd.read_csv(source).iloc[:, :2].set_axis(["text", "label"], axis=1).drop_duplicates("text")
    if seed is not None:
        table = table.sample(frac=1, random_state=seed)
    number = table.groupby("label").cumcount()
    ends = {"train": each, "val": each + each // 2, "test": each + each // 2 + tested}
    table["split"] = None
    for split, end in reversed(ends.items()):
        table.loc[number < end, "split"] = split
    complete = table.groupby("label").label.transform("size") >= ends["test"]
    table[complete].dropna().to_csv("texts.csv", index=False)


def load_tokens(params: Params, meta: FeaturesMeta, split: str, length: int | None) -> tf.data.Dataset:
    """Return batches of tokens and targets, padded to `length`, or to the longest of a batch."""
    modality, examples = get_modality(meta.kind, meta.reading), load_split(split)
    with open_examples(params.data, modality) as source:
        loader, files = ViewLoader(source, modality, meta.size), zip(examples.path, examples.file_hash, strict=True)
        texts = [array[:length] for path, file_hash in files for array in loader.load(path, file_hash, [0])]
    ragged = tf.ragged.constant([text.tolist() for text in texts])
    tokens = tf.data.Dataset.from_tensor_slices((ragged, examples.target.to_numpy()))
    batches = tokens.shuffle(len(texts)) if split == "train" else tokens
    named = batches.map(lambda text, target: ({"tokens": tf.ensure_shape(text, [None])}, target))
    return named.padded_batch(BATCH, ({"tokens": [length]}, [])).prefetch(tf.data.AUTOTUNE)


def plain_keras(params: Params, meta: FeaturesMeta, length: int | None) -> tuple[list[float], float, float]:
    """What the guides of Keras show, from tokens."""
    clock = Clock()
    encoder, (head, _) = build_encoder(params, meta, "float32"), networks.load(paths.HEAD)
    backbone = get_backbone(meta.backbone)
    settings = defaults.resolve_fine_tune(params.fine_tune, backbone)
    trained = splitting.select_blocks(backbone.blocks(encoder), settings.unfreeze)
    splitting.set_trainable(encoder.get_layer(BACKBONE_LAYER), trained, 1)
    model = keras.Model(encoder.input, head(encoder.output))
    optimizer = keras.optimizers.AdamW(settings.learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    train_set, val_set = (load_tokens(params, meta, split, length) for split in ("train", "val"))
    options = {"epochs": EPOCHS, "callbacks": [clock], "shuffle": False, "verbose": 0}
    history = model.fit(train_set, validation_data=val_set, **options).history
    return clock.seconds(), 0.0, history["val_accuracy"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--each", type=int, default=20)
    arguments = parser.parse_args()
    source = arguments.table.resolve()
    changes = [*CHANGES, *TUNING, f"backbone={arguments.backbone}", "data.source=texts.csv"]
    ways: dict[str, Way] = {
        "from activations": ours,
        "model.fit, padded to the longest": partial(plain_keras, length=None),
        f"model.fit, padded to {PADDED}": partial(plain_keras, length=PADDED),
    }
    os.environ.pop("DVC_ROOT", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_table(source, arguments.each)
        for stage in (prepare, extract, train_head):
            run(stage, changes)
        params, meta, texts = set_params(changes), read_meta(), len(load_split("train"))
        times: dict[str, list[float]] = {name: [] for name in ways}
        accuracy: dict[str, float] = {}
        for _ in range(TURNS):
            for name, way in ways.items():
                seconds, _, accuracy[name] = way(params, meta)
                times[name] += seconds
        os.chdir(ROOT)
    rate = {name: statistics.median(took) for name, took in times.items()}
    best = min(rate.values())
    print(f"{arguments.backbone} on {device_name()}, {texts:,} texts an epoch")
    for name in ways:
        print(f"{name:32} {rate[name]:6.1f} s  {rate[name] / best:4.1f} times  val accuracy {accuracy[name]:.4f}")


if __name__ == "__main__":
    main()
