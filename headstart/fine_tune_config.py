"""The section fine_tune of params.yaml, see headstart/config.py."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from headstart.head_config import Below1, Epochs, LearningRate, UpTo1
from headstart.validation import Float, Int, Rule, Section

UNFREEZE = 0.35  # what fine_tune.unfreeze comes with
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Positive = Annotated[Float, Field(gt=0, le=1_000_000)]
Seconds = Annotated[Float, Field(ge=0, le=60)]
Decibels = Annotated[Float, Field(ge=0, le=60)]
Speed = Annotated[Float, Field(ge=0, le=0.5)]
LeastArea = Annotated[Float, Field(gt=0, le=1)]
Views = Annotated[Int, Field(ge=0, le=1000)]
Precision = Literal["float32", "bfloat16", "float16"]


def _read_switch(value: Any) -> Any:
    """Undo YAML 1.1, which reads the words on and off as true and false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _check_unfreeze(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (whole and 1 <= value <= 10_000) or (isinstance(value, float) and 0 < value < 1):
        return value
    if not isinstance(value, str) or not value.strip() or _NUMBER.fullmatch(value):
        raise ValueError
    return value


class FineTune(Section):
    """Training the last blocks of the backbone together with the head."""

    unfreeze: Annotated[
        int | float | str,
        BeforeValidator(_check_unfreeze),
        Rule("all, none, a number of blocks, a share of the layers in (0, 1), or the name of a block or layer"),
    ]
    """What is trained, counted from the output. A share of the layers is rounded to whole blocks.
    `headstart backbones NAME` lists the blocks."""
    effort: Literal["quick", "default", "thorough"]
    """How much is spent where the keys below leave it open: quick has the fewest epochs; thorough the most, trains also
    where the head leaves little to gain, ends no training early, and refits from the start."""
    epochs: Epochs | None
    """Epochs; null: 400 steps' worth, between 5 and 30, with folds at most 15; by effort quick 250, between 3 and 8,
    thorough 750, between 5 and 30. The weights of the last one are used."""
    batch_size: Annotated[Int, Field(ge=1, le=4096)]
    """Examples per step; when out of memory they are split into smaller batches, by gradient accumulation."""
    learning_rate: LearningRate | None
    """Peak learning rate of AdamW, after a warm-up and before a cosine decay to zero; null: what suits the backbone,
    0.0003 for images and 0.00003 for most text encoders."""
    layer_decay: LeastArea
    """Each block learns at this share of the learning rate of the block above it; 1: all alike."""
    warm_up: Below1
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: UpTo1
    """Weight decay of AdamW."""
    label_smoothing: Below1 | None
    """Label smoothing; null: what suits the backbone, 0.1 for images and recordings, 0 for texts. The loss in the
    curves is without it."""
    class_weight: Literal["balanced"] | None
    """balanced: each class counts the same, however many examples it has; null: each example counts the same."""
    clip_norm: Positive | None
    """Largest norm of the gradient; null: no gradient clipping."""
    ema: Below1 | None
    """Momentum of the exponential moving average of the weights, which is evaluated and kept; null: it averages over a
    fifth of all steps; 0: no average."""
    precision: Precision
    """Precision of training; bfloat16 and float16 (mixed precision) are faster on GPUs."""
    views: Views | None
    """Augmented views of each training example, which the epochs take in turn; null: one for each epoch, at most 9."""
    crop: LeastArea | None
    """Smallest share of the image area that a view shows; 1: no crop; null: the smallest of 0.35 to 0.9 at which the
    head still classifies nine tenths of what it classified correctly without a crop."""
    flip: StrictBool | None
    """Whether half of the views are flipped horizontally; null: if the head passes the same check as for crop."""
    jitter: Below1
    """Largest relative change of brightness, contrast and saturation in a view."""
    word_dropout: Below1 | None
    """Share of the words of a text that a view leaves out; null: 0, and then there are no views."""
    time_shift: Seconds
    """Seconds by which a view of a recording begins later or earlier, at most; it loses a tenth of it at most."""
    gain: Decibels
    """dB by which a view of a recording is louder or softer, at most."""
    noise_snr: Decibels | None
    """Signal-to-noise ratio, in dB, of the loudest noise that a view of a recording has; null: no noise."""
    speed: Speed
    """Share by which a view of a recording is faster and higher, or slower and lower, at most."""
    mixup: Annotated[Float, Field(ge=0, le=10)]
    """Alpha of the Beta distribution by which pairs of images are mixed; 0: no mixup. Texts never are."""
    trunk_cache: Annotated[Literal["auto", "on", "off"], BeforeValidator(_read_switch)]
    """Whether the outputs of the frozen blocks are computed once per view and cached; auto: if that is faster."""
    folds: Literal[0] | Annotated[Int, Field(ge=2, le=100)] | None
    """Folds of train that decide along with val between the fine-tuned network and the head, each with a training of
    its own, until the difference is clear; 0: val alone; null: 4 if val has fewer than 50 examples and both together at
    most 1,000, else 0."""
    confidence: Below1
    """How sure a paired test must be that fine-tuning lowers the Brier score, by at least 0.0001 and without fewer
    correct answers; otherwise the head alone is selected."""
    refit: StrictBool | None
    """Whether the selected network is then trained on train and val together; null: if they have at most 5,000 examples
    and the source has no val split of its own."""

    def asked_for(self) -> bool:
        """Whether fine-tuning is asked for even where the head leaves nothing to gain."""
        return self.effort == "thorough" or (self.epochs, self.folds, self.unfreeze) != (None, None, UNFREEZE)


class ResolvedFineTune(FineTune):
    """Fine-tuning without null for what follows from the backbone, see `training.defaults.resolve_fine_tune`."""

    learning_rate: LearningRate
    label_smoothing: Below1
