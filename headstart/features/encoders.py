"""The encoder that params.yaml describes: how its examples are loaded, and the engine that runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from headstart.backbones import choose_backbone
from headstart.backbones.base import Backbone
from headstart.config import Extract, Params
from headstart.data.files import Source
from headstart.features.engines import Engine, open_engine
from headstart.features.views import ViewLoader
from headstart.modalities import Augmentation, Modality

if TYPE_CHECKING:
    from headstart.framework import keras


MAX_DEEP = 50_000  # examples and views up to which `extract.depth` is half by default: a few GB of features


@dataclass(frozen=True)
class Encoder:
    """What params say about features, and nothing of this machine.

    Attributes:
        prepared: the modality of the prepared data, as they are to be read.
        depth: down to where blocks give features, see `extract.depth`.
    """

    params: Params
    prepared: Modality
    depth: str

    @cached_property
    def backbone(self) -> Backbone:
        """Raises UserError if it is unknown, or not for such examples."""
        return choose_backbone(self.params, self.prepared)

    @cached_property
    def modality(self) -> Modality:
        """That of the examples, as the backbone wants them."""
        return self.prepared.for_backbone(self.backbone.reading(), self.params.extract)

    @property
    def size(self) -> int:
        """Of an example, as `extract.size` counts it."""
        return self.params.extract.size or self.backbone.default_size

    @property
    def augmentation(self) -> Augmentation | None:
        """Of the views; None: all are the example as it is."""
        return self.modality.augmentation(self.params.extract)

    def loader(self, source: Source) -> ViewLoader:
        """Return what loads its examples from a source."""
        return ViewLoader(source, self.modality, self.size, self.augmentation)

    def open_engine(self, batch_size: int | None) -> Engine:
        """Open the engine on this machine; raises UserError if it cannot be built."""
        params, settings, size = self.params, self.params.extract, self.size

        def build() -> keras.Model:
            from headstart.framework import make_repeatable  # takes seconds, and may not be needed

            make_repeatable(params.seed)
            return self.backbone.build(params.weights, size, settings.pooling, params.seed, self.depth)

        known = self.backbone.identify(params.weights, size, params.seed)
        network = json.dumps([known, size, settings.pooling, self.depth]) if known else None
        spec = self.modality.spec(size)
        return open_engine(settings.engine, build, spec, settings.precision, batch_size, "extract", network)

    def recipe(self, engine: Engine) -> dict[str, Any]:
        """Return what distinguishes its features from others, and is written to features/meta.json."""
        settings = self.params.extract
        return {
            "backbone": self.backbone.name,
            "weights_sha256": engine.weights_sha256,
            "preprocessing": self.backbone.preprocessing,
            "size": self.size,
            "pooling": settings.pooling,
            "depths": engine.depths,
            "engine": engine.name,
            "precision": settings.precision,
            "storage": settings.storage,
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
