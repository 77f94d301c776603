"""The section `train_head` of params.yaml: what a head is, how it is trained, and which values a search tries."""

from __future__ import annotations

import itertools
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationError, ValidationInfo, field_validator

from headstart.errors import did_you_mean
from headstart.validation import Float, Int, Rule, Section, problems

MAX_GRID = 10_000  # combinations of a search

Units = Annotated[Int, Field(ge=1, le=65536)]
Epochs = Annotated[Int, Field(ge=1, le=10000)]
LearningRate = Annotated[Float, Field(gt=0, le=1)]
Below1 = Annotated[Float, Field(ge=0, lt=1)]
UpTo1 = Annotated[Float, Field(ge=0, le=1)]


class HeadChoice(Section):
    """What a head is and how it is trained."""

    hidden: Annotated[list[Units] | None, Rule("a list of integers such as [128]")]
    """Units of each hidden layer; []: a linear classifier; null: the head is chosen by cross-validation, if the keys
    from here to patience, but for label_smoothing and class_weight, are as they come; else [128], or [] with lbfgs."""
    activation: Literal["relu", "gelu", "silu", "tanh"]
    """Activation of the hidden layers."""
    batch_norm: StrictBool
    """Whether a BatchNorm follows each hidden layer."""
    dropout: Below1 | None
    """Dropout rate in front of every layer of the head; null: 0.2, but 0 in a linear head."""
    optimizer: Literal["auto", "lbfgs", "adam", "sgd", "rmsprop"]
    """lbfgs trains linear heads without dropout to convergence; sgd has momentum 0.9; auto: lbfgs for such heads, adam
    for others."""
    learning_rate: LearningRate
    """Learning rate. lbfgs ignores it, as it does schedule, batch_size, epochs and patience."""
    schedule: Literal["constant", "cosine"]
    """Learning rate schedule; cosine decays to zero."""
    weight_decay: UpTo1 | None
    """Decoupled weight decay, as a share of the learning rate per step. lbfgs adds weight_decay / 2 times the squared
    weights to the loss: scikit-learn's C is 1 / (weight_decay x examples). null: 0.02 with lbfgs, less
    with more than 10 classes; else 0."""
    label_smoothing: Below1
    """Label smoothing."""
    class_weight: Literal["balanced"] | None
    """balanced: each class counts the same, however many examples it has; null: each example counts the same."""
    batch_size: Annotated[Int, Field(ge=1, le=65536)]
    """Examples per batch."""
    epochs: Epochs
    """Passes over the training features; the weights of the epoch with the lowest val loss are restored."""
    patience: Annotated[Int, Field(ge=1, le=10000)] | None
    """Early stopping: epochs without a lower val loss after which training stops; null: no early stopping."""

    @field_validator("optimizer")
    @classmethod
    def _lbfgs_trains_linear_heads(cls, optimizer: str, info: ValidationInfo) -> str:
        if optimizer == "lbfgs" and (info.data.get("hidden") or info.data.get("dropout")):
            raise ValueError("lbfgs needs hidden: [] and dropout: 0; use adam for other heads")
        return optimizer


# What leaves the choice of the head to cross-validation.
OPEN = {
    "hidden": None,
    "activation": "relu",
    "batch_norm": False,
    "dropout": None,
    "optimizer": "auto",
    "learning_rate": 0.001,
    "schedule": "constant",
    "weight_decay": None,
    "batch_size": 32,
    "epochs": 20,
    "patience": None,
}


class ResolvedHead(HeadChoice):
    """A choice with nothing left open, see `training.head_settings.resolve_head`."""

    hidden: list[Units]
    dropout: Below1
    optimizer: Literal["lbfgs", "adam", "sgd", "rmsprop"]
    weight_decay: UpTo1


class TrainHead(HeadChoice):
    """Training the head on cached features, and the search for its settings."""

    search: Annotated[
        dict[str, list[Any]],
        BeforeValidator(
            lambda value: {str(key): item for key, item in value.items()} if type(value) is dict else value
        ),
        Rule("a section of keys with lists of values such as {dropout: [0, 0.5]}, or {}"),
    ]
    """Values to try of the keys above, e.g. {dropout: [0, 0.5], hidden: [[], [256]]}; the combination with the lowest
    log loss wins; {}: no search."""
    search_trials: Annotated[Int, Field(ge=1, le=10000)] | None
    """How many combinations are tried, drawn at random by seed; null: all."""
    search_folds: Annotated[Int, Field(ge=2, le=100)] | None
    """Folds of cross-validation within train that score a combination; null: val scores it."""
    log_trials: StrictBool
    """Whether each trial becomes a run in MLflow."""

    def asked_for(self) -> list[str]:
        """Return the keys that ask for a head of their own; empty if cross-validation is to choose one."""
        return [
            *(name for name, value in OPEN.items() if getattr(self, name) != value),
            *(["search"] * bool(self.search)),
        ]

    def choice(self, **changes: Any) -> HeadChoice:
        """Return what is trained, with `changes` to it.

        Raises:
            pydantic.ValidationError: if they are not valid.
        """
        return HeadChoice(**{name: getattr(self, name) for name in HeadChoice.model_fields} | changes)

    @field_validator("search")
    @classmethod
    def _combinations_are_valid(cls, search: dict[str, list[Any]], info: ValidationInfo) -> dict[str, list[Any]]:
        known = HeadChoice.model_fields
        for key, values in search.items():
            if key not in known:
                advice = did_you_mean(key, known) or f"; those are {', '.join(known)}"
                raise ValueError(f"must have keys of train_head, got {key!r}{advice}")
            if not values:
                raise ValueError(f"must have a list of values for {key}, got []")
        if math.prod(map(len, search.values())) > MAX_GRID:
            raise ValueError(f"must have at most {MAX_GRID:,} combinations; shorten its lists")
        base = {name: value for name, value in info.data.items() if name in known}
        if base.keys() == known.keys():  # else another key is wrong, which is reported by itself
            for combination in itertools.product(*search.values()):
                changes = dict(zip(search, combination, strict=True))
                try:
                    HeadChoice(**base | changes)
                except ValidationError as error:
                    key, problem, _ = next(problems(HeadChoice, error))
                    shown = json.dumps(changes, default=str)  # YAML knows dates
                    raise ValueError(f"must have valid combinations; in {shown} {key} {problem}") from error
        return search
