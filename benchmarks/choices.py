"""Test accuracy of the head, and time, for changes to the params of extract or train_head.

Command: python benchmarks/choices.py PHOTOS [CHANGE...] [--backbone mobilenetv2] [--seeds 10] [--set KEY=VALUE]...

A CHANGE is KEY=VALUE as `dvc exp run -S` takes it; --set applies to all of them. For each seed the images are split
anew, by the fractions of params.yaml, and a head is trained with each change. Differences are paired, split by split,
with their standard error. The seconds of extraction are those of computing everything, measured when it was computed.

For example, do hidden layers help with few images: 14 train and 3 val images of 160 per class (35 and 7: 0.04375 and
0.7375)?

    choices.py PHOTOS 'train_head.hidden=[]' 'train_head.hidden=[128]' --set prepare.split=exact
        --set prepare.near_distance=0 --set prepare.val_fraction=0.01875 --set prepare.test_fraction=0.89375
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HEADSTART_TRACKING"] = "off"

from dvc.utils.hydra import apply_overrides

from headstart import costs, paths
from headstart.config import Params, load_params
from headstart.framework import device_name
from headstart.training import heads, networks
from headstart.training.examples import load_features
from pipeline import extract, prepare, train_head

CHANGES = ("extract.views=2", "extract.views=8", "extract.storage=float16", "extract.precision=bfloat16")


def set_params(changes: list[str]) -> Params:
    """Write params.yaml of this repository with `changes` into the current folder."""
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    apply_overrides("params.yaml", changes)
    return load_params()


def run(stage: ModuleType, changes: list[str]) -> float:
    """Run a stage with `changes` to params.yaml; returns the seconds that it took."""
    set_params(changes)
    start = time.perf_counter()
    stage.main()
    return time.perf_counter() - start


def head_accuracy() -> float:
    head, _ = networks.load(paths.HEAD)
    test = load_features("test").prefix(head.input_shape[1])
    return float((heads.logits(head, test).argmax(axis=1) == test.targets).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("changes", nargs="*", default=CHANGES, metavar="CHANGE")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="always")
    arguments = parser.parse_args()
    source = f"data.source={json.dumps(str(arguments.photos.resolve()))}"
    chosen = [f"backbone={arguments.backbone}", source, *arguments.always]
    ways = ["params.yaml", *arguments.changes]
    accuracy: dict[str, list[float]] = {way: [] for way in ways}
    extracting, training = copy.deepcopy(accuracy), copy.deepcopy(accuracy)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.pop("DVC_ROOT", None)
        for seed in range(arguments.seeds):
            run(prepare, [*chosen, f"seed={seed}"])
            for way in ways:
                changes = [*chosen, f"seed={seed}", *([] if way == "params.yaml" else [way])]
                run(extract, changes)
                cost = costs.read("extract")
                extracting[way].append(cost["seconds"] + cost["seconds_saved"])
                training[way].append(run(train_head, changes))
                accuracy[way].append(head_accuracy())
        os.chdir(ROOT)
    print(f"\n{arguments.backbone} on {device_name()}, {arguments.seeds} splits")
    print(f"{'':<32} test accuracy    against params.yaml  extraction  training, a split")
    for way in ways:
        against = [a - b for a, b in zip(accuracy[way], accuracy["params.yaml"], strict=True)]
        error = statistics.stdev(against) / len(against) ** 0.5 if arguments.seeds > 1 else 0.0
        print(
            f"{way:<32} {statistics.mean(accuracy[way]):>13.4f}    {statistics.mean(against):>+8.4f} +- {error:.4f}  "
            f"{statistics.median(extracting[way]):>8.1f} s  {statistics.median(training[way]):>8.1f} s"
        )


if __name__ == "__main__":
    main()
