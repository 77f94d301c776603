"""Test accuracy and log loss against CPU seconds: this pipeline, and other ways to the same classifier.

Prints a Markdown table and draws a picture. Command:

    python benchmarks/frontier.py DATA [--per-class N] [--splits 5] [--settings head,quick,default,thorough]
        [--peers classic,guide,fastai] [--backbone mobilenetv2] [--set KEY=VALUE]... [--runs FILE]
        [--out docs/frontier.png]

DATA is a folder or an archive of class folders. For each split, `prepare` draws train, val and test, in exact
fractions and with the number of the split as its seed; every way is scored on the same test images. Our settings are
`dvc repro` in a fresh clone of HEAD, where nothing is cached:

head       fine_tune.unfreeze=none
quick      fine_tune.effort=quick
default    params.yaml as it is, but for the backbone, the data, the split and the seed
thorough   fine_tune.effort=thorough

Peers are the scripts in benchmarks/peers/, a process each, written as users of these tools would write them. They train
on train and val together; only fastai keeps val for validation. Where fastai or timm is not installed, it is skipped.

CPU seconds are user and system time of a process and of all that it started, from its start to its exit, scoring
included. For the log loss, probabilities below 1e-7 count as 1e-7, as in Keras. With --runs, each run is added to a
.csv file when it is done, and runs of the same images and --set (if ours: and of the same commit) are taken from it.
It needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
from dvc.utils.hydra import apply_overrides
from frontier_output import OURS, draw, markdown

from headstart.backbones import get_backbone
from headstart.backbones.keras_applications import KerasApplication
from headstart.config import load_params
from headstart.data.layouts import list_items
from headstart.data.sources import open_source
from headstart.errors import UserError
from headstart.machine import cores
from headstart.modalities import get_modality

SETTINGS = {
    "head": ["fine_tune.unfreeze=none"],
    "quick": ["fine_tune.effort=quick"],
    "default": [],
    "thorough": ["fine_tune.effort=thorough"],
}
PEERS = {  # the points of each, and the command that makes them
    "classic": {"classic recipe": ["classic.py"]},
    "guide": {"Keras guide, head": ["guide.py"], "Keras guide, fine-tuned": ["guide.py", "--fine-tune"]},
    "fastai": {"fastai, fine_tune(5)": ["fastai_learner.py"]},
}
NEEDED_BY_FASTAI = ("fastai", "timm")
READ_BY_ALL = (".jpg", ".jpeg", ".png", ".bmp")
SPLITS_OF = {"train": ["train", "train_val"], "val": ["val", "train_val"], "test": ["test"]}
SMALLEST = 1e-7  # probability


def measure(command: list[str], folder: Path) -> dict[str, float]:
    """Run `command` in `folder`; return its CPU seconds, with those of all that it waited for, and its wall seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "HEADSTART_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # the python of dvc.yaml
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=kept, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{output.read()}\n{' '.join(command)} failed")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": wall}


def score(probabilities: pd.DataFrame, labels: pd.Series, name: str) -> dict[str, float]:
    """Accuracy and log loss.

    Args:
        probabilities: a row per image and a column per class.
        labels: the class of each test image.
        name: whose predictions these are, for messages.
    """
    if set(probabilities.index) != set(labels.index) or not probabilities.index.is_unique:
        missing = sorted(set(labels.index) ^ set(probabilities.index))[:3]
        sys.exit(f"{name}: predictions are not those of the {len(labels)} test images, e.g. {', '.join(missing)}")
    probabilities = probabilities.loc[labels.index]
    columns = probabilities.columns.get_indexer(labels)
    if unknown := set(labels) - set(probabilities.columns):
        sys.exit(f"{name}: no probabilities of the class {min(unknown)}")
    true = probabilities.to_numpy()[np.arange(len(labels)), columns].clip(SMALLEST, 1)
    right = probabilities.to_numpy().argmax(axis=1) == columns
    return {"accuracy": float(right.mean()), "log_loss": float(-np.log(true).mean())}


