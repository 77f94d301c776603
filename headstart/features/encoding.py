"""Encode all examples of a manifest as the params say: features come from the store, or are computed."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart import keras_backend
from headstart.backbones import choose_backbone
from headstart.config import Params
from headstart.data.files import read_unchanged
from headstart.data.layouts import open_examples
from headstart.errors import UserError
from headstart.features.encoders import Encoder, choose_depth
from headstart.features.engines import Engine
from headstart.features.executors import Executor, LocalExecutor
from headstart.features.extraction import Extraction, open_extraction
from headstart.modalities import load_modality

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


@contextmanager
def encode(manifest: pd.DataFrame, params: Params, batch_size: int | None) -> Iterator[Features]:
    """Compute the features that the store lacks; raises as `open_extraction`, or if the backbone cannot be built."""
    settings, modality = params.extract, load_modality()
    choose_backbone(params, modality)  # says what is wrong with it before anything else is said
    encoder = Encoder(params, modality, choose_depth(settings, manifest))
    with open_executor(encoder, manifest, batch_size) as (executor, engine):
        for line in encoder.backbone.remarks(settings):
            print(f"extract: {line}")
        recipe, augmentation = encoder.recipe(engine), encoder.augmentation
        drawn = {"count": settings.views, "augmentation": augmentation.key()} if augmentation else None
        libraries = (*LIBRARIES, *engine.libraries, *encoder.modality.libraries, *encoder.backbone.libraries)
        meta = {
            **recipe,
            "kind": modality.name,
            "feature_dim": engine.feature_dim,
            "views": drawn if settings.views else None,
            "reading": encoder.modality.reading,
            "weights": params.weights,
            "keras_backend": keras_backend.name,
            "versions": {name: importlib.metadata.version(name) for name in libraries},
        }
        with (
            open_examples(params.data, encoder.modality) as source,
            open_extraction(
                engine, recipe, manifest, encoder.loader(source), settings.views, "extract", executor
            ) as extraction,
        ):
            yield Features(manifest, extraction, settings.views, meta)


@contextmanager
def open_executor(
    encoder: Encoder, manifest: pd.DataFrame, batch_size: int | None
) -> Iterator[tuple[Executor, Engine]]:
    """Open what runs the encoder where `cluster.address` says, and its engine.

    Raises:
        UserError: if the backbone cannot be built; if the cluster cannot be reached, or its machines do not fit.
    """
    if encoder.params.cluster.address == "local":
        yield LocalExecutor(), encoder.open_engine(batch_size)
        return
    from headstart.features.ray_executor import open_ray  # needs the extra `ray`

    with open_ray(encoder, manifest, batch_size) as opened:
        yield opened
