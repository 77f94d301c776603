"""How fast features are extracted: by extract, by the usual Keras code, and at the limit of the machine, in turns.

Command: python benchmarks/extract.py speed PHOTOS [BACKBONE:PRECISION...]   # class folders of photographs
         python benchmarks/extract.py memory PHOTOS [BACKBONE]   # peak of the stage over them, and 8 times them
         python benchmarks/extract.py store [200000]      # write and read rows of made-up features
         python benchmarks/extract.py features PHOTOS     # what decoding at a reduced size and bfloat16 do to features

(a) is the stage without its start: reading, decoding, the network, the store, the files. (b) is
image_dataset_from_directory, preprocess_input and model.predict, without its start too. (c) is
1 / (1 / rate of reading and decoding alone + 1 / rate of the network alone), on the engine that extract chose.
Weights are ImageNet's if Keras' cache has them, else random: both take the same time. Ratios within one run carry
over to other machines, absolute figures do not.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import yaml
from blake3 import blake3
from PIL import Image
from prepare import machine, seconds

from headstart.backbones import BACKBONES
from headstart.backbones.base import BACKBONE_LAYER
from headstart.backbones.keras_applications import KerasApplication
from headstart.data.files import Folder, file_hash
from headstart.features import engines
from headstart.features.engines.openvino_engine import OpenVINOEngine
from headstart.features.extraction import Extraction
from headstart.features.store import FeatureStore
from headstart.features.views import ViewIndex, ViewLoader
from headstart.framework import device_name, keras, tf
from headstart.modalities import Batch, get_modality
from headstart.modalities.image.decode import decode
from headstart.modalities.image.pixels import pixels, resize
from headstart.modalities.loading import read_batches

ROUNDS = 5
IMAGES = get_modality("image")
DEFAULT = ("mobilenetv2:float32", "mobilenetv2:bfloat16", "resnet50:float32", "resnet50:bfloat16")


def weights_of(backbone: str) -> str:
    row = BACKBONES[backbone]
    file = row.weights_path(row.default_size)
    return "pretrained" if file and file.is_file() else "none"


def build_encoder(backbone: str) -> keras.Model:
    row = BACKBONES[backbone]
    return row.build(weights_of(backbone), row.default_size, "avg", 0)


def photographs(photos: Path) -> list[str]:
    return [name for name in Folder(photos).scan().files if name.lower().endswith((".jpg", ".jpeg", ".png"))]


def plain_keras(encoder: keras.Model, backbone: str) -> Callable[[Path], np.ndarray]:
    """What the guides of Keras show."""
    row = BACKBONES[backbone]
    assert isinstance(row, KerasApplication)
    base = encoder.get_layer(BACKBONE_LAYER)
    model = keras.Sequential([base, keras.layers.GlobalAveragePooling2D()])
    preprocess = getattr(keras.applications, row.module).preprocess_input

    def run(photos: Path) -> np.ndarray:
        dataset = keras.utils.image_dataset_from_directory(
            photos, labels=None, shuffle=False, image_size=(row.default_size,) * 2, batch_size=32, verbose=False
        )
        return model.predict(dataset.map(preprocess).prefetch(tf.data.AUTOTUNE), verbose=0)

    return run


def manifest_of(source: Folder, names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"path": names, "file_hash": [file_hash(source.read(name)) for name in names], "split": "test"})


def extract(source: Folder, manifest: pd.DataFrame, run: engines.Engine, side: int) -> np.ndarray:
    """What the stage does after its start, with nothing kept before; returns the features."""
    loader = ViewLoader(source, IMAGES, side)
    index = ViewIndex(manifest, 0, loader)
    with (
        tempfile.TemporaryDirectory() as folder,
        FeatureStore(Path(folder) / "s.sqlite", {}, run.feature_dim, "float32") as kept,
    ):
        extraction = Extraction(index, loader, run, kept)
        extraction.compute(kept.missing(index.keys), 0)
        found = extraction.features(range(len(manifest)))
        np.save(Path(folder) / "test.npy", found)
        return found


def speed(photos: Path, choices: list[str]) -> None:
    source, names = Folder(photos), photographs(photos)
    manifest = manifest_of(source, names)
    hashes = list(manifest.file_hash)
    size = statistics.mean(len(source.read(name)) for name in names)
    print(
        f"{machine()}, {device_name()}, TensorFlow {tf.__version__}; "
        f"{len(names):,} photographs of {size / 1024:.0f} KiB on average"
    )
    print(f"{'':<24} {'engine':<11} {'a':>6} {'b':>6} {'c':>6} {'decode':>7} {'forward':>8} {'a/b':>6} {'a/c':>6}")
    for choice in choices or DEFAULT:
        backbone, precision = choice.split(":")
        side = BACKBONES[backbone].default_size
        build = partial(build_encoder, backbone)
        encoder = build()
        run = engines.open_engine("auto", build, IMAGES.spec(side), precision, None, "extract")
        keras_way = partial(plain_keras(encoder, backbone), photos)
        keras_way()  # its start
        batch = next(read_batches(source, IMAGES, names, hashes, side, run.batch_size))
        run(batch)
        repeats = -(-len(names) // run.batch_size)

        def decoding(run: engines.Engine = run, side: int = side) -> None:
            for _ in read_batches(source, IMAGES, names, hashes, side, run.batch_size):
                pass

        def forward(run: engines.Engine = run, batch: Batch = batch, repeats: int = repeats) -> None:
            for _ in run.map(batch for _ in range(repeats)):
                pass

        times: dict[str, list[float]] = {"a": [], "b": [], "decode": [], "forward": []}
        for _ in range(ROUNDS):
            times["a"].append(seconds(partial(extract, source, manifest, run, side)))
            times["decode"].append(seconds(decoding))
            times["forward"].append(seconds(forward) * len(names) / (repeats * run.batch_size))
            times["b"].append(seconds(keras_way))
        times["c"] = [d + f for d, f in zip(times["decode"], times["forward"], strict=True)]
        rate = {name: len(names) / statistics.median(values) for name, values in times.items()}
        ratio = {
            name: statistics.median(other / a for other, a in zip(times[name], times["a"], strict=True))
            for name in ("b", "c")
        }
        print(
            f"{backbone + ', ' + precision:<24} {run.name:<11} {rate['a']:>6.0f} {rate['b']:>6.0f} {rate['c']:>6.0f} "
            f"{rate['decode']:>7.0f} {rate['forward']:>8.0f} {ratio['b']:>6.2f} {ratio['c']:>6.2f}",
            flush=True,
        )


def memory(photos: Path, backbone: str) -> None:
    """Peak memory of the stage, a process of its own, over the photographs and over 8 times as many."""
    names = photographs(photos)
    for turns in (1, 8):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for turn in range(turns):
                for number, name in enumerate(names):  # a byte more makes another file of it
                    label = root / "photos" / Path(name).parent.name
                    label.mkdir(parents=True, exist_ok=True)
                    data = (photos / name).read_bytes() + turn.to_bytes(4, "big")
                    (label / f"{turn}-{number}{Path(name).suffix}").write_bytes(data)
            for name in ("pipeline", "headstart"):
                os.symlink(ROOT / name, root / name)
            params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
            params |= {"backbone": backbone, "weights": weights_of(backbone)}
            params["data"]["source"] = "photos"
            (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
            manifest = pd.DataFrame(
                {"path": sorted(str(file.relative_to(root / "photos")) for file in (root / "photos").rglob("*.*"))}
            )
            manifest["file_hash"] = [file_hash((root / "photos" / path).read_bytes()) for path in manifest.path]
            manifest["split"] = np.resize(["train", "val", "test"], len(manifest))
            (root / "data" / "prepared").mkdir(parents=True)
            manifest.to_parquet(root / "data" / "prepared" / "manifest.parquet")
            code = "import resource; from pipeline import extract; extract.main(); "
            code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)"
            command, environment = [sys.executable, "-c", code], {**os.environ, "HEADSTART_TRACKING": "off"}
            done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True)
            print(
                f"{len(manifest):,} photographs through {backbone}: {float(done.stdout.split()[-1]):,.0f} MiB at most"
            )


def store(rows: int) -> None:
    """Rates of the feature store alone, rows of 1,280 float32."""
    made = np.random.default_rng(0).normal(size=(64, 1280)).astype(np.float32)
    keys = [blake3(str(row).encode()).digest(length=16) for row in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.sqlite"
        with FeatureStore(file, {}, 1280, "float32") as kept:

            def put() -> None:
                for start in range(0, rows, len(made)):
                    some = keys[start : start + len(made)]
                    kept.put(some, made[: len(some)], 0.0)

            def get() -> None:
                for start in range(0, rows, 1024):
                    kept.get(keys[start : start + 1024])

            for name, work in (("put", put), ("missing", lambda: kept.missing(keys)), ("get", get)):
                print(f"{name:<8} {rows / seconds(work):>9,.0f} rows/s")
        print(f"{file.stat().st_size / rows:,.0f} bytes a row, of which 5,120 are the feature")


def features(photos: Path) -> None:
    """How far features move, on average over the photographs, as a share of their length, and their neighbours."""
    backbone = "mobilenetv2"
    size = BACKBONES[backbone].default_size
    names = photographs(photos)
    # As a camera writes them, so that decoding at a part of the size has something to do.
    files = [enlarged((photos / name).read_bytes()) for name in names]
    encoder = build_encoder(backbone)
    ways = {
        "decoded in full, resized as extract does": lambda data: resize(np.asarray(decode(data)), size),
        "as extract does": lambda data: resize(pixels(data, size), size),
        "decoded in full, resize of tf.image and Keras": lambda data: tf.image.resize(
            np.asarray(decode(data)), (size, size)
        ).numpy(),
    }
    reference = None
    for name, way in ways.items():
        images = np.stack([way(data) for data in files])
        found = encoder.predict({"image": images}, batch_size=32, verbose=0)
        reference = found if reference is None else reference
        print(f"{name:<50} {moved(found, reference)}")
    images = np.stack([ways["as extract does"](data) for data in files])
    reference = encoder.predict({"image": images}, batch_size=32, verbose=0)
    for precision in ("float32", "bfloat16"):
        run = OpenVINOEngine(lambda: encoder, IMAGES.spec(size), precision, None)
        starts = range(0, len(images), run.batch_size)
        batches = (IMAGES.batch(list(images[start : start + run.batch_size])) for start in starts)
        found = np.concatenate(list(run.map(batches)))
        print(f"{'the same pixels, OpenVINO in ' + precision:<50} {moved(found, reference)}")
    print(f"{'kept as float16':<50} {moved(reference.astype(np.float16).astype(np.float32), reference)}")


def enlarged(data: bytes) -> bytes:
    image, buffer = decode(data), io.BytesIO()
    scale = 1600 / max(image.size)
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def moved(found: np.ndarray, reference: np.ndarray) -> str:
    distance = np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)
    others = np.linalg.norm(reference - np.roll(reference, 1, axis=0), axis=1) / np.linalg.norm(reference, axis=1)
    return f"{distance.mean():.2e} of their length (two photographs: {others.mean():.2f})"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["speed", photos, *choices]:
            speed(Path(photos), choices)
        case ["memory", photos, *backbone]:
            memory(Path(photos), *backbone or ["mobilenetv2"])
        case ["store", *rows]:
            store(int(rows[0]) if rows else 200_000)
        case ["features", photos]:
            features(Path(photos))
        case _:
            sys.exit(__doc__)
