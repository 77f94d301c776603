"""An epoch of fine-tuning from cached activations, against the same layers by model.fit from examples, in turns.

Command: python benchmarks/trunk_cache.py SOURCE [--backbone mobilenetv2]

SOURCE is a folder of photographs in class folders, which model.fit reads from files; or of recordings, or a .zip of
them, which model.fit finds in memory as samples at 16 kHz.

Both train the blocks of params.yaml without augmentation, and score val after each epoch. The first epoch of each turn,
which compiles, does not count. Computing the activations, which happens once, is reported separately.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as pipeline.fine_tune has it, but for tiny

import numpy as np
from choices import run
from dvc.utils.hydra import apply_overrides

from headstart import paths
from headstart.backbones import get_backbone, splitting
from headstart.backbones.base import BACKBONE_LAYER
from headstart.config import Params, load_params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_split
from headstart.features_meta import FeaturesMeta, read_meta
from headstart.framework import device_name, keras, tf
from headstart.modalities import load_modality
from headstart.modalities.audio.steps import STEP
from headstart.training import networks
from headstart.training.defaults import resolve_fine_tune
from headstart.training.head_report import read_head_report
from headstart.training.planning import build_encoder, build_plan
from pipeline import extract, prepare, train_head

EPOCHS, TURNS = 4, 3
PLAIN = ["crop=1", "flip=false", "jitter=0", "mixup=0", "views=0", f"epochs={EPOCHS}", "trunk_cache=on", "refit=false"]


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def __call__(self, row: dict[str, float]) -> None:
        self.ends.append(time.perf_counter())

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.ends.append(time.perf_counter())

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of all but the first epoch, each with its validation."""
        return [after - before for before, after in zip(self.ends[1:], self.ends[2:], strict=False)]


def ours(params: Params, meta: FeaturesMeta) -> tuple[list[float], float, float]:
    """Seconds of epochs, those before the first one, and val accuracy."""
    clock, start = Clock(), time.perf_counter()
    encoder, (head, _) = build_encoder(params, meta, "float32"), networks.load(paths.HEAD)
    logits = read_head_report(len(load_split("train")) + len(load_split("val")), head.output_shape[1]).logits
    with build_plan(params, encoder, head, logits, meta, [], None) as plan:
        assert plan, "nothing is trained"
        result = plan.train(clock)
        plan.delete_checkpoints()
    return clock.seconds(), clock.ends[0] - start, result.history.kept["val_accuracy"]


def files(split: str, size: int) -> tf.data.Dataset:
    """Batches of the images of a split, which is a folder here."""
    return keras.utils.image_dataset_from_directory(split, image_size=(size, size), batch_size=32, verbose=False)


def waveforms(split: str, size: int, params: Params) -> tf.data.Dataset:
    """Batches of the recordings of a split, decoded once, each as long as its longest recording."""
    modality, examples = load_modality(), load_split(split)
    with open_examples(params.data, modality) as source:
        sounds = [modality.load(source.read(path), size) for path in examples.path]

    def whole_steps() -> Iterator[tuple[np.ndarray, int]]:
        for sound, target in zip(sounds, examples.target, strict=True):
            yield np.pad(sound, (0, -len(sound) % STEP)), target

    signature = tf.TensorSpec([None]), tf.TensorSpec([], tf.int32)
    return tf.data.Dataset.from_generator(whole_steps, output_signature=signature).shuffle(len(sounds)).padded_batch(32)


def plain_keras(params: Params, meta: FeaturesMeta) -> tuple[list[float], float, float]:
    """What the guides of Keras show."""
    clock, settings = Clock(), resolve_fine_tune(params.fine_tune, get_backbone(meta.backbone))
    encoder, (head, _) = build_encoder(params, meta, "float32"), networks.load(paths.HEAD)
    blocks = get_backbone(meta.backbone).blocks(encoder)
    trained = splitting.select_blocks(blocks, settings.unfreeze)
    splitting.set_trainable(encoder.get_layer(BACKBONE_LAYER), trained, 1)
    model = keras.Model(encoder.inputs, head(encoder.output))
    optimizer = keras.optimizers.Adam(settings.learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = (
        files(split, meta.size) if meta.kind == "image" else waveforms(split, meta.size, params)
        for split in ("train", "val")
    )
    train_set, val_set = (dataset.prefetch(tf.data.AUTOTUNE) for dataset in batches)
    history = model.fit(train_set, validation_data=val_set, epochs=EPOCHS, callbacks=[clock], verbose=0).history
    return clock.seconds(), 0.0, history["val_accuracy"][-1]


Way = Callable[[Params, FeaturesMeta], tuple[list[float], float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2")
    arguments = parser.parse_args()
    source = arguments.source.resolve()
    changes = [f"backbone={arguments.backbone}", f"data.source={json.dumps(str(source))}", "train_head.hidden=[]"]
    os.environ.pop("DVC_ROOT", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for stage in (prepare, extract, train_head):
            run(stage, changes)
        params, meta = load_params(), read_meta()
        for split in ("train", "val") if meta.kind == "image" else ():
            for image in load_split(split).itertuples():
                target = Path(split) / image.label / Path(image.path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / image.path, target)
        apply_overrides("params.yaml", [f"fine_tune.{change}" for change in PLAIN])
        params = load_params()
        examples = len(load_split("train"))
        times: dict[Way, list[float]] = {ours: [], plain_keras: []}
        accuracy: dict[Way, float] = {}
        before: list[float] = []
        for _ in range(TURNS):
            for way, took in times.items():
                seconds, start, accuracy[way] = way(params, meta)
                took += seconds
                before += [start] if start else []
        os.chdir(ROOT)
    rate = {way: statistics.median(took) for way, took in times.items()}
    print(
        f"{arguments.backbone} on {device_name()}, {examples} examples an epoch: {rate[ours]:.1f} s from activations, "
        f"{rate[plain_keras]:.1f} s through model.fit: {rate[plain_keras] / rate[ours]:.1f} times; val "
        f"accuracy {accuracy[ours]:.4f}, {accuracy[plain_keras]:.4f}; before the first epoch {before[0]:.0f} s, again "
        f"{statistics.median(before[1:]):.0f} s"
    )


if __name__ == "__main__":
    main()
