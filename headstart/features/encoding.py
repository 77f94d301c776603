"""Encode all examples of a manifest as the params say: features come from the store, or are computed."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from headstart import paths
from headstart.backbones import get_backbone
from headstart.config import Params
from headstart.data.sources import open_source
from headstart.errors import damaged
from headstart.features.engines import Engine, open_engine
from headstart.features.extraction import Extraction, ViewIndex, fingerprint_inputs
from headstart.features.store import FeatureStore, open_store
from headstart.framework import device_name, keras
from headstart.modalities import get_modality

BYTES_AT_ONCE = 2**24  # read from the store and written
LIBRARIES = ("keras", "numpy", "openvino", "tensorflow")  # and those of the modality


class FeaturesMeta(BaseModel, extra="allow", frozen=True):
    """What features/meta.json says about the encoder of the features; more keys are for people to read."""

    size: Annotated[int, Field(ge=1)]
    pooling: Literal["avg", "max", "flatten"]
    engine: Literal["openvino", "tensorflow"]
    weights_sha256: str


def read_meta() -> FeaturesMeta:
    """Read features/meta.json.

    Raises:
        UserError: if it is not what extract wrote.
    """
    try:
        return FeaturesMeta(**json.loads(paths.FEATURES_META.read_text(encoding="utf-8")))
    except ValidationError as error:
        place, problem = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
        raise damaged(paths.FEATURES_META, f"{place}: {problem}", "extract") from error
    except (ValueError, TypeError) as error:
        raise damaged(paths.FEATURES_META, f"must be a JSON object ({error})", "extract") from error


@dataclass(frozen=True)
class Features:
    """Features of all examples of a manifest, in the store.

    Attributes:
        meta: how they were computed: the content of features/meta.json.
    """

    manifest: pd.DataFrame
    index: ViewIndex
    extraction: Extraction
    engine: Engine
    store: FeatureStore
    views: int
    meta: dict[str, Any]

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.engine.feature_dim

    def write(self, file: Path, split: str, augmented: bool = False) -> None:
        """Write the features of a split as .npy, (N, dim), or (N, views, dim) of the augmented views.

        Rows are written as they are read: millions may not fit into memory.
        """
        in_split = self.manifest.split == split
        views = self.index.select(in_split, augmented)
        count = int(in_split.sum())
        shape = (count, self.views, self.dim) if augmented else (count, self.dim)
        dtype = np.dtype(self.meta["storage"]).newbyteorder("<")
        with file.open("wb") as stream:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            rows = max(1, BYTES_AT_ONCE // (self.dim * dtype.itemsize))
            for start in range(0, len(views), rows):
                stream.write(self.extraction.features(views[start : start + rows]).tobytes())

    def costs(self) -> dict[str, Any]:
        """Return what computing them took, and what the store saved."""
        computed, total = self.extraction.computed, len(self.index.keys)
        return {
            "examples": len(self.manifest),
            "views": total - len(self.manifest),
            "computed": computed,
            "from_store": total - computed,
            "seconds": self.extraction.seconds,
            "examples_per_second": computed / self.extraction.seconds if computed else None,
            "seconds_saved": (total - computed) * self.store.seconds_per_row(),
            "device": device_name(),
        }


@contextmanager
def encode(manifest: pd.DataFrame, params: Params, batch_size: int | None) -> Iterator[Features]:
    """Compute the features that the store lacks.

    Raises:
        OutOfMemoryError: if a batch does not fit; what was computed until then is in the store.
        UserError: if the backbone cannot be built, or an example has changed.
    """
    backbone, modality, settings = get_backbone(params.backbone), get_modality(params.data.kind), params.extract
    size = settings.size or backbone.default_size
    augmentation = modality.augmentation(settings)

    def build() -> keras.Model:
        return backbone.build(params.weights, size, settings.pooling, params.seed)

    spec = modality.spec(size)
    engine = open_engine(settings.engine, build, spec, settings.precision, batch_size, "extract")
    recipe = {
        "backbone": params.backbone,
        "weights_sha256": engine.weights_sha256,
        "preprocessing": backbone.preprocessing,
        "size": size,
        "pooling": settings.pooling,
        "engine": engine.name,
        "precision": settings.precision,
        "storage": settings.storage,
    }
    meta = {
        **recipe,
        "feature_dim": engine.feature_dim,
        "views": {"count": settings.views, "augmentation": augmentation.key()}
        if settings.views and augmentation
        else None,
        "weights": params.weights,
        "keras_backend": keras.backend.backend(),
        "versions": {name: importlib.metadata.version(name) for name in (*LIBRARIES, *modality.libraries)},
    }
    index = ViewIndex(manifest, settings.views, augmentation, modality, size)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(params.data.source, params.data.root))
        inputs = fingerprint_inputs(engine, recipe, modality, size)
        store = stack.enter_context(open_store(inputs, engine.feature_dim, settings.storage))
        extraction = Extraction(index, source, modality, engine, store, size, augmentation)
        extraction.complete()
        yield Features(manifest, index, extraction, engine, store, settings.views, meta)
