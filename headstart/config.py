"""The typed form of params.yaml, checked once before anything slow is imported.

Command: python -m headstart.config    # checks params.yaml and the data source, prints one line
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationError, model_validator

from headstart.errors import UserError, did_you_mean
from headstart.paths import PREPARED, is_address
from headstart.validation import Section, check, parse_yaml, read_yaml, rule, within

PARAMS_FILE = Path("params.yaml")
MAX_GRID = 10_000  # combinations of a search
MAX_BLOCKS = 10_000
# Training images of a class, on average, below which a head is linear where `hidden` is left open, and its weight
# decay: with 14 of a class hidden layers were less accurate by 1.6 +- 0.5 points on flowers, with 35 by 0.6 +- 0.4
# (benchmarks/choices.py, see there).
LINEAR_BELOW, LINEAR_DECAY = 30, 0.02
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Share = Annotated[float, within(float, "(0, 1)")]
LearningRate = Annotated[float, within(float, "(0, 1]")]
Epochs = Annotated[int, within(int, "[1, 10000]")]
ImageBatch = Annotated[int, within(int, "[1, 4096]")]
Units = Annotated[int, within(int, "[1, 65536]")]


class Data(Section):
    kind: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    root: Annotated[str, Field(min_length=1)] | None


class Prepare(Section):
    split: Literal["hash", "exact"]
    val_fraction: Share
    test_fraction: Share
    group_by: Annotated[str, Field(min_length=1)] | None
    near_distance: Annotated[float, within(float, "[0, 1]")]
    min_size: Annotated[int, within(int, "[1, 100000]")]
    on_bad: Literal["quarantine", "fail"]
    max_bad_fraction: Annotated[float, within(float, "[0, 1]")]
    on_conflict: Literal["quarantine", "fail", "keep"]


class Extract(Section):
    size: Annotated[int | None, within(int, "[1, 4096]", optional=True)]
    pooling: Literal["avg", "max", "flatten"]
    engine: Literal["auto", "openvino", "tensorflow"]
    precision: Literal["float32", "bfloat16", "float16"]
    batch_size: Annotated[int | None, within(int, "[1, 4096]", optional=True)]
    storage: Literal["float32", "float16"]
    views: Annotated[int, within(int, "[0, 1000]")]
    crop: Annotated[float, within(float, "(0, 1]")]
    flip: StrictBool
    jitter: Annotated[float, within(float, "[0, 1)")]


class HeadChoice(Section):
    """What a head is and how it is trained."""

    hidden: list[Units] | None
    activation: Literal["relu", "gelu", "silu", "tanh"]
    batch_norm: StrictBool
    dropout: Annotated[float | None, within(float, "[0, 1)", optional=True)]
    optimizer: Literal["auto", "lbfgs", "adam", "sgd", "rmsprop"]
    learning_rate: LearningRate
    schedule: Literal["constant", "cosine"]
    weight_decay: Annotated[float | None, within(float, "[0, 1]", optional=True)]
    label_smoothing: Annotated[float, within(float, "[0, 1)")]
    class_weight: Literal["balanced"] | None
    batch_size: Annotated[int, within(int, "[1, 65536]")]
    epochs: Epochs
    patience: Annotated[int | None, within(int, "[1, 10000]", optional=True)]

    def settled(self, images: int, n_classes: int) -> HeadChoice:
        """With nothing left open.

        Args:
            images: to train on.
        """
        few = images < LINEAR_BELOW * n_classes or self.optimizer == "lbfgs"
        hidden = self.hidden if self.hidden is not None else [] if few else [128]
        dropout = self.dropout if self.dropout is not None else 0.2 if hidden else 0.0
        settled = self.model_copy(update={"hidden": hidden, "dropout": dropout})
        decay = LINEAR_DECAY if settled.solver() == "lbfgs" else 0.0
        return settled if self.weight_decay is not None else settled.model_copy(update={"weight_decay": decay})

    def solver(self) -> str:
        """The optimizer that is used, of a settled choice."""
        if self.optimizer != "auto":
            return self.optimizer
        return "adam" if self.hidden or self.dropout else "lbfgs"

    @model_validator(mode="after")
    def _lbfgs_is_for_linear_heads(self) -> HeadChoice:
        if self.optimizer == "lbfgs" and (self.hidden or self.dropout):
            raise ValueError("of hidden [] and dropout 0 for optimizer lbfgs; use adam for others")
        return self


class TrainHead(HeadChoice):
    """`search` has the values to try of some of HeadChoice's keys."""

    search: dict[str, list[Any]]
    search_trials: Annotated[int | None, within(int, "[1, 10000]", optional=True)]
    search_folds: Annotated[int | None, within(int, "[2, 100]", optional=True)]
    log_trials: StrictBool

    def choice(self, **changes: Any) -> HeadChoice:
        """What is trained, with `changes` in the place of what stands here.

        Raises:
            pydantic.ValidationError: where they are not valid.
        """
        return HeadChoice(**{name: getattr(self, name) for name in HeadChoice.model_fields} | changes)

    def trials(self, seed: int) -> list[dict[str, Any]]:
        """The combinations of the values of `search`, all of them or `search_trials` drawn by `seed`."""
        if not self.search:
            return []
        grid = [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]
        if self.search_trials is None or self.search_trials >= len(grid):
            return grid
        return [grid[number] for number in sorted(random.Random(seed).sample(range(len(grid)), self.search_trials))]

    @model_validator(mode="after")
    def _search_is_valid(self) -> TrainHead:
        known = HeadChoice.model_fields
        for key, values in self.search.items():
            if key not in known:
                advice = did_you_mean(str(key), known) or f"; those are {', '.join(known)}"
                raise ValueError(f"searched over keys of its own, not search.{key}{advice}")
            if not values:
                raise ValueError(f"searched over a list of values, not search.{key} []")
        if math.prod(map(len, self.search.values())) > MAX_GRID:
            raise ValueError(f"searched over at most {MAX_GRID:,} combinations; shorten the lists of search")
        for changes in itertools.product(*self.search.values()):
            named = dict(zip(self.search, changes, strict=True))
            try:
                self.choice(**named)
            except ValidationError as error:
                detail = error.errors()[0]
                key = f"its {detail['loc'][0]}" if detail["loc"] else "it"
                shown = json.dumps(named, default=str)  # YAML knows dates
                raise ValueError(
                    f"searched over valid choices; {shown} is none: {key} must be {rule(detail)}"
                ) from error
        return self


