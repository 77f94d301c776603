"""An epoch of fine-tuning from cached activations, against the same layers by model.fit from files, in turns.

Command: python benchmarks/trunk_cache.py PHOTOS [--backbone mobilenetv2]

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
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as pipeline.fine_tune has it, but for tiny

from choices import run
from dvc.utils.hydra import apply_overrides

from headstart import paths
from headstart.backbones import get_backbone, splitting
from headstart.backbones.base import BACKBONE_LAYER
from headstart.config import Params, load_params
from headstart.data.prepared import load_split
from headstart.features_meta import FeaturesMeta, read_meta
from headstart.framework import device_name, keras, tf
from headstart.training import networks
from headstart.training.head_report import read_head_report
from headstart.training.planning import build_encoder, build_plan
from pipeline import extract, prepare, train_head

EPOCHS, TURNS = 4, 3
PLAIN = ["crop=1", "flip=false", "jitter=0", "mixup=0", f"epochs={EPOCHS}", "trunk_cache=on", "refit=false"]


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


def plain_keras(params: Params, meta: FeaturesMeta) -> tuple[list[float], float, float]:
    """What the guides of Keras show, from files."""
    size, clock = meta.size, Clock()
    encoder, (head, _) = build_encoder(params, meta, "float32"), networks.load(paths.HEAD)
    blocks = get_backbone(meta.backbone).blocks(encoder)
    trained = splitting.select_blocks(blocks, params.fine_tune.unfreeze)
    splitting.set_trainable(encoder.get_layer(BACKBONE_LAYER), trained, 1)
    model = keras.Model(encoder.inputs, head(encoder.output))
    model.compile(
        keras.optimizers.Adam(params.fine_tune.learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    train_set, val_set = (
        keras.utils.image_dataset_from_directory(split, image_size=(size, size), batch_size=32, verbose=False).prefetch(
            tf.data.AUTOTUNE
        )
        for split in ("train", "val")
    )
    history = model.fit(train_set, validation_data=val_set, epochs=EPOCHS, callbacks=[clock], verbose=0).history
    return clock.seconds(), 0.0, history["val_accuracy"][-1]


Way = Callable[[Params, FeaturesMeta], tuple[list[float], float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2")
    arguments = parser.parse_args()
    source = arguments.photos.resolve()
    changes = [f"backbone={arguments.backbone}", f"data.source={json.dumps(str(source))}"]
    os.environ.pop("DVC_ROOT", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for stage in (prepare, extract, train_head):
            run(stage, changes)
        for split in ("train", "val"):
            for image in load_split(split).itertuples():
                target = Path(split) / image.label / Path(image.path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / image.path, target)
        apply_overrides("params.yaml", [f"fine_tune.{change}" for change in PLAIN])
        params, meta = load_params(), read_meta()
        images = len(load_split("train"))
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
        f"{arguments.backbone} on {device_name()}, {images} images an epoch: {rate[ours]:.1f} s from activations, "
        f"{rate[plain_keras]:.1f} s through model.fit from files: {rate[plain_keras] / rate[ours]:.1f} times; val "
        f"accuracy {accuracy[ours]:.4f}, {accuracy[plain_keras]:.4f}; before the first epoch {before[0]:.0f} s, again "
        f"{statistics.median(before[1:]):.0f} s"
    )


if __name__ == "__main__":
    main()
