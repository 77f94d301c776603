"""Run the frozen backbone over every image, once.

Reads:   data/prepared/manifest.parquet, the images.
Writes:  features/train.npy, val.npy, test.npy: (N, feature_dim) float32, rows in manifest order;
         features/meta.json: what they were made by; metrics/extract.json.
Params:  backbone, weights, seed, data, extract.
Command: python -m pipeline.extract
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline import engine, networks, paths, stage, timings
from pipeline.backbones import BACKBONES, PREPROCESSING
from pipeline.images import read_images
from pipeline.outputs import Outputs
from pipeline.params import Params
from pipeline.sources import open_source


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    row = BACKBONES[params.backbone]
    image_size = params.extract.image_size or row.default_size
    engine.make_repeatable(params.seed)
    trunk = networks.build_trunk(params.backbone, params.weights, image_size, params.extract.pooling, params.seed)
    manifest = pd.read_parquet(paths.MANIFEST)
    batch_size = min(params.extract.batch_size, len(manifest))

    started = time.perf_counter()
    with (
        open_source(params.data.source, params.data.root) as source,
        tqdm(total=len(manifest), desc="extract", unit=" images", disable=None) as bar,
    ):
        for split, file in paths.FEATURES.items():
            images = manifest[manifest.split == split]
            # Written as it comes: the features of millions of images need not fit into memory.
            with outputs.path(file).open("wb") as stream:
                shape = (len(images), trunk.output_shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                for batch in read_images(source, list(images.path), list(images.image_id), image_size, batch_size):
                    stream.write(networks.predict(trunk, batch, batch_size).astype("<f4").tobytes())
                    bar.update(len(batch))
    seconds = time.perf_counter() - started

    meta = {
        "backbone": params.backbone,
        "weights": params.weights,
        "weights_sha256": networks.weights_sha256(trunk),
        "preprocessing": PREPROCESSING[row.preprocessing],
        "image_size": image_size,
        "pooling": params.extract.pooling,
        "feature_dim": trunk.output_shape[1],
        "precision": "float32",
        "keras_backend": engine.keras.backend.backend(),
        "manifest_sha256": hashlib.sha256(paths.MANIFEST.read_bytes()).hexdigest(),
        "versions": {name: importlib.metadata.version(name) for name in ("keras", "numpy", "pillow", "tensorflow")},
    }
    meta_file = outputs.json(paths.FEATURES_META, meta)
    values = {
        "images": len(manifest),
        "seconds": seconds,
        "images_per_second": len(manifest) / seconds,
        "feature_dim": trunk.output_shape[1],
        "device": engine.device_name(),
    }
    timings.write(outputs, values, meta_file)
    print(
        f"extract: {len(manifest)} images through {params.backbone} at {image_size} px in {seconds:.1f} s, "
        f"{len(manifest) / seconds:.0f} images/s on {engine.device_name()}, {trunk.output_shape[1]} features each"
    )


if __name__ == "__main__":
    stage.run("extract", main)
