"""Test accuracy of heads and of fine-tuning, over several splits of the same images.

Command: python benchmarks/accuracy.py SOURCE[:IMAGES_A_CLASS]... [--backbone NAME] [--seeds 5] [--cosine]
    [--set KEY=VALUE]...

A SOURCE is a folder or a .zip of class folders. For each seed the images are split, exactly, by params.yaml; then:

linear     a linear head, by params.yaml
sklearn    LogisticRegression of scikit-learn on the same features, with the C that means the same
head       what train_head makes by params.yaml
textbook   from that head, the last four blocks by compile and fit: Adam(1e-4), no augmentation, as many epochs
cosine     with --cosine: the same with a learning rate that a cosine decays to zero
tuned      what fine_tune trains on train by params.yaml
final      what it ships: the same refitted on train and val, if val or folds say that tuned is better than the head;
           else the head

A difference is a mean over the seeds, paired, with its standard error. ECE is the expected calibration error of `final`
on the test images of all seeds together; by chance: the mean error of a network that is as sure, and right just as
often.
"""

from __future__ import annotations

import argparse
import contextlib
import io
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
from sklearn.linear_model import LogisticRegression

from headstart import paths
from headstart.backbones import get_backbone, splitting
from headstart.backbones.base import BACKBONE_LAYER
from headstart.config import load_params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_classes, load_reading, load_split
from headstart.errors import UserError
from headstart.features.encoding import read_meta
from headstart.framework import device_name, keras, make_repeatable
from headstart.modalities import get_modality
from headstart.modalities.loading import read_batches
from headstart.training import calibration, defaults, heads, networks, selection
from headstart.training.examples import load_features
from headstart.training.head_settings import linear_decay
from headstart.training.planning import build_encoder, build_plan
from pipeline import extract, fine_tune, prepare, train_head

WAYS = ("linear", "sklearn", "head", "textbook", "tuned", "final")
GAINS = (("final", "head"), ("tuned", "textbook"), ("final", "textbook"))
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
    modality = get_modality(params.data.kind, load_reading())
    with open_examples(params.data, modality) as source:
        rows = (list(examples.path), list(examples.file_hash))
        batches = read_batches(source, modality, *rows, size, 32)
        return np.concatenate([networks.predict(network, batch, 32) for batch in batches])


def test_logits(encoder: keras.Model, head: keras.Model, size: int) -> np.ndarray:
    """Logits of the test images, by the network as it is."""
    network = keras.Model(encoder.input, networks.without_softmax(head)(encoder.output))
    return outputs_for(network, load_split("test"), size)


