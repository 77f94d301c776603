"""The typed form of params.yaml, checked once before anything slow is imported.

docs/parameters.md is made of the descriptions here, see headstart/reference.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo, field_validator

from headstart.cluster_config import Cluster
from headstart.data_config import Data, Text
from headstart.errors import UserError, write_home
from headstart.fine_tune_config import Decibels, FineTune, LeastArea, Positive, Precision, Seconds, Speed, Views
from headstart.head_config import Below1, TrainHead, UpTo1
from headstart.validation import Float, Int, Rule, Section, check, parse_yaml, read_number, read_yaml

PARAMS_FILE = Path("params.yaml")
RENAMED = {"extract.image_size": "extract.size"}  # keys of earlier versions

LEAST_CROP = 0.1  # of the shorter side of an image: what is seen of it is resized, with all else in models/model.keras

Fraction = Annotated[Float, Field(gt=0, lt=1)]


class Prepare(Section):
    """What is used, and how it is split."""

    split: Literal["hash", "exact"]
    """hash: the split of each example follows from its content alone, and never changes; exact: the fractions hold
    within one example per class (groups and copies stay together), for data that do not grow."""
    val_fraction: Fraction
    """Share of the examples in val; unused if the source has its own val split."""
    test_fraction: Fraction
    """Share of the examples in test; unused if the source has its own test split."""
    group_by: Text | None
    """A column of the manifest or table, or a regular expression to search in paths: examples with the same match, or
    with the same match of its (), such as a patient or a video, stay in one split; null: no groups."""
    near_distance: UpTo1
    """Near copies never stand in two splits: images that differ by at most this much, and far less than others do. 0.1:
    recompressed; 0.25: also resized or brightened; 0.5: also cropped by a tenth, and some images that are merely
    similar; 0: identical pixels only. Texts that have all but this share of their runs of five characters in common.
    0.1: a typo in a sentence; 0.25: a short word more or less; 0: the same but for case and spaces. Recordings that
    sound and change alike, whatever their loudness, format and the silence around them. 0.1: resampled, shifted or
    noisy, most re-encoded ones; 0.25: nearly all re-encoded ones, or all of that at once; 0: the same samples."""
    min_size: Annotated[Int, Field(ge=1, le=100_000)]
    """Images with a shorter side of fewer pixels are quarantined."""
    value_range: (
        Annotated[
            list[Annotated[Float, Rule("a finite number")]],
            Field(min_length=2, max_length=2),
            Rule("two numbers, black before white, e.g. [0, 4095]"),
        ]
        | None
    )
    """The values that become black and white in images with more than 8 bits or with floats, in every stage and in
    predictions; null: integers: all that the smallest depth of 8, 10, 12, 14 or 16 bits holds in which the values of
    nearly all images fit; floats: [0, 1]; negative or larger values: the range of nearly all values. What is beyond is
    clipped."""
    on_bad: Literal["quarantine", "fail"]
    """What to do with files that cannot be used: quarantine them, or fail at the first one."""
    max_bad_fraction: UpTo1
    """Share of files that may be unusable before the stage fails."""
    on_conflict: Literal["quarantine", "fail", "keep"]
    """What to do with the same content under two labels: quarantine all of it, fail, or keep all of it."""

    @field_validator("value_range")
    @classmethod
    def _black_comes_before_white(cls, ends: list[float] | None) -> list[float] | None:
        if ends and ends[0] >= ends[1]:
            raise ValueError(f"must be two numbers, black before white, e.g. [0, 4095], or null, got {ends}")
        return ends

    @field_validator("test_fraction")
    @classmethod
    def _something_is_left_to_train_on(cls, test: float, info: ValidationInfo) -> float:
        val = info.data.get("val_fraction", 0)
        if val + test >= 1:
            raise ValueError(
                f"must leave examples to train on: val_fraction + test_fraction is {val} + {test}, not < 1"
            )
        return test


def _check_resize(value: Any) -> Any:
    value = read_number(value)
    is_share = type(value) in (int, float) and LEAST_CROP <= value <= 1
    if value not in (None, "stretch", "crop") and not is_share:
        raise ValueError
    return float(value) if is_share else value


class Extract(Section):
    """How features are computed."""

    size: Annotated[Int, Field(ge=1, le=4096)] | None
    """What the backbone sees: the side of square images in pixels, tokens of a text, seconds of a recording; null: the
    default of the backbone."""
    resize: Annotated[
        Literal["stretch", "crop"] | float | None,
        BeforeValidator(_check_resize),
        Rule(f"stretch, crop or the share of the shorter side that is seen, in [{LEAST_CROP}, 1]"),
    ]
    """How an image becomes a square. stretch: all of it, whatever its shape; crop: its central square, with the share
    of the shorter side that the backbone was trained with, or else 0.875; a number: that share, 1 being the whole
    shorter side; null: as the backbone was trained, stretch for those of keras.applications."""
    pooling: Literal["avg", "max", "flatten"]
    """How a feature map of the backbone becomes a vector; avg of recordings: mean and standard deviation over time."""
    depth: Literal["last", "quarter", "half"] | None
    """From where features are taken: the output of the backbone alone, or also each block of its last quarter or half,
    from which train_head chooses; null: half, but last with pooling flatten or more than 50,000 examples and views."""
    engine: Literal["auto", "openvino", "tensorflow", "jax"]
    """openvino (CPUs), tensorflow (CPUs and GPUs), jax (CPUs and GPUs; needs the extra `jax`, and weights other than
    none), or auto: tensorflow on GPUs, else openvino."""
    precision: Precision
    """Precision of the arithmetic; bfloat16 and float16 are faster on devices that support them. Later stages compute
    in float32, so the head is then trained on slightly different features."""
    batch_size: Annotated[Int, Field(ge=1, le=4096)] | None
    """Examples per batch; null: the default of the engine. It changes no result of openvino, but the rounding of
    tensorflow and jax, which then compute all features again; these halve it when out of memory."""
    storage: Literal["float32", "float16"]
    """Precision of the stored features; float16 needs half of the space."""
    views: Views
    """Augmented views of each training example, cached as features for train_head."""
    crop: LeastArea
    """Smallest share of the image area that a view shows; 1: no crop."""
    flip: StrictBool
    """Whether half of the views are flipped horizontally."""
    jitter: Below1
    """Largest relative change of brightness, contrast and saturation in a view."""
    word_dropout: Below1
    """Share of the words of a text that a view leaves out."""
    time_shift: Seconds
    """Seconds by which a view of a recording begins later or earlier, at most; it loses a tenth of it at most."""
    gain: Decibels
    """dB by which a view of a recording is louder or softer, at most."""
    noise_snr: Decibels | None
    """Signal-to-noise ratio, in dB, of the loudest noise that a view of a recording has; null: no noise."""
    speed: Speed
    """Share by which a view of a recording is faster and higher, or slower and lower, at most."""

    @field_validator("depth")
    @classmethod
    def _flatten_takes_the_output_alone(cls, depth: str | None, info: ValidationInfo) -> str | None:
        if depth in ("quarter", "half") and info.data.get("pooling") == "flatten":
            raise ValueError(f"must be last or null with extract.pooling flatten, got {depth}")
        return depth


class Evaluate(Section):
    """Metrics on the test split."""

    resamples: Annotated[Int, Field(ge=100, le=100_000)]
    """Bootstrap resamples of the test split for the intervals of macro F1, log loss and calibration error; the others
    are Wilson's."""
    top_k: Annotated[Int, Field(ge=2, le=1000)]
    """Top-k accuracy: the label is among the k most probable classes; reported if there are more than k classes."""


