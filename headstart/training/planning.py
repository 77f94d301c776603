"""Build the plan of fine-tuning: which blocks are trained, from which inputs, for how long."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart import paths
from headstart.backbones import get_backbone, splitting
from headstart.backbones.base import BACKBONE_LAYER, weights_sha256
from headstart.backbones.splitting import Split
from headstart.config import Params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_split
from headstart.errors import UserError
from headstart.features.activations import STORAGE, Activations, Inputs, RawExamples, average_size, choose_cache
from headstart.features.engines import Engine, open_engine
from headstart.features.extraction import open_extraction
from headstart.features.views import ViewLoader
from headstart.features_meta import FeaturesMeta
from headstart.framework import device_name, gpu_names, keras, policy, tf
from headstart.lockfile import Workspace, md5_of
from headstart.modalities import get_modality
from headstart.training import defaults, networks
from headstart.training.folds import Fold
from headstart.training.plan import Plan
from headstart.training.refit import choose_refit
from headstart.training.trainer import Trainer

PROJECT = Path(__file__).parents[2]
CODE = ("backbones", "data", "features", "framework.py", "modalities", "training")  # what shapes a training


def build_encoder(params: Params, meta: FeaturesMeta, precision: str, depth: str = "last") -> keras.Model:
    """Return the encoder that the features were extracted with, down to a depth.

    Raises:
        UserError: if the weights have changed since.
    """
    with policy(precision):
        encoder = get_backbone(meta.backbone).build(params.weights, meta.size, meta.pooling, params.seed, depth)
    if weights_sha256(encoder) != meta.weights_sha256:
        raise UserError(
            f"the weights of {meta.backbone} are not those that the features were extracted with; "
            "run `dvc repro --force extract`"
        )
    return encoder


@contextmanager
def build_plan(
    params: Params,
    encoder: keras.Model,
    head: keras.Model,
    head_logits: np.ndarray,
    meta: FeaturesMeta,
    folds: Sequence[Fold],
    batch_size: int | None,
) -> Iterator[Plan | None]:
    """Yield the plan to fine-tune `encoder` and `head` in place; None if no layer of the encoder is to be trained.

    Args:
        head: for features of the last layer, to start from.
        head_logits: (N, n_classes) of train, then val, by heads that have not seen them; fine-tuning must beat those.
        folds: of train, for when val is too small to decide; empty: val decides.
        batch_size: for computing activations; None: the engine's own.
    """
    backbone, modality = get_backbone(meta.backbone), get_modality(meta.kind, meta.reading)
    settings = defaults.resolve_fine_tune(params.fine_tune, backbone)
    for layer in head.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    base = encoder.get_layer(BACKBONE_LAYER)
    trained = splitting.select_blocks(backbone.blocks(encoder), settings.unfreeze)
    scales = splitting.set_trainable(base, trained, settings.layer_decay)
    if not scales:
        yield None
        return
    examples = pd.concat([load_split("train"), load_split("val")], ignore_index=True)
    n_train = int((examples.split == "train").sum())
    epochs, views = defaults.choose_schedule(settings, n_train, bool(folds))
    refits = choose_refit(settings.refit, examples)
    refit_epochs = defaults.choose_refit_epochs(settings, epochs)
    split = splitting.find_split(base, trained, meta.size * modality.unit // modality.place)
    with ExitStack() as stack:
        source = stack.enter_context(open_examples(params.data, modality))
        loader = ViewLoader(source, modality, meta.size)
        if views:
            joined, val = keras.Model(encoder.input, head(encoder.output)), examples[n_train:]
            augmentation = defaults.choose_augmentation(settings, joined, val, loader, params.seed)
            loader = replace(loader, augmentation=augmentation)
        views = views if loader.augmentation else 0  # they would all be the same
        # Folds and the refit train on examples of val too.
        augmented = examples.assign(split="train") if folds or refits else examples
        cached, reason = choose_cache(
            settings.trunk_cache,
            average_size(split, examples, loader, params.seed) if split else None,
            views=int((augmented.split == "train").sum()) * views + len(examples),
            passes=len(examples) * (epochs * (1 + len(folds)) + (refit_epochs if refits else 0)),
            fast=meta.engine != "tensorflow" and not gpu_names(),
            work=splitting.work_below(base, split) if split else 0.0,
        )
        where = "cached activations" if cached else f"the {modality.noun}s"
        print(f"fine_tune: {epochs} epochs from {where}: {reason}")
        inputs: Inputs = RawExamples(examples, loader)
        trained_part = encoder
        if split and cached:
            engine, recipe = _lower_engine(params, meta, split, batch_size)
            extraction = open_extraction(engine, recipe, augmented, loader, views, "fine_tune")
            inputs = Activations(stack.enter_context(extraction), split, inputs.lengths)
            trained_part = splitting.upper_model(encoder, split)
        start = {
            tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name)
            for tensor in trained_part.inputs
        }
        network = keras.Model(start, networks.without_softmax(head)(trained_part(start)))
        chosen = {
            "epochs": epochs,
            "learning_rate": settings.learning_rate,
            "label_smoothing": settings.label_smoothing,
            "ema": defaults.choose_ema_momentum(settings, epochs, n_train),
            "views": views,
            **(asdict(loader.augmentation) if loader.augmentation else {}),
            "trunk_cache": cached,
            "folds": len(folds),
            "refit": refits,
            "refit_epochs": refit_epochs if refits else 0,
            "layers_trained": len(scales),
        }
        yield Plan(
            settings=settings,
            trainer=Trainer(network, settings, [*scales, *[1.0] * len(head.trainable_variables)]),
            head=head,
            start=networks.get_state(network),
            inputs=inputs,
            targets=examples.target.to_numpy(),
            n_train=n_train,
            epochs=epochs,
            views=views,
            head_logits=head_logits[n_train:],
            gives_up=settings.effort != "thorough",
            refits=refits,
            refit_epochs=refit_epochs,
            restarts=settings.effort == "thorough",
            folds=folds,
            seed=params.seed,
            checkpoints=paths.cache_path("fine_tune") / _fingerprint(params, meta, chosen, folds),
            chosen=chosen,
        )


def _lower_engine(params: Params, meta: FeaturesMeta, split: Split, batch: int | None) -> tuple[Engine, dict[str, Any]]:
    """Return the engine that runs the frozen blocks, and what the feature store knows their activations by."""
    kind = "tensorflow" if meta.engine == "tensorflow" else "auto"
    # CPUs always have float32, and it is fast enough there.
    precision = params.fine_tune.precision if gpu_names() else "float32"

    def build() -> keras.Model:
        return splitting.lower_model(build_encoder(params, meta, precision), split)

    recipe = {
        "backbone": meta.backbone,
        "size": meta.size,
        "pooling": f"cut-{'-'.join(map(str, split.places))}",
        "precision": precision,
        "storage": STORAGE,
    }
    spec = get_modality(meta.kind).spec(meta.size)
    known = get_backbone(meta.backbone).identify(params.weights, meta.size, params.seed)
    network = json.dumps([recipe, meta.weights_sha256, known]) if known else None
    return open_engine(kind, build, spec, precision, batch, "fine_tune", network), recipe


def _fingerprint(params: Params, meta: FeaturesMeta, chosen: dict[str, Any], folds: Sequence[Fold]) -> str:
    """Return 16 hexadecimal digits that stand for everything that shapes the trainings."""
    settings = [params.weights, params.seed, params.data, params.fine_tune]
    kernels = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    parts = [*settings, meta, chosen, tf.__version__, keras.__version__, device_name(), kernels]
    code = [md5_of(Workspace(PROJECT), f"headstart/{place}") for place in CODE]
    made = [paths.HEAD.read_bytes(), paths.HELD_OUT.read_bytes(), *(fold.digest() for fold in folds)]
    return hashlib.sha256(b"".join([repr([parts, code]).encode(), *made])).hexdigest()[:16]
