"""Memory and speed of training heads, which maps features into memory and does not load them.

Command: python benchmarks/head.py memory [200000]    # makes that many rows of features in a temporary folder
         python benchmarks/head.py speed              # 10 epochs on 3,000 rows, against plain model.fit, in turns
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from headstart.config import load_params
from headstart.framework import device_name, keras
from headstart.training import examples, heads, networks
from headstart.training.head_settings import resolve_head

FEATURES, CLASSES, ROUNDS = 1280, 100, 5


def speed() -> None:
    """The same updates by heads.train and by what a Keras user writes, with their compilation, in turns."""
    rows, epochs, classes = 3000, 10, 5
    random = np.random.default_rng(0)
    targets = random.integers(0, classes, 2 * rows).astype(np.int32)
    features = random.normal(size=(classes, FEATURES))[targets] + 12 * random.normal(size=(2 * rows, FEATURES))
    features = features.astype(np.float32)
    views = np.empty((rows, 0, FEATURES), np.float32)
    train_set = examples.FeatureSet(features[:rows], targets[:rows], views)
    val_set = examples.FeatureSet(features[rows:], targets[rows:], views)
    choice = load_params(ROOT / "params.yaml").train_head.choice(hidden=[128], epochs=epochs, batch_size=32)
    choice = resolve_head(choice, classes)

    def plain() -> float:
        keras.utils.set_random_seed(0)
        head = networks.build_head(FEATURES, classes, choice.hidden, choice.activation, False, choice.dropout)
        head.compile(
            keras.optimizers.Adam(choice.learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        judged = (val_set.features, val_set.targets)
        fitted = head.fit(train_set.features, train_set.targets, 32, epochs, validation_data=judged, verbose=0)
        return min(fitted.history["val_loss"])

    def ours() -> float:
        return heads.train(train_set, val_set, classes, choice, 0, progress=False)[1].kept["val_loss"]

    times: dict[Callable[[], float], list[float]] = {plain: [], ours: []}
    losses = {}
    for _ in range(ROUNDS):
        for way, took in times.items():
            start = time.perf_counter()
            losses[way] = way()
            took.append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(times[plain], times[ours], strict=True))
    print(
        f"{device_name()}: {epochs} epochs on {rows:,} x {FEATURES:,}, median of {ROUNDS}: model.fit "
        f"{statistics.median(times[plain]):.1f} s, ours {statistics.median(times[ours]):.1f} s ({ratio:.1f} times), "
        f"val loss {losses[plain]:.4f}, {losses[ours]:.4f}"
    )


def memory(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("pipeline", "headstart"):
            os.symlink(ROOT / name, root / name)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["train_head"] |= {"epochs": 2}
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        (root / "data" / "prepared").mkdir(parents=True)
        (root / "features").mkdir()
        generator = np.random.default_rng(0)
        targets = generator.integers(0, CLASSES, rows)
        split = np.where(np.arange(rows) % 10 < 8, "train", np.where(np.arange(rows) % 10 < 9, "val", "test"))
        manifest = pd.DataFrame({"path": [f"{row:09}.jpg" for row in range(rows)], "label": targets.astype(str)})
        manifest = manifest.assign(split=split, connected=manifest.path)
        manifest.to_parquet(root / "data" / "prepared" / "manifest.parquet")
        classes = sorted(map(str, range(CLASSES)))
        (root / "data" / "prepared" / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
        centres = generator.normal(size=(CLASSES, FEATURES)).astype(np.float32)
        for name in ("train", "val", "test"):
            labels = targets[split == name]
            shape = (len(labels), FEATURES)
            file = np.lib.format.open_memmap(root / "features" / f"{name}.npy", "w+", np.float32, shape)
            for start in range(0, len(labels), 10_000):
                some = labels[start : start + 10_000]
                file[start : start + 10_000] = centres[some] + 3 * generator.normal(size=(len(some), FEATURES))
            file.flush()
            if name == "train":
                np.save(root / "features" / "train_views.npy", np.zeros((len(labels), 0, FEATURES), np.float32))
            del file
        size = sum(file.stat().st_size for file in (root / "features").iterdir())
        code = (
            "import resource; from pipeline import train_head; train_head.main(); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
        )
        began, environment = time.perf_counter(), {**os.environ, "HEADSTART_TRACKING": "off"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True)
        print(done.stdout)
        print(
            f"{rows:,} rows, {size / 2**30:.2f} GiB of features: {float(done.stdout.split()[-1]):.2f} GiB of memory at "
            f"most, two epochs in {time.perf_counter() - began:.0f} s"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["speed"]:
        speed()
    else:
        memory(int(sys.argv[2]) if len(sys.argv) > 2 else 200_000)