def _read_class_names(value: Any) -> Any:
    """Read a class named 0, which is a number to YAML; what YAML reads as true or null is no name any more."""
    if isinstance(value, dict) and not all(isinstance(name, str) or type(name) is int for name in value):
        raise ValueError(
            "must be a section of class names; put quotes around words that YAML takes for others, as 'no'"
        )
    return {str(name): floor for name, floor in value.items()} if isinstance(value, dict) else value


class Gate(Section):
    """What `headstart gate` asks of a run. No stage reads it, so that a change re-runs nothing."""

    min_accuracy: UpTo1 | None
    """Lowest accuracy on test; null: no rule."""
    min_recall: UpTo1 | None
    """Lowest recall of any class on test; null: no rule."""
    min_recall_of: Annotated[
        dict[str, UpTo1],
        BeforeValidator(_read_class_names),
        Rule("a section of class names, each with a share such as {roses: 0.9}, or {}"),
    ]
    """Lowest recall of single classes, in place of min_recall; {}: none."""
    max_drop: UpTo1 | None
    """By how much accuracy may be worse than that of another run if McNemar's test says that it is worse; null: no
    rule."""
    allow_class_changes: StrictBool
    """Whether the classes may differ from those of the other run: added, removed, renamed, split or merged. If they
    do, max_drop is about the classes that both runs know."""
    max_latency_ms: Positive | None
    """Milliseconds from one decoded example to its probabilities; null: no rule."""
    max_model_mb: Positive | None
    """Size of models/model.keras in megabytes (10^6 bytes); null: no rule."""


class Params(Section):
    """params.yaml: a section for each stage, and what several stages share."""

    backbone: Text | None
    """The pretrained network; `headstart backbones` lists them; null: tiny for images, tinybert
    for texts, wavenet for recordings."""
    weights: Annotated[str, Field(min_length=1), Rule("pretrained, none or the path of a weights file")]
    """pretrained (ImageNet; for tiny the file in the repository), none (random), or a weights file. DVC does not watch
    that file: if it changes, run `dvc repro --force extract`, or set data.watch."""
    seed: Annotated[Int, Field(ge=0, le=4_294_967_295)]
    """Seed of splits, folds, trials, initial weights, order, dropout, mixup and draws; augmented views follow from the
    example itself."""
    data: Data
    prepare: Prepare
    extract: Extract
    train_head: TrainHead
    fine_tune: FineTune
    evaluate: Evaluate
    gate: Gate
    cluster: Cluster

    def leaves(self) -> dict[str, Any]:
        """Return every leaf under its dotted key, e.g. `train_head.dropout`, in the order of the file."""
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
    return check(Params, read_yaml(path), path, "headstart/config.py", RENAMED)


def parse(text: str, path: Path = PARAMS_FILE) -> Params:
    """Check the content of a params.yaml, which messages call `path`; raises as `load_params`."""
    return check(Params, parse_yaml(text, path), path, "headstart/config.py", RENAMED)


def check_weights(params: Params) -> None:
    """Check before a run that the weights file exists, if there is to be one; raises UserError if it does not."""
    weights = params.weights
    if weights not in ("pretrained", "none") and not os.path.isfile(weights):
        if weights.startswith("~"):
            raise UserError(f"{PARAMS_FILE}: weights {weights!r}: {write_home(weights)}")
        raise UserError(
            f"{PARAMS_FILE}: weights file {weights!r} does not exist; give its path, `pretrained` or `none`"
        )
