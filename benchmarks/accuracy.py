"""Accuracy, log loss and calibration on test of heads and of fine-tuning, over several splits of the same images.

Command: python benchmarks/accuracy.py SOURCE[:IMAGES_A_CLASS]... [--backbone NAME] [--seeds 5] [--heads]
    [--set KEY=VALUE]...

A SOURCE is a folder or a .zip of class folders. For each seed the images are split, exactly, by params.yaml; then:

linear     train_head.hidden=[]: logistic regression on the last layer, with one decay for all; val fits the temperature
recipe     train_head.hidden=[128]: 20 epochs of Adam; val chooses the epoch and the temperature
sklearn    LogisticRegressionCV of scikit-learn on the last layer's features of train and val, by log loss
head       what train_head makes by params.yaml
textbook   from a linear head, the last four blocks by compile and fit: Adam(1e-4), no augmentation, as many epochs
tuned      what fine_tune trains by params.yaml, before it is refitted on train and val; else the head
final      what it ships

With --heads fine-tuning is left out. A difference is a mean over the seeds, paired, with its standard error. ECE is the
expected calibration error on the test images of all seeds together; by chance: the mean error of a network that is as
sure, and right just as often.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as pipeline.fine_tune has it, but for tiny

import numpy as np
import pandas as pd
from choices import run, set_params
from paired import difference, spread
from scipy.special import softmax
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold

from headstart import paths
from headstart.backbones import get_backbone, splitting
from headstart.backbones.base import BACKBONE_LAYER
from headstart.config import load_params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_classes, load_split
from headstart.errors import UserError
from headstart.features_meta import read_meta
from headstart.framework import device_name, keras, make_repeatable
from headstart.modalities import load_modality
from headstart.modalities.loading import read_batches
from headstart.training import calibration, defaults, heads, networks, selection
from headstart.training.examples import concat, load_features
from headstart.training.folds import load_folds
from headstart.training.head_report import read_head_report
from headstart.training.planning import build_encoder, build_plan
from headstart.training.saved_head import start_head
from pipeline import extract, prepare, train_head

HEADS = ("linear", "recipe", "sklearn", "head")
WAYS = (*HEADS, "textbook", "tuned", "final")
TEXTBOOK_BLOCKS, TEXTBOOK_RATE = 4, 1e-4


def sample(source: Path, count: int | None, folder: Path) -> int:
    """Copy `count` images a class of the source into `folder`, or all; returns how many."""
    if source.is_dir():
        files = {file.relative_to(source).as_posix(): file.read_bytes for file in source.rglob("*") if file.is_file()}
    else:
        archive = zipfile.ZipFile(source)
        files = {name: partial(archive.read, name) for name in archive.namelist() if not name.endswith("/")}
    classes: dict[str, list[str]] = {}
    for name in sorted(files):
        if name.lower().endswith((".jpg", ".jpeg", ".png")):
            classes.setdefault(Path(name).parent.name, []).append(name)
    chosen = [
        name for names in classes.values() for name in random.Random(0).sample(names, min(count or 10**9, len(names)))
    ]
    for name in chosen:
        target = folder / Path(name).parent.name / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[name]())
    return len(chosen)


def outputs_for(network: keras.Model, examples: pd.DataFrame, size: int) -> np.ndarray:
    """What `network` gives for examples of the manifest, in their order."""
    params = load_params()
    modality = load_modality()
    with open_examples(params.data, modality) as source:
        rows = (list(examples.path), list(examples.file_hash))
        batches = read_batches(source, modality, *rows, size, 32)
        return np.concatenate([networks.predict(network, batch, 32) for batch in batches])


def test_logits(encoder: keras.Model, head: keras.Model, size: int) -> np.ndarray:
    """Logits of the test images, by the network as it is."""
    network = keras.Model(encoder.input, networks.without_softmax(head)(encoder.output))
    return outputs_for(network, load_split("test"), size)


def head_logits() -> np.ndarray:
    """Logits of the test images by the head that train_head wrote."""
    head, _ = networks.load(paths.HEAD)
    return heads.logits(head, load_features("test").prefix(head.input_shape[1]))


def sklearn_logits(seed: int) -> np.ndarray:
    """Logits of the test images by scikit-learn, with C by cross-validation."""
    dim = read_meta().dim("last")
    train_set, test = (
        concat(load_features("train"), load_features("val")).prefix(dim),
        load_features("test").prefix(dim),
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = LogisticRegressionCV(Cs=np.logspace(-4, 2, 13), cv=folds, scoring="neg_log_loss", max_iter=1000)
    scores = model.fit(train_set.features, train_set.targets).decision_function(test.features)
    return scores if scores.ndim > 1 else np.stack([np.zeros_like(scores), scores], axis=1)


def textbook_logits(changes: list[str]) -> tuple[np.ndarray, float]:
    """Logits of the test images by compile and fit, and its seconds; the frozen part runs once here, too."""
    params, meta = set_params(changes), read_meta()
    make_repeatable(params.seed)
    encoder, (head, _) = build_encoder(params, meta, "float32"), networks.load(paths.HEAD)
    base, train_set = encoder.get_layer(BACKBONE_LAYER), load_split("train")
    trained = splitting.select_blocks(get_backbone(meta.backbone).blocks(encoder), TEXTBOOK_BLOCKS)
    splitting.set_trainable(base, trained, 1)
    split = splitting.find_split(base, trained, 0)
    assert split, "nothing is frozen"
    lower, upper = splitting.lower_model(encoder, split), splitting.upper_model(encoder, split)
    start = {tensor.name: keras.Input(tensor.shape[1:], name=tensor.name) for tensor in upper.inputs}
    network = keras.Model(start, networks.without_softmax(head)(upper(start)))
    epochs, _ = defaults.choose_schedule(params.fine_tune, len(train_set))
    network.compile(keras.optimizers.Adam(TEXTBOOK_RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    activations = split.unpack(outputs_for(lower, train_set, meta.size))
    clock = time.perf_counter()
    network.fit(activations, train_set.target.to_numpy(), params.fine_tune.batch_size, epochs, verbose=0)
    return test_logits(encoder, head, meta.size), time.perf_counter() - clock


def tuned_logits(changes: list[str]) -> tuple[np.ndarray | None, np.ndarray | None, float]:
    """Logits of the test images by the network before it is refitted, and by the one that is shipped; seconds.

    Each is None if there is no such network.
    """
    params, meta = set_params(changes), read_meta()
    start = time.perf_counter()
    make_repeatable(params.seed)
    found, tuned = read_head_report(len(load_split("train")) + len(load_split("val")), len(load_classes())), None
    targets = np.concatenate([load_split(name).target for name in ("train", "val")])
    if not params.fine_tune.asked_for() and found.nothing_to_gain(targets):
        return None, None, time.perf_counter() - start
    last = meta.dim("last")
    encoder = build_encoder(params, meta, params.fine_tune.precision)
    head = start_head(found, last, params.seed)
    folds = load_folds(params.fine_tune, found, last, params.seed)
    with build_plan(params, encoder, head, found.logits, meta, folds, None) as plan:
        assert plan, "nothing is trained"
        result = selection.fine_tune(replace(plan, refits=False), lambda _: None)
        tuned = test_logits(encoder, head, meta.size) / result.temperature
        if result.better and plan.refits:
            plan.refit(result.trained)
        plan.delete_checkpoints()
    seconds = time.perf_counter() - start
    return tuned, test_logits(encoder, head, meta.size) / result.temperature if result.better else None, seconds


def one_split(changes: list[str], heads_only: bool) -> tuple[dict[str, np.ndarray], np.ndarray, str, dict[str, float]]:
    """The logits of test by each way, the targets, what is shipped, and seconds."""
    run(prepare, changes)
    run(extract, changes)
    found, targets, seconds = {}, load_features("test").targets, {}
    run(train_head, [*changes, "train_head.hidden=[128]"])
    found["recipe"] = head_logits()
    found["sklearn"] = sklearn_logits(load_params().seed)
    run(train_head, [*changes, "train_head.hidden=[]"])
    found["linear"] = head_logits()
    if not heads_only:
        found["textbook"], seconds["textbook"] = textbook_logits(changes)
    seconds["head"] = run(train_head, changes)
    found["head"] = head_logits()
    choice = json.loads(paths.report("train_head").read_text(encoding="utf-8"))["choice"].get("head", "")
    if not heads_only:
        tuned, shipped, seconds["tuned"] = tuned_logits(changes)
        found["tuned"] = found["head"] if tuned is None else tuned
        found["final"] = found["head"] if shipped is None else shipped
        choice += ", nothing tuned" if tuned is None else ", not shipped" if shipped is None else ", shipped"
    return found, targets, choice, seconds


def ece(judged: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The calibration error of logits for targets, and that by chance."""
    probabilities = np.concatenate([softmax(logits, axis=1) for logits, _ in judged])
    targets = np.concatenate([targets for _, targets in judged])
    sure = probabilities.max(axis=1)
    draws = np.random.default_rng(0).random((200, len(sure)))
    by_chance = np.mean([calibration.expected_calibration_error(sure, draw < sure) for draw in draws])
    return calibration.calibration_error(probabilities, targets), float(by_chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE[:IMAGES_A_CLASS]")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--heads", action="store_true")
    arguments = parser.parse_args()
    ways = HEADS if arguments.heads else WAYS
    os.environ.pop("DVC_ROOT", None)
    print(f"{arguments.backbone} on {device_name()}, {arguments.seeds} splits; on test, mean and deviation", flush=True)
    for text in arguments.sources:
        name, _, count = text.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            images = sample(Path(name).resolve(), int(count) if count else None, Path(folder) / "images")
            os.chdir(folder)
            accuracy: dict[str, list[float]] = {way: [] for way in ways}
            losses: dict[str, list[float]] = {way: [] for way in ways}
            seconds: list[dict[str, float]] = []
            judged: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {way: [] for way in ways}
            for seed in range(arguments.seeds):
                changes = [f"backbone={arguments.backbone}", "data.source=images", "prepare.split=exact"]
                changes += [f"seed={seed}", *arguments.changes]
                with contextlib.redirect_stdout(io.StringIO()):
                    found, targets, choice, took = one_split(changes, arguments.heads)
                seconds.append(took)
                for way in ways:
                    accuracy[way].append(float((found[way].argmax(axis=1) == targets).mean()))
                    losses[way].append(float(calibration.log_loss(found[way], targets).mean()))
                    judged[way].append((found[way], targets))
                print(
                    f"{text}, seed {seed}: "
                    + ", ".join(f"{way} {accuracy[way][-1]:.4f} / {losses[way][-1]:.4f}" for way in ways)
                    + f"; {choice}; seconds: "
                    + ", ".join(f"{way} {value:.0f}" for way, value in took.items()),
                    file=sys.stderr,
                    flush=True,
                )
            os.chdir(ROOT)
        print(f"\n{Path(name).stem}{':' + count if count else ''}, {images:,} images")
        print(f"{'':<10} {'accuracy':>16} {'- head':>16} {'log loss':>16} {'- head':>16}     ECE by chance  seconds")
        for way in ways:
            error, by_chance = ece(judged[way])
            middle = f"{statistics.median(each[way] for each in seconds):8.0f}" if way in seconds[0] else ""
            print(
                f"{way:<10} {spread(accuracy[way]):>16} {difference(accuracy[way], accuracy['head']):>16} "
                f"{spread(losses[way]):>16} {difference(losses[way], losses['head']):>16}  {error:.4f}    "
                f"{by_chance:.4f} {middle}",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:  # e.g. weights that are not here
        sys.exit(str(error))
