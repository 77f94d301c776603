"""What augmented views in the feature store are worth: the head's accuracy, and the time, for several numbers of them.

Command: python benchmarks/views.py PHOTOS [BACKBONE] [--views 0 2 8] [--seeds 10]

For each seed the images are split anew, by the fractions of params.yaml, and its head is trained on each number of
views. The store is empty at the start: the seconds of extraction are those of computing everything once. Differences
are paired, split by split, with their standard error.
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
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from dvc.utils.hydra import apply_overrides  # noqa: E402

from pipeline import extract, networks, paths, prepare, train_head  # noqa: E402
from pipeline.dataset import FeatureBatches, load_features, load_split  # noqa: E402
from pipeline.engine import device_name  # noqa: E402
from pipeline.outputs import Outputs  # noqa: E402
from pipeline.params import load_params  # noqa: E402


def run(stage, changes: dict) -> float:
    """Seconds that the stage took with params.yaml of this repository and `changes`, by dotted key."""
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    apply_overrides("params.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    outputs, start = Outputs(), time.perf_counter()
    stage.main(load_params(), outputs)
    outputs.commit()
    return time.perf_counter() - start


def head_accuracy() -> float:
    head, _ = networks.load(paths.HEAD)
    test = load_split("test")
    batches = FeatureBatches(load_features("test", len(test)), test.target.to_numpy(), 256)
    return float((head.predict(batches, verbose=0).argmax(axis=1) == test.target).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("backbone", nargs="?", default="mobilenetv2")
    parser.add_argument("--views", type=int, nargs="+", default=[0, 2, 8])
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    chosen = {"backbone": arguments.backbone, "data.source": str(arguments.photos.resolve())}
    accuracy = {views: [] for views in arguments.views}
    extracting, training, computed = dict.fromkeys(arguments.views, 0.0), {views: [] for views in arguments.views}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.pop("DVC_ROOT", None)
        for seed in range(arguments.seeds):
            run(prepare, {**chosen, "seed": seed})
            for views in sorted(arguments.views):
                changes = {**chosen, "seed": seed, "extract.views": views}
                run(extract, changes)
                if seed == 0:
                    computed += json.loads(paths.metrics("extract").read_text())["seconds"]
                    extracting[views] = computed
                training[views].append(run(train_head, changes))
                accuracy[views].append(head_accuracy())
        os.chdir(ROOT)
    print(f"\n{arguments.backbone} on {device_name()}, {arguments.seeds} splits")
    print("views  test accuracy  against the fewest  extraction  training, a split")
    fewest = accuracy[min(arguments.views)]
    for views in sorted(arguments.views):
        against = [a - b for a, b in zip(accuracy[views], fewest, strict=True)]
        error = statistics.stdev(against) / len(against) ** 0.5 if arguments.seeds > 1 else 0.0
        print(
            f"{views:>5}  {statistics.mean(accuracy[views]):>13.4f}  {statistics.mean(against):>+8.4f} +- {error:.4f}  "
            f"{extracting[views]:>8.1f} s  {statistics.mean(training[views]):>8.1f} s"
        )


if __name__ == "__main__":
    main()