def _switch(value: Any) -> Any:
    """YAML reads a bare on and off as true and false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _weights(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise ValueError("pretrained, none or the path of a weights file")
    return value


def _unfreeze(value: Any) -> Any:
    allowed = "all, none, a number of blocks, a share of the layers in (0, 1), or the name of a block or layer"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (whole and 1 <= value <= MAX_BLOCKS) or (isinstance(value, float) and 0 < value < 1):
        return value
    if not isinstance(value, str) or not value.strip() or _NUMBER.fullmatch(value):
        raise ValueError(allowed)
    return value


def _folds(value: Any) -> Any:
    if value is None or (type(value) is int and (value == 0 or 2 <= value <= 100)):
        return value
    raise ValueError("0, an integer in [2, 100] or null")


class FineTune(Section):
    unfreeze: Annotated[int | float | str, BeforeValidator(_unfreeze)]
    epochs: Annotated[int | None, within(int, "[1, 10000]", optional=True)]
    batch_size: ImageBatch
    learning_rate: LearningRate
    layer_decay: Annotated[float, within(float, "(0, 1]")]
    warm_up: Annotated[float, within(float, "[0, 1)")]
    weight_decay: Annotated[float, within(float, "[0, 1]")]
    label_smoothing: Annotated[float, within(float, "[0, 1)")]
    class_weight: Literal["balanced"] | None
    clip_norm: Annotated[float | None, within(float, "(0, 1000000]", optional=True)]
    ema: Annotated[float | None, within(float, "[0, 1)", optional=True)]
    precision: Literal["float32", "bfloat16", "float16"]
    views: Annotated[int | None, within(int, "[0, 1000]", optional=True)]
    crop: Annotated[float | None, within(float, "(0, 1]", optional=True)]
    flip: StrictBool | None
    jitter: Annotated[float, within(float, "[0, 1)")]
    mixup: Annotated[float, within(float, "[0, 10]")]
    trunk_cache: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
    folds: Annotated[int | None, BeforeValidator(_folds)]
    confidence: Annotated[float, within(float, "[0, 1)")]
    refit: StrictBool | None


class Evaluate(Section):
    resamples: Annotated[int, within(int, "[100, 100000]")]
    top_k: Annotated[int, within(int, "[2, 1000]")]


def _class_names(value: Any) -> Any:
    """YAML reads a class named 0 as a number; what it reads as true or null cannot be told from a name any more."""
    if not isinstance(value, dict):
        raise ValueError("a section of class names, each with a share, e.g. {roses: 0.9}, or {}")
    if not all(isinstance(name, str) or type(name) is int for name in value):
        raise ValueError("a section of class names; put quotes around those that YAML reads otherwise, e.g. 'no'")
    return {str(name): floor for name, floor in value.items()}


OptionalShare = Annotated[float | None, within(float, "[0, 1]", optional=True)]
OptionalSize = Annotated[float | None, within(float, "(0, 1000000]", optional=True)]


class Gate(Section):
    """What headstart.evaluation.gate asks of a run; None and {}: not asked. No stage reads it."""

    min_accuracy: OptionalShare
    min_recall: OptionalShare
    min_recall_of: Annotated[dict[str, Annotated[float, within(float, "[0, 1]")]], BeforeValidator(_class_names)]
    max_drop: OptionalShare
    max_latency_ms: OptionalSize
    max_model_mb: OptionalSize


class Params(Section):
    """params.yaml: a section per stage beside what several stages share."""

    backbone: str
    weights: Annotated[str, BeforeValidator(_weights)]
    seed: Annotated[int, within(int, "[0, 4294967295]")]
    data: Data
    prepare: Prepare
    extract: Extract
    train_head: TrainHead
    fine_tune: FineTune
    evaluate: Evaluate
    gate: Gate

    def leaves(self) -> dict[str, Any]:
        """Every leaf under its dotted key, e.g. `train_head.dropout`, in the order of the file."""
        return {
            (f"{key}.{name}" if name else key): leaf
            for key, value in self.model_dump().items()
            for name, leaf in (value.items() if isinstance(value, dict) else [("", value)])
        }


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check `path`.

    Raises:
        UserError: naming the file, the key, the rule and the value of everything that is wrong.
    """
    return _checked(read_yaml(path), path)


