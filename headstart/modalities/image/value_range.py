"""One scale for all images of a data set that have more than 8 bits: the values that become black and white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.modalities.image.deep import FULL, FULL_FLOAT, SMALL_PART

if TYPE_CHECKING:
    import pandas as pd

Range = tuple[float, float]

DEPTHS = (8, 10, 12, 14, 16)  # bits of the devices that take images
OUTSIDE = 0.01  # share of the images that may reach beyond the range: a few that are not like the others
FEW = 0.05  # share of the images that may use a small part of the range without a warning: dark ones


def find_reading(examples: pd.DataFrame, given: Sequence[float] | None) -> tuple[dict[str, Any], list[str]]:
    """Return how images of a data set are read, {"value_range": [black, white]}, {} for 8 bits; and lines about it.

    Args:
        examples: rows of all images, with what `ImageModality.measures` gives.
        given: the range that params.yaml gives, if any.
    """
    deep = examples[examples.deep > 0] if "deep" in examples else examples[:0]
    if deep.empty:
        return {}, ["prepare.value_range is not used: all images have 8 bits"] if given else []
    chosen = as_range(given) if given else find_value_range(deep.low, deep.high, bool((deep.float > 0).any()))
    return {"value_range": list(chosen)}, describe_value_range(examples, chosen, bool(given))


def parse_reading(reading: dict[str, Any]) -> Range | None:
    """Return the range in what `find_reading` returned.

    Raises:
        ValueError: if it is anything else.
    """
    if reading and set(reading) != {"value_range"}:
        raise ValueError(f"images are read by a value_range and a center_crop, not by {reading!r}")
    return as_range(reading["value_range"]) if reading else None


def find_value_range(lows: pd.Series, highs: pd.Series, floats: bool) -> Range:
    """Return the range of images, of which a hundredth may reach beyond it at each end.

    Integers without negative ones: all values of the smallest depth in DEPTHS that holds them. Floats: [0, 1], or as
    integers if they use a fair part of a depth. Others, and those of more bits: what there is, in round numbers, so
    that it does not change with every new image.

    Args:
        lows, highs: of each image, see `DeepImage.extent`.
    """
    low = float(np.quantile(lows, OUTSIDE, method="lower"))
    high = float(np.quantile(highs, 1 - OUTSIDE, method="higher"))
    if low < 0 or high > FULL:
        return _round_outwards(min(low, 0.0), high)
    if floats and high <= FULL_FLOAT:
        return 0.0, FULL_FLOAT
    white = next(2**bits - 1 for bits in DEPTHS if high <= 2**bits - 1)
    if floats and high < SMALL_PART * white:
        return _round_outwards(0.0, high)
    return 0, white


def _round_outwards(low: float, high: float) -> Range:
    """Return multiples of a tenth to a hundredth of the width around both."""
    width = high - low or 1.0
    digits = 1 - math.floor(math.log10(width))
    step = 10.0**-digits
    ends = math.floor(low / step), math.ceil(high / step)
    return tuple(int(end * step) if digits <= 0 else round(end * step, digits) for end in ends)  # type: ignore[return-value]


def describe_value_range(examples: pd.DataFrame, value_range: Range, chosen: bool) -> list[str]:
    """Return what to say about the range of a data set, a line each; what looks like a mistake begins with `warning:`.

    Args:
        examples: rows of all images: deep (whether one has more than 8 bits), float, low, high.
        chosen: whether params.yaml gives the range.
    """
    deep = examples[examples.deep > 0]
    low, high = value_range
    lows, highs = deep.low.to_numpy(float), deep.high.to_numpy(float)
    source = "by prepare.value_range" if chosen else "prepare.value_range sets another range"
    clipped = int(((lows < low) | (highs > high)).sum())
    lines = [
        f"{len(deep)} of {len(examples)} images have more than 8 bits: {low:g} is black and {high:g} is white in all "
        f"of them, in every stage and in predictions ({source})"
        + (f"; {clipped} have values beyond, which are clipped" if clipped else "")
    ]
    least, most = np.quantile(lows, OUTSIDE, method="lower"), np.quantile(highs, 1 - OUTSIDE, method="higher")
    small = int((highs - low < SMALL_PART * (high - low)).sum())
    if most - least < SMALL_PART * (high - low):
        advice = f"; for more contrast set prepare.value_range to [{least:g}, {most:g}]" if most > least else ""
        lines.append(f"warning: their values, {least:g} to {most:g}, are a small part of that range{advice}")
    elif small > FEW * len(deep):
        lines.append(f"warning: {small} of them use less than an eighth of that range; have they another depth?")
    if len(deep) < len(examples):
        lines.append(
            f"warning: the other {len(examples) - len(deep)} images have 8 bits, and 255 is white in them; if the "
            "depth depends on the label, it will be learned: convert all to one depth"
        )
    if 0 < (deep.float > 0).sum() < len(deep):
        lines.append(
            f"warning: {int((deep.float > 0).sum())} of them hold floats, the others integers; convert all to one kind"
        )
    return lines


def compare(extent: Range, value_range: Range) -> str:
    """Return what to say of an image to predict, as of `3 of 9 images`, if another range would suit it better."""
    (least, most), (low, high) = extent, value_range
    if least < low or most > high:
        return (
            f"have values beyond {low:g} and {high:g}, black and white of the training images, which are clipped; have "
            "they another depth?"
        )
    if most - least < SMALL_PART * (high - low):
        return (
            f"use less than an eighth of the values from {low:g} to {high:g}, black and white of the training images; "
            "have they another depth?"
        )
    return ""


def as_range(value: Sequence[float]) -> Range:
    """Return two finite numbers in rising order; raises ValueError if `value` is anything else."""
    low, high = value
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)) or low >= high:
        raise ValueError(f"{value!r} is no range")
    return low, high