def textbook_logits(changes: list[str], cosine: bool) -> tuple[np.ndarray, float]:
    """Logits of the test images by compile and fit, and its seconds; the frozen part runs once here, too.

    Args:
        cosine: whether the learning rate decays; else it stays.
    """
    params, meta = set_params(changes), read_meta()
    make_repeatable(params.seed)
    encoder, (head, _) = build_encoder(params, meta, "float32"), networks.load(paths.HEAD)
    base, train_set = encoder.get_layer(BACKBONE_LAYER), load_split("train")
    trained = splitting.select_blocks(get_backbone(params.backbone).blocks(encoder), TEXTBOOK_BLOCKS)
    splitting.set_trainable(base, trained, 1)
    split = splitting.find_split(base, trained)
    assert split, "nothing is frozen"
    lower, upper = splitting.lower_model(encoder, split), splitting.upper_model(encoder, split)
    start = {tensor.name: keras.Input(tensor.shape[1:], name=tensor.name) for tensor in upper.inputs}
    network = keras.Model(start, networks.without_softmax(head)(upper(start)))
    epochs, _ = defaults.choose_schedule(params.fine_tune, len(train_set))
    batch_size = params.fine_tune.batch_size
    steps = epochs * -(-len(train_set) // batch_size)
    rate = keras.optimizers.schedules.CosineDecay(TEXTBOOK_RATE, steps) if cosine else TEXTBOOK_RATE
    network.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    activations = split.unpack(outputs_for(lower, train_set, meta.size))
    clock = time.perf_counter()
    network.fit(activations, train_set.target.to_numpy(), batch_size, epochs, verbose=0)
    seconds = time.perf_counter() - clock
    return test_logits(encoder, head, meta.size), seconds


def tuned_logits(changes: list[str]) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Logits of the test images, by the network trained on train and by the one that is shipped, if any; seconds."""
    params, meta = set_params(changes), read_meta()
    start = time.perf_counter()
    make_repeatable(params.seed)
    encoder, (head, classes) = build_encoder(params, meta, params.fine_tune.precision), networks.load(paths.HEAD)
    folds = fine_tune.load_folds(params, len(classes))
    with build_plan(params, encoder, head, meta, folds, None) as plan:
        assert plan, "nothing is trained"
        once = replace(plan, refits=False)
        result = selection.fine_tune(once, lambda _: None)
        tuned = test_logits(encoder, head, meta.size) / result.temperature
        if result.better and result.finished and plan.refits:
            plan.refit(result.trained)
        plan.delete_checkpoints()
    seconds = time.perf_counter() - start
    shipped = test_logits(encoder, head, meta.size) / result.temperature if result.better else None
    return tuned, shipped, seconds


def one_split(changes: list[str], cosine: bool) -> tuple[dict[str, np.ndarray], np.ndarray, bool, dict[str, float]]:
    """The logits of test by each way, the targets, whether the tuned network is shipped, and seconds."""
    run(prepare, changes)
    run(extract, changes)
    found, test, train_set = {}, load_features("test"), load_features("train")
    run(train_head, [*changes, "train_head.hidden=[]"])
    found["linear"] = heads.logits(networks.load(paths.HEAD)[0], test)
    other = LogisticRegression(C=1 / (linear_decay(len(load_classes())) * len(train_set)), max_iter=1000)
    scores = other.fit(train_set.features, train_set.targets).decision_function(test.features)
    found["sklearn"] = scores if scores.ndim > 1 else np.stack([-scores, scores], axis=1)
    seconds = {"head": run(train_head, changes)}
    found["head"] = heads.logits(networks.load(paths.HEAD)[0], test)
    for way in ("textbook", "cosine")[: 1 + cosine]:
        found[way], seconds[way] = textbook_logits(changes, cosine=way == "cosine")
    found["tuned"], shipped, seconds["tuned"] = tuned_logits(changes)
    found["final"] = found["head"] if shipped is None else shipped
    return found, test.targets, shipped is not None, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE[:IMAGES_A_CLASS]")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--cosine", action="store_true")
    arguments = parser.parse_args()
    ways, pairs = (*WAYS, *["cosine"] * arguments.cosine), (*GAINS, *[("final", "cosine")] * arguments.cosine)
    os.environ.pop("DVC_ROOT", None)
    print(f"{arguments.backbone} on {device_name()}, {arguments.seeds} splits; test accuracy, mean and deviation")
    print(
        f"{'':<24} "
        + " ".join(f"{way:>15}" for way in ways)
        + "".join(f" {f'{one} - {other}':>16}" for one, other in pairs)
        + "  shipped   ECE by chance",
        flush=True,
    )
    for text in arguments.sources:
        name, _, count = text.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            images = sample(Path(name).resolve(), int(count) if count else None, Path(folder) / "images")
            os.chdir(folder)
            accuracy: dict[str, list[float]] = {way: [] for way in ways}
            seconds, shipped, judged = [], 0, []
            for seed in range(arguments.seeds):
                changes = [f"backbone={arguments.backbone}", "data.source=images", "prepare.split=exact"]
                changes += [f"seed={seed}", *arguments.changes]
                with contextlib.redirect_stdout(io.StringIO()):
                    found, targets, better, took = one_split(changes, arguments.cosine)
                shipped += better
                seconds.append(took)
                judged.append((found["final"], targets))
                for way in ways:
                    accuracy[way].append(float((found[way].argmax(axis=1) == targets).mean()))
                print(
                    f"{text}, seed {seed}: "
                    + ", ".join(f"{way} {values[-1]:.4f}" for way, values in accuracy.items())
                    + f"; {'shipped' if better else 'not shipped'}; seconds: "
                    + ", ".join(f"{way} {value:.0f}" for way, value in took.items()),
                    file=sys.stderr,
                    flush=True,
                )
            os.chdir(ROOT)
        probabilities = np.concatenate([softmax(logits, axis=1) for logits, _ in judged])
        targets = np.concatenate([targets for _, targets in judged])
        error, sure = calibration.calibration_error(probabilities, targets), probabilities.max(axis=1)
        draws = np.random.default_rng(0).random((200, len(sure)))
        by_chance = np.mean([calibration.expected_calibration_error(sure, draw < sure) for draw in draws])
        columns = [spread(values) for values in accuracy.values()]
        gains = [difference(accuracy[one], accuracy[other]) for one, other in pairs]
        print(
            f"{Path(name).stem + (':' + count if count else '') + f' ({images:,})':<24} "
            + " ".join(f"{column:>15}" for column in columns)
            + "".join(f" {gain:>16}" for gain in gains)
            + f"  {shipped:>3} of {arguments.seeds} {error:.3f}     {by_chance:.3f}  seconds: "
            + ", ".join(f"{way} {statistics.median(took[way] for took in seconds):.0f}" for way in seconds[0]),
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:  # e.g. weights that are not here
        sys.exit(str(error))
