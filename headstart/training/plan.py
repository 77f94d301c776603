"""One fine-tuning: what is trained, on what and for how long, by params and data; and its trainings, one by one."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart import paths
from headstart.backbones import blocks, keras_applications
from headstart.backbones.blocks import Cut
from headstart.backbones.table import BACKBONES
from headstart.config import FineTune, Params
from headstart.data.manifest import load_split
from headstart.data.sources import open_source
from headstart.errors import UserError
from headstart.features import activations, engines, extraction
from headstart.features.activations import Inputs
from headstart.framework import device_name, gpu_names, keras, policy, tf
from headstart.modalities.image import augmentation, pixels
from headstart.modalities.image.augmentation import NONE
from headstart.training import (
    batches,
    calibration,
    checkpoint,
    defaults,
    examples,
    fine_tuning,
    folds,
    heads,
    history,
    networks,
    verdict,
)
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.fine_tuning import Job, Tuned, tune
from headstart.training.folds import Fold, Judged


def build(params: Params, meta: dict[str, Any], precision: str) -> keras.Model:
    """The trunk that the features were made by.

    Raises:
        UserError: where the weights are others now.
    """
    with policy(precision):
        trunk = keras_applications.build_trunk(
            params.backbone, params.weights, meta["image_size"], meta["pooling"], params.seed
        )
    if keras_applications.weights_sha256(trunk) != meta["weights_sha256"]:
        raise UserError(
            f"the weights of {params.backbone} are not those that the features were made by; "
            "run `dvc repro --force extract`"
        )
    return trunk


@dataclass(frozen=True)
class Plan:
    """What the trainings of one fine-tuning share.

    Attributes:
        choice: as params.yaml has it.
        network: activations or images -> logits; what is trainable in it is trained.
        head: its last layers.
        start: the values of the network's variables before any training.
        inputs: of the images of train, then of val.
        targets: (N,) int32, of these images.
        count: how many of them are of train.
        scales: of the learning rate, for each trainable variable.
        epochs: of every training.
        views: augmented ones of each image.
        refits: whether what earned its place is to be trained on train and val.
        seed: of the order, and of what is mixed.
        kept: the start of the names of the files that trainings go on from.
        chosen: how it is trained where params leave it open.
    """

    choice: FineTune
    network: keras.Model
    head: keras.Model
    start: list[np.ndarray]
    inputs: Inputs
    targets: np.ndarray
    count: int
    scales: list[float]
    epochs: int
    views: int
    refits: bool
    seed: int
    kept: Path
    chosen: dict[str, Any]

    def judge(self, judges: list[Fold]) -> Judged:
        """Train once a fold; the network is left as it came."""
        return folds.judge(
            self.network,
            self.head,
            judges,
            lambda fold, tell: self._job(fold.seen, fold.held_out, tell),
            self.targets,
            self.epochs,
            self.kept,
        )

    def train(self, tell: Callable[[dict[str, float]], None]) -> Tuned:
        """Train on train, watching val.

        Args:
            tell: is given the row of each epoch.
        """
        rows = np.arange(len(self.targets))
        return tune(self._job(rows[: self.count], rows[self.count :], tell, self._checkpoint(""), watched=True))

    def refit(self, tuned: Tuned) -> bool:
        """Train again from the start, on train and val, as `train` did.

        Args:
            tuned: what `train` came to.

        Returns:
            Whether that went well. Where it broke off, or knows less of val than what never saw it, it went astray, and
            the network is left as it was.
        """
        gc.collect()  # the optimizer of `train`, which keeps itself alive
        before, rows = networks.values(self.network), np.arange(len(self.targets))
        networks.assign(self.network, self.start)
        print(f"fine_tune: the same again on train and val together, {len(rows):,} images instead of {self.count:,}")
        again = tune(self._job(rows, rows[self.count :], lambda _: None, self._checkpoint("-all")))
        if again.epochs.kept["epoch"] == self.epochs and again.right >= tuned.right:
            return True
        networks.assign(self.network, before)
        print("fine_tune: that went astray: what was trained on train alone is kept")
        return False

    def forget(self) -> None:
        """Remove what trainings would go on from: what they came to is taken."""
        with contextlib.suppress(OSError):
            for file in self.kept.parent.glob(f"{self.kept.name}*.npz"):
                file.unlink(missing_ok=True)

    def _checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint(self.kept.with_name(f"{self.kept.name}{name}.npz"))

    def _job(
        self,
        rows: np.ndarray,
        others: np.ndarray,
        tell: Callable[[dict[str, float]], None],
        state: Checkpoint | None = None,
        watched: bool = False,
    ) -> Job:
        choice, size = self.choice, self.choice.batch_size
        weights = examples.class_weights(self.targets[rows], self.head.output_shape[-1], choice.class_weight)

        def some(rows: np.ndarray, views: int, seed: int | None) -> Batches:
            return Batches(self.inputs, self.targets, rows, weights, size, views, seed, choice.mixup)

        return Job(
            self.network,
            some(rows, self.views, self.seed),
            some(others, 0, None),
            self.scales,
            choice,
            self.epochs,
            defaults.momentum(choice, self.epochs, len(rows)),
            state,
            watched,
            tell,
        )


@contextmanager
def opened(
    params: Params,
    trunk: keras.Model,
    head: keras.Model,
    meta: dict[str, Any],
    judges: list[Fold],
    batch_size: int | None,
) -> Iterator[Plan | None]:
    """The plan to train these, in place; None where nothing of the trunk is to be trained.

    Args:
        judges: of another training each, on all images but its own; none where val judges.
        batch_size: of what is computed once; None for the engine's own.
    """
    choice, size = params.fine_tune, meta["image_size"]
    for layer in head.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    base = trunk.get_layer(keras_applications.BACKBONE_LAYER)
    trained = blocks.chosen(base, BACKBONES[params.backbone], choice.unfreeze)
    scales = blocks.unfreeze(base, trained, choice.layer_decay)
    if not scales:
        yield None
        return
    images = pd.concat([load_split("train"), load_split("val")], ignore_index=True)
    targets, count = images.target.to_numpy(), int((images.split == "train").sum())
    epochs, views = defaults.schedule(choice, count)
    refits = defaults.refit(choice, images)
    where = blocks.cut(base, trained)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(params.data.source, params.data.root))
        whole = keras.Model(trunk.inputs, head(trunk.output))
        changes = defaults.augmentation(choice, whole, images[count:], source, size, params.seed) if views else NONE
        views = 0 if changes == NONE else views  # all would be alike
        seen = images.assign(split="train") if judges or refits else images  # images of val are trained on, too
        cached, reason = activations.choose(
            choice.trunk_cache,
            int(np.prod(where.shape)) if where else None,
            images=int((seen.split == "train").sum()) * views + len(images),
            passes=len(images) * epochs * (1 + len(judges) + refits),
            fast=meta["engine"] == "openvino",
            work=blocks.work_below(base, where) if where else 0.0,
        )
        print(f"fine_tune: {epochs} epochs from {'kept activations' if cached else 'the images'}: {reason}")
        inputs: Inputs = activations.Pixels(images, source, size, changes)
        if cached:
            run, recipe = _below(params, meta, where, batch_size)
            inputs = stack.enter_context(
                activations.activations(run, recipe, seen, source, where.shape, size, changes, views)
            )
        below = blocks.upper(trunk, where) if cached else trunk
        start = keras.Input(below.input_shape[1:])
        average = defaults.momentum(choice, epochs, count)
        chosen = {"epochs": epochs, "ema": average, "views": views, **asdict(changes), "trunk_cache": cached}
        chosen |= {"folds": len(judges), "refit": refits, "layers_trained": len(scales)}
        network = keras.Model(start, networks.without_softmax(head)(below(start)))
        yield Plan(
            choice=choice,
            network=network,
            head=head,
            start=networks.values(network),
            inputs=inputs,
            targets=targets,
            count=count,
            scales=[*scales, *[1.0] * len(head.trainable_variables)],
            epochs=epochs,
            views=views,
            refits=refits,
            seed=params.seed,
            kept=paths.cache_path("fine_tune") / fingerprint(params, meta, chosen, judges),
            chosen=chosen,
        )


def _below(
    params: Params, meta: dict[str, Any], where: Cut, batch_size: int | None
) -> tuple[engines.Engine, dict[str, Any]]:
    """What runs the frozen blocks, and what tells their activations from those of others."""
    engine = "tensorflow" if meta["engine"] == "tensorflow" else "auto"
    # On CPUs float32 is fast enough, and always there.
    precision = params.fine_tune.precision if gpu_names() else "float32"

    def frozen() -> keras.Model:
        return blocks.lower(build(params, meta, precision), params.backbone, where)

    recipe = {
        "backbone": params.backbone,
        "image_size": meta["image_size"],
        "pooling": f"cut-{where.place}",
        "precision": precision,
        "storage": activations.STORAGE,
    }
    return engines.open_engine(engine, frozen, precision, batch_size), recipe


def fingerprint(params: Params, meta: dict[str, Any], chosen: dict[str, Any], judges: list[Fold]) -> str:
    """Of everything that shapes the training: what another one left is not gone on with. 16 hexadecimal digits."""
    read = [params.backbone, params.weights, params.seed, params.data, params.fine_tune]
    kernels_used = os.environ["TF_ENABLE_ONEDNN_OPTS"]
    parts = [*read, meta, chosen, tf.__version__, keras.__version__, device_name(), kernels_used]
    modules = (
        augmentation,
        batches,
        blocks,
        calibration,
        checkpoint,
        extraction,
        fine_tuning,
        folds,
        heads,
        networks,
        pixels,
        history,
        activations,
        verdict,
    )
    code = [Path(module.__file__).read_bytes() for module in modules] + [Path(__file__).read_bytes()]
    made = [paths.HEAD.read_bytes(), *(fold.digest() for fold in judges)]
    return hashlib.sha256(b"".join([repr(parts).encode(), *made, *code])).hexdigest()[:16]
