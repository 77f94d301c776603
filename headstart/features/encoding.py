"""Encode all examples of a manifest as the params say: features come from the store, or are computed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from headstart import keras_backend
from headstart.backbones import choose_backbone
from headstart.config import Extract, Params
from headstart.data.files import read_unchanged
from headstart.data.layouts import open_examples
from headstart.errors import UserError
from headstart.features.engines import open_engine
from headstart.features.extraction import Extraction, open_extraction
from headstart.features.views import ViewLoader
from headstart.modalities import load_modality

if TYPE_CHECKING:
    from headstart.framework import keras

MAX_DEEP = 50_000  # examples and views up to which `extract.depth` is half by default: a few GB of features
BYTES_AT_ONCE = 2**24  # read from the store and written
LOOKED_AT = 1000  # examples by which it is estimated how many are cut
LIBRARIES = ("keras", "numpy", "openvino", "tensorflow")  # and those of the engine and the modality


@dataclass(frozen=True)
class Features:
    """Features of all examples of a manifest, in the store.

    Attributes:
        views: how many augmented views the examples in train have.
        meta: how the features were computed: the content of features/meta.json.
    """

    manifest: pd.DataFrame
    extraction: Extraction
    views: int
    meta: dict[str, Any]

    def write(self, file: Path, split: str, augmented: bool = False) -> None:
        """Write the features of a split as .npy, (N, feature_dim), or (N, views, feature_dim) of the augmented views.

        Rows are written as they are read: millions may not fit into memory.
        """
        in_split, dim = self.manifest.split == split, self.meta["feature_dim"]
        views, count = self.extraction.index.select(in_split, augmented), int(in_split.sum())
        shape = (count, self.views, dim) if augmented else (count, dim)
        dtype = np.dtype(self.meta["storage"]).newbyteorder("<")
        with file.open("wb") as stream:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            rows = max(1, BYTES_AT_ONCE // (dim * dtype.itemsize))
            for start in range(0, len(views), rows):
                stream.write(self.extraction.features(views[start : start + rows]).tobytes())

    def remarks(self) -> list[str]:
        """Return what networks do not see of examples, a line each; of those that differ in length, what is cut.

        Of more than LOOKED_AT examples a sample says it.
        """
        loader, total = self.extraction.loader, len(self.manifest)
        if not loader.modality.length:
            return loader.modality.unseen(self.manifest, loader.size)
        sample = self.manifest.sample(min(LOOKED_AT, total), random_state=0)
        found: Counter[str] = Counter()
        for path, file_hash in zip(sample.path, sample.file_hash, strict=True):
            with contextlib.suppress(UserError):  # it has changed, and its features come from the store
                data = read_unchanged(loader.source, path, file_hash)
                found[loader.modality.load_with_remark(data, loader.size)[1]] += 1
        del found[""]
        drawn = f" drawn from {total:,}" if len(sample) < total else ""
        what = f"of {len(sample):,} {loader.modality.noun}s{drawn}"
        return [f"{count:,} {what} {remark}" for remark, count in found.most_common()]

    def costs(self) -> dict[str, Any]:
        """Return what computing them took, and what the store saved."""
        extraction, total = self.extraction, len(self.extraction.index.keys)
        return {
            "examples": len(self.manifest),
            "views": total - len(self.manifest),
            "computed": extraction.computed,
            "from_store": total - extraction.computed,
            "seconds": extraction.seconds,
            "examples_per_second": extraction.computed / extraction.seconds if extraction.computed else None,
            "seconds_saved": (total - extraction.computed) * extraction.store.seconds_per_row(),
            "device": extraction.engine.device_name,
        }


def choose_depth(settings: Extract, manifest: pd.DataFrame) -> str:
    """Return down to where blocks give features: half of the network, if features are vectors and not too many.

    The output of a network for `flatten` is long already, and grows towards the image.
    """
    if settings.depth is not None:
        return settings.depth
    views = len(manifest) + settings.views * int((manifest.split == "train").sum())
    if settings.pooling == "flatten" or views <= MAX_DEEP:
        return "last" if settings.pooling == "flatten" else "half"
    print(
        f"extract: features of the last layer alone, since there are {views:,} examples and views, more than "
        f"{MAX_DEEP:,}; extract.depth=half takes those of more depths"
    )
    return "last"


@contextmanager
def encode(manifest: pd.DataFrame, params: Params, batch_size: int | None) -> Iterator[Features]:
    """Compute the features that the store lacks; raises as `open_extraction`, or if the backbone cannot be built."""
    settings, modality = params.extract, load_modality()
    backbone = choose_backbone(params, modality)
    modality = modality.for_backbone(backbone.reading(), settings)
    size, augmentation = settings.size or backbone.default_size, modality.augmentation(settings)
    depth = choose_depth(settings, manifest)

    def build() -> keras.Model:
        from headstart.framework import make_repeatable  # takes seconds, and may not be needed

        make_repeatable(params.seed)
        return backbone.build(params.weights, size, settings.pooling, params.seed, depth)

    known = backbone.identify(params.weights, size, params.seed)
    network = json.dumps([known, size, settings.pooling, depth]) if known else None
    spec, precision = modality.spec(size), settings.precision
    engine = open_engine(settings.engine, build, spec, precision, batch_size, "extract", network)
    for line in backbone.remarks(settings):
        print(f"extract: {line}")
    recipe = {
        "backbone": backbone.name,
        "weights_sha256": engine.weights_sha256,
        "preprocessing": backbone.preprocessing,
        "size": size,
        "pooling": settings.pooling,
        "depths": engine.depths,
        "engine": engine.name,
        "precision": settings.precision,
        "storage": settings.storage,
    }
    views = {"count": settings.views, "augmentation": augmentation.key()} if settings.views and augmentation else None
    libraries = (*LIBRARIES, *engine.libraries, *modality.libraries, *backbone.libraries)
    meta = {
        **recipe,
        "kind": modality.name,
        "feature_dim": engine.feature_dim,
        "views": views,
        "reading": modality.reading,
        "weights": params.weights,
        "keras_backend": keras_backend.name,
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }
    with (
        open_examples(params.data, modality) as source,
        open_extraction(
            engine, recipe, manifest, ViewLoader(source, modality, size, augmentation), settings.views, "extract"
        ) as extraction,
    ):
        yield Features(manifest, extraction, settings.views, meta)