def parse(text: str, path: Path = PARAMS_FILE) -> Params:
    """Check the content of a params.yaml, which messages call `path`.

    Raises:
        UserError: as `load_params`.
    """
    return _checked(parse_yaml(text, path), path)


def _checked(raw: dict[Any, Any], path: Path) -> Params:
    params = check(Params, raw, path, "headstart/config.py")
    _check_across(path, params)
    return params


def _check_across(path: Path, params: Params) -> None:
    """Rules that a single key cannot see."""
    if params.prepare.val_fraction + params.prepare.test_fraction >= 1:
        raise UserError(
            f"{path}: prepare.val_fraction + prepare.test_fraction must be below 1, so that images are left to "
            f"train on, got {params.prepare.val_fraction} + {params.prepare.test_fraction}"
        )


def _exists(place: str) -> bool:
    try:
        return Path(place).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_files(params: Params) -> None:
    """What is checked where a run starts, and again by the stage that reads the file."""
    source, weights = params.data.source, params.weights
    for key, place in (("source", source), ("root", params.data.root)):
        if place and not is_address(place) and not _exists(place):
            raise UserError(
                f"{PARAMS_FILE}: data.{key} {place!r} does not exist; give the path of a folder"
                + (", an archive or a manifest" if key == "source" else "")
            )
    if not is_address(source) and PREPARED.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(
            f"{PARAMS_FILE}: data.source {source!r} holds {PREPARED}/, where prepare writes; put the images into a "
            "folder of their own, e.g. data/photos"
        )
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise UserError(
            f"{PARAMS_FILE}: weights file {weights!r} does not exist; give its path, `pretrained` or `none`"
        )


def main() -> int:
    try:
        params = load_params()
        _check_files(params)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{PARAMS_FILE}: good. Backbone {params.backbone}, data {params.data.source}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
