"""Recordings: how good are heads and fine-tuning on unseen speakers, and how fast are reading and extract? In one run.

Command: python benchmarks/audio.py SOURCE [--group REGEX] [--backbones wavenet] [--part accuracy,speed] [--tune]

SOURCE is a folder or a .zip of class folders; REGEX finds the speaker in a path, by default `(speaker_[^_/]+)`.

accuracy   each speaker once as test, the others for training and, one of them, for val; of each backbone the head with
           random weights, the head, and with --tune what fine_tune ships; beside them logistic regression on the mean
           and deviation of 64 log-mel bands. Mean over the speakers, and each of them
speed      recordings a second: reading and resampling, beside soundfile and soxr alone; extract with reading and store,
           beside the network alone in the same batches; by the clock, best of three rounds
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import soundfile
import soxr
from accuracy import head_logits, tuned_logits
from choices import run
from prepare import machine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headstart.backbones import get_backbone
from headstart.backbones.wavenet import log_mel
from headstart.config import load_params
from headstart.data.files import file_hash
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_split
from headstart.data.sources import open_source
from headstart.features.engines import open_engine
from headstart.features.extraction import Extraction
from headstart.features.store import FeatureStore
from headstart.features.views import ViewIndex, ViewLoader
from headstart.framework import device_name, keras
from headstart.modalities import get_modality, load_modality
from headstart.modalities.loading import read_batches
from headstart.training.examples import load_features
from pipeline import extract, prepare, train_head

ROUNDS = 3


def unpack(source: Path, folder: Path) -> None:
    """Put the files of the source below `folder`."""
    if source.is_dir():
        folder.symlink_to(source.resolve())
    else:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)


def find_groups(folder: Path, pattern: str) -> pd.DataFrame:
    """Return path, label and group of each file."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    rows = [(name, Path(name).parent.name, match[1]) for name in names if (match := re.search(pattern, name))]
    return pd.DataFrame(rows, columns=["path", "label", "group"])


def log_mel_accuracy() -> float:
    """Train logistic regression on the mean and deviation of log-mel bands of train and val; return its accuracy."""
    modality = load_modality()
    sound = keras.Input((None, 320))
    front = keras.Model(sound, log_mel(sound))

    def statistics(split: pd.DataFrame) -> np.ndarray:
        rows = []
        for (samples,) in read_sounds(split):
            bands = np.asarray(front(samples.reshape(1, -1, 320)))[0]
            rows.append(np.concatenate([bands.mean(axis=0), bands.std(axis=0)]))
        return np.stack(rows)

    def read_sounds(split: pd.DataFrame) -> Iterator[np.ndarray]:
        with open_examples(load_params().data, modality) as source:
            for batch in read_batches(source, modality, list(split.path), list(split.file_hash), 5, 1):
                yield from batch.values()

    known = pd.concat([load_split("train"), load_split("val")])
    test = load_split("test")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(statistics(known), known.target)
    return float(model.score(statistics(test), test.target))


def accuracy_of(logits: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == load_features("test").targets).mean())