def sample(source: str, count: int | None, folder: Path) -> str:
    """Copy `count` images of each class into folders of `folder`, or all; return what was copied, in words."""
    with open_source(source) as opened:
        items = list_items(opened, source, get_modality("image")).items
        classes = defaultdict(list)
        for item in items:
            if item.path.lower().endswith(READ_BY_ALL):
                classes[item.label].append(item.path)
        if others := len(items) - sum(map(len, classes.values())):
            print(f"left out, since Keras' loader reads only {', '.join(READ_BY_ALL)}: {others}", file=sys.stderr)
        total = 0
        for label, names in classes.items():
            (folder / label).mkdir(parents=True)
            chosen = random.Random(0).sample(names, min(count or len(names), len(names)))
            for number, name in enumerate(sorted(chosen)):
                (folder / label / f"{number:06}-{Path(name).name}").write_bytes(opened.read(name))
            total += len(chosen)
    return f"{Path(source).stem}: {total:,} images of {len(classes)} classes"


def git(*command: str) -> str:
    """Return what Git says about this repository."""
    return subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def clone(folder: Path, changes: list[str]) -> None:
    """Clone HEAD of this repository into `folder`, without any result, and change its params.yaml."""
    git("clone", "-q", str(ROOT), str(folder))
    (folder / "dvc.lock").unlink(missing_ok=True)
    try:
        apply_overrides(folder / "params.yaml", changes)
    except Exception as error:  # of several libraries, if there is no such key
        sys.exit(
            f"params.yaml of HEAD does not take {', '.join(changes)}: {str(error.__cause__ or error).splitlines()[0]}"
        )


