"""Run the frozen backbone over every image, once: what the feature store has is not computed again.

Reads:   data/prepared/manifest.parquet, the images.
Writes:  features/train.npy, val.npy, test.npy: (N, feature_dim) of extract.storage, rows in manifest order;
         features/train_views.npy: (N, extract.views, feature_dim), augmented views of the training images;
         features/meta.json: what they were made by; metrics/extract.json: what it cost, and what the store saved.
Params:  backbone, weights, seed, data, extract.
Command: python -m pipeline.extract
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart import framework, paths
from headstart.backbones import keras_applications
from headstart.backbones.table import BACKBONES, PREPROCESSING
from headstart.config import Params
from headstart.data.sources import open_source
from headstart.features import engines, store
from headstart.features.extraction import Extraction, Jobs, ingredients, patiently
from headstart.modalities.image.augmentation import Augmentation
from headstart.stage import Run, stage

BYTES_AT_ONCE = 2**24  # read from the store and written
LIBRARIES = ("keras", "numpy", "opencv-python-headless", "openvino", "pillow", "simplejpeg", "tensorflow")


def write(file: Path, extraction: Extraction, jobs: np.ndarray, shape: tuple[int, ...], storage: str) -> None:
    """Write the features of `jobs` as an .npy file of that shape, as they come: millions need not fit into memory."""
    with file.open("wb") as stream:
        header = {"descr": np.dtype(storage).newbyteorder("<").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        rows = max(1, BYTES_AT_ONCE // (shape[-1] * np.dtype(storage).itemsize))
        for start in range(0, len(jobs), rows):
            stream.write(extraction.features(jobs[start : start + rows]).tobytes())


def extract(run: Run, batch_size: int | None) -> None:
    """Compute what is missing and write the stage's outputs.

    Raises:
        OutOfMemoryError: where a batch does not fit; what was computed until then is in the store.
    """
    params = run.params
    row = BACKBONES[params.backbone]
    image_size = params.extract.size or row.default_size
    storage = params.extract.storage
    augmentation = Augmentation(params.extract.crop, params.extract.flip, params.extract.jitter)
    manifest = pd.read_parquet(paths.MANIFEST)

    def build() -> framework.keras.Model:
        return keras_applications.build_trunk(
            params.backbone, params.weights, image_size, params.extract.pooling, params.seed
        )

    engine = engines.open_engine(params.extract.engine, build, params.extract.precision, batch_size)
    recipe = {
        "backbone": params.backbone,
        "weights_sha256": engine.weights_sha256,
        "preprocessing": PREPROCESSING[row.preprocessing],
        "image_size": image_size,
        "pooling": params.extract.pooling,
        "engine": engine.name,
        "precision": params.extract.precision,
        "storage": storage,
    }
    jobs = Jobs(manifest, params.extract.views, augmentation, image_size)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(params.data.source, params.data.root))
        kept = stack.enter_context(
            store.open_store(ingredients(engine, recipe, image_size), engine.feature_dim, storage)
        )
        extraction = Extraction(jobs, source, engine, kept, image_size, augmentation)
        extraction.complete()
        for split, file in paths.FEATURES.items():
            plain = jobs.of(manifest.split == split, augmented=False)
            write(run.path(file), extraction, plain, (len(plain), engine.feature_dim), storage)
        views = jobs.of(manifest.split == "train", augmented=True)
        shape = ((manifest.split == "train").sum(), params.extract.views, engine.feature_dim)
        write(run.path(paths.TRAIN_VIEWS), extraction, views, tuple(map(int, shape)), storage)
        saved = (len(jobs.keys) - extraction.computed) * kept.seconds_per_row()

    meta = {
        **recipe,
        "feature_dim": engine.feature_dim,
        "views": {"count": params.extract.views, **augmentation.__dict__} if params.extract.views else None,
        "weights": params.weights,
        "keras_backend": framework.keras.backend.backend(),
        "manifest_sha256": hashlib.sha256(paths.MANIFEST.read_bytes()).hexdigest(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    run.json(paths.FEATURES_META, meta)
    run.metrics({"feature_dim": engine.feature_dim})
    rate = extraction.computed / extraction.seconds if extraction.computed else None
    values: dict[str, Any] = {
        "images": len(manifest),
        "views": len(jobs.keys) - len(manifest),
        "computed": extraction.computed,
        "from_store": len(jobs.keys) - extraction.computed,
        "seconds": extraction.seconds,
        "images_per_second": rate,
        "seconds_saved": saved,
        "device": framework.device_name(),
    }
    run.cost(**values)
    tell(params, values | {"feature_dim": engine.feature_dim}, engine, image_size)


def tell(params: Params, values: dict[str, Any], engine: engines.Engine, image_size: int) -> None:
    """Say on the screen what it cost."""
    views = f" and {values['views']} augmented views" if values["views"] else ""
    print(
        f"extract: {values['images']} images{views} through {params.backbone} at {image_size} px, "
        f"{values['feature_dim']} features each"
    )
    line = f"extract: {values['computed']} computed"
    if values["computed"]:
        line += (
            f" in {values['seconds']:.1f} s, {values['images_per_second']:.0f} images/s by {engine.name} in "
            f"{params.extract.precision} on {values['device']}"
        )
    if values["from_store"]:
        line += f"; {values['from_store']} from the feature store, {values['seconds_saved']:.1f} s saved"
    print(line)


def main() -> None:
    """Run the stage."""
    with stage("extract") as run:
        framework.take_gpus("extract")
        framework.make_repeatable(run.params.seed)
        patiently("extract", lambda batch_size: extract(run, batch_size), run.params.extract.batch_size)


if __name__ == "__main__":
    main()