def measure_accuracy(folder: Path, frame: pd.DataFrame, backbones: list[str], tune: bool) -> None:
    found: dict[str, list[float]] = {}
    speakers = sorted(frame.group.unique())

    def note(way: str, value: float) -> None:
        found.setdefault(way, []).append(value)
        print(f"  {speaker}: {way}: {value:.4f}", file=sys.stderr, flush=True)

    for speaker in speakers:
        manifest = Path(f"{speaker}.csv")
        split = np.where(frame.group == speaker, "test", "train")
        frame.assign(split=split, path=[str(folder / name) for name in frame.path]).to_csv(manifest, index=False)
        data = [f"data.source={manifest}", f"data.root={json.dumps(str(folder))}", "prepare.group_by=group"]
        data = [*data, "prepare.split=exact", "prepare.near_distance=0"]
        for backbone in backbones:
            ways: dict[str, list[str]] = {"random weights, head": ["weights=none"], "head": []}
            for way, more in ways.items():
                changes = [*data, f"backbone={backbone}", *more]
                with contextlib.redirect_stdout(io.StringIO()):
                    run(prepare, changes)
                    run(extract, changes)
                    run(train_head, changes)
                note(f"{backbone}, {way}", accuracy_of(head_logits()))
            if tune:
                with contextlib.redirect_stdout(io.StringIO()):
                    _, shipped, _ = tuned_logits(changes)
                note(f"{backbone}, shipped by fine_tune", accuracy_of(head_logits() if shipped is None else shipped))
        note("log-mel statistics", log_mel_accuracy())
    print(f"accuracy on the speaker left out, mean of {len(speakers)} ({', '.join(speakers)}):")
    for way, values in found.items():
        print(f"  {way:<40} {np.mean(values):.3f}   " + "  ".join(f"{value:.3f}" for value in values))


def rate(work: Callable[[], object], count: int) -> float:
    """Return how many are done a second, in the best of ROUNDS."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


def measure_speed(folder: Path, frame: pd.DataFrame, backbone: str) -> None:
    modality, row = get_modality("audio"), get_backbone(backbone)
    size, source = row.default_size, open_source(str(folder))
    data = [source.read(name) for name in frame.path]

    def alone() -> None:
        for one in data:
            samples, hertz = soundfile.read(io.BytesIO(one), dtype="float32", always_2d=True)
            soxr.resample(samples.mean(axis=1), hertz, 16_000)

    reading = rate(lambda: [modality.load(one, size) for one in data], len(data))
    bare = rate(alone, len(data))
    print(
        f"reading and resampling: {reading:.0f} recordings/s, {reading / bare:.2f} of soundfile and soxr ({bare:.0f})"
    )
    engine = open_engine(
        "auto", lambda: row.build("pretrained", size, "avg", 0, "half"), modality.spec(size), "float32", None, "audio"
    )
    manifest = pd.DataFrame({"path": frame.path, "file_hash": list(map(file_hash, data)), "split": "test"})
    sounds = [modality.load(one, size) for one in data]
    manifest[modality.length] = [len(sound) / 16_000 for sound in sounds]
    loader = ViewLoader(source, modality, size)
    index = ViewIndex(manifest, 0, loader)
    order, step = list(index.sort(range(len(data)))), engine.batch_size
    batches = [modality.batch([sounds[place] for place in order[at : at + step]]) for at in range(0, len(order), step)]

    def extracting() -> None:
        with (
            tempfile.TemporaryDirectory() as place,
            FeatureStore(Path(place) / "s.sqlite", {}, engine.feature_dim, "float32") as store,
        ):
            Extraction(index, loader, engine, store).compute(range(len(data)), 0)

    network, whole = rate(lambda: list(engine.map(batches)), len(data)), rate(extracting, len(data))
    print(
        f"{backbone} by {engine.name}: extract {whole:.0f} recordings/s, {whole / network:.2f} of the network alone "
        f"({network:.0f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--group", default="(speaker_[^_/]+)", metavar="REGEX")
    parser.add_argument("--backbones", default="wavenet")
    parser.add_argument("--part", default="accuracy,speed")
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    backbones = arguments.backbones.split(",")
    print(f"{arguments.source.name}; {machine()}; {device_name()}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "recordings"
        unpack(arguments.source, folder)
        frame = find_groups(folder, arguments.group)
        if frame.empty:
            sys.exit(f"--group {arguments.group}: it is found in no path of {arguments.source}")
        os.chdir(place)
        if "speed" in arguments.part:
            for backbone in backbones:
                measure_speed(folder, frame, backbone)
        if "accuracy" in arguments.part:
            measure_accuracy(folder, frame, backbones, arguments.tune)


if __name__ == "__main__":
    main()