def split_images(images: Path, scratch: Path, changes: list[str]) -> pd.Series:
    """Let `prepare` split `images`, link them into scratch/{train,val,train_val,test}/CLASS; return the test labels."""
    clone(scratch / "prepared", changes)
    measure([sys.executable, "-m", "pipeline", "prepare"], scratch / "prepared")
    manifest = pd.read_parquet(scratch / "prepared/data/prepared/manifest.parquet")
    for path, split in zip(manifest.path, manifest.split, strict=True):
        for name in SPLITS_OF[split]:
            (scratch / name / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(images / path, scratch / name / path)
    return manifest[manifest.split == "test"].set_index("path").label


def our_run(folder: Path, changes: list[str], labels: pd.Series) -> dict[str, float]:
    """Run the whole pipeline in a new `folder`; return what it took and its score."""
    clone(folder, changes)
    took = measure([sys.executable, "-m", "dvc", "repro"], folder)
    table = pd.read_csv(folder / "predictions/test.csv", index_col="path", keep_default_na=False)
    probabilities = table.filter(regex="^p_").rename(columns=lambda name: name.removeprefix("p_"))
    shutil.rmtree(folder)
    return took | score(probabilities, labels, "evaluate")


def peer_run(folder: Path, command: list[str], labels: pd.Series) -> dict[str, float]:
    """Run the script of a peer on the images in `folder`; returns as `our_run`."""
    script, *options = command
    file = str(folder / "peer.csv")
    took = measure([sys.executable, str(ROOT / "benchmarks/peers" / script), str(folder), file, *options], folder)
    return took | score(pd.read_csv(file, index_col=0), labels, script)


def some_of(known: Iterable[str], text: str) -> list[str]:
    """Return the names in `text`, between commas; argparse shows the error if one is unknown."""
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
    return names


class Runs:
    """The runs so far, a row each; kept in a .csv file if one is named, which may hold those of other tasks, too."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._kept = pd.read_csv(file, keep_default_na=False) if file and file.exists() else pd.DataFrame()
        self.table = pd.DataFrame()

    def add(self, key: dict[str, str | int], run: Callable[[], dict[str, float]]) -> None:
        """Add the run that `key` names; it runs if the file does not hold it."""
        kept = self._kept
        for column, value in key.items():
            kept = kept[kept[column] == value] if len(kept) else kept
        row = kept[:1] if len(kept) else pd.DataFrame([{**key, **run()}])
        if self._file and kept.empty:
            row.to_csv(self._file, mode="a", index=False, header=not self._file.exists())
        self.table = pd.concat([self.table, row], ignore_index=True)
        found = row.iloc[0]
        print(
            f"split {found['split']}, {found['name']}: accuracy {found.accuracy:.4f}, log loss {found.log_loss:.4f}, "
            f"{found.cpu_s:.1f} CPU s, {found.wall_s:.1f} s{'' if kept.empty else '; kept'}",
            file=sys.stderr,
            flush=True,
        )


def main() -> None:
    """Run everything, print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="a folder or an archive of class folders")
    parser.add_argument("--per-class", type=int, metavar="N", help="images of each class; default: all")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--settings", default=",".join(SETTINGS), type=partial(some_of, SETTINGS))
    parser.add_argument("--peers", default=",".join(PEERS), type=partial(some_of, PEERS))
    parser.add_argument("--backbone", default="mobilenetv2", help="with ImageNet weights; default: mobilenetv2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--runs", type=Path, metavar="FILE", help="a .csv file that keeps the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/frontier.png")
    arguments = parser.parse_args()
    settings, peers = arguments.settings, arguments.peers
    backbone = get_backbone(arguments.backbone)
    if not isinstance(backbone, KerasApplication) or backbone.arguments:
        parser.error(f"--backbone must be a network of keras.applications, got {arguments.backbone}")
    if "fastai" in peers and not all(map(importlib.util.find_spec, NEEDED_BY_FASTAI)):
        print(f"fastai is skipped: it takes {' and '.join(NEEDED_BY_FASTAI)} to be installed", file=sys.stderr)
        peers = [peer for peer in peers if peer != "fastai"]
    if arguments.splits < 1 or not [*settings, *peers]:
        parser.error("nothing to run: name at least one split, and one setting or peer")
    network = ["--network", f"{backbone.module}.{backbone.constructor}", "--size", str(backbone.default_size)]
    commit = git("rev-parse", "HEAD").strip()
    if git("status", "--porcelain", "--untracked-files=no"):
        print("HEAD is measured; changes that are not committed are left out", file=sys.stderr)
    runs = Runs(arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        title = f"{sample(arguments.data, arguments.per_class, images)}, {arguments.backbone}"
        ours = [f"backbone={arguments.backbone}", f"data.source={images}", "prepare.split=exact", *arguments.changes]
        for setting in settings:  # a mistake in them ends this before anything runs
            clone(Path(folder) / setting, [*ours, *SETTINGS[setting]])
            load_params(Path(folder) / setting / "params.yaml")
        for split in range(arguments.splits):
            place, changes = Path(folder) / str(split), [*ours, f"seed={split}"]
            labels = split_images(images, place, changes)
            ways: dict[str, Callable[[], dict[str, float]]] = {}
            for peer in peers:
                for name, command in PEERS[peer].items():
                    ways[name] = partial(peer_run, place, [*command, *network, "--seed", str(split)], labels)
            for setting in settings:
                ways[OURS + setting] = partial(our_run, place / setting, [*changes, *SETTINGS[setting]], labels)
            for name, way in ways.items():
                made_by = " ".join([commit if name.startswith(OURS) else "", *arguments.changes]).strip()
                runs.add({"task": title, "made_by": made_by, "split": split, "name": name}, way)
            shutil.rmtree(place)
    print(markdown(runs.table))
    spread = f"means and standard deviations of {arguments.splits} splits" if arguments.splits > 1 else "one split"
    draw(runs.table, f"{title}, {cores()} CPU cores; {spread}", arguments.out)
    print(f"{arguments.out}: the picture", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
