"""Figures of a recording: length, loudness, and what may be wrong with it; and what to say of those of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import readable
from headstart.modalities.audio.decode import Recording
from headstart.modalities.audio.steps import RATE

if TYPE_CHECKING:
    import pandas as pd

FULL_SCALE = 0.99  # the largest value of 8 bits is 0.992
FLAT = 3  # equal samples at full scale, one after the other, are clipped
STEP_SECONDS, SILENT_PEAK = 0.02, 2.0**-10  # a step is silent if all of its samples are below -60 dB of full scale
LEAST_PEAK = 2.0**-12  # -72 dB: what lossy codecs and converters make of silence is below that
MUCH_CLIPPED, MOSTLY_SILENT, LONG_SECONDS = 0.001, 0.9, 10  # what remarks are about
# A class gives itself away by its sample rate if so much more of it has a low rate than of the others, or less.
LEAK_SHARE, FEWEST = 0.5, 3
MAX_SHOWN = 3  # classes in a message


def measure(recording: Recording) -> dict[str, float]:
    """Return figures of a recording.

    seconds; rate, samples a second; channels; loudness, the power in dB of full scale (a sine that fills it: -3);
    peak, above 1 if float samples were; clipped, share of the samples of all channels that stand still at full scale;
    silent, share of steps of 20 ms without sound; offset, the DC offset that was removed; out_of_phase, 1 or 0.
    """
    samples = recording.samples
    return {
        "seconds": len(samples) / recording.rate,
        "rate": recording.rate,
        "channels": recording.values.shape[1],
        "loudness": 10 * float(np.log10(np.square(samples).mean(dtype=np.float64))),
        "peak": recording.peak,
        "clipped": clipped_share(recording.values),
        "silent": silent_share(samples, recording.rate),
        "offset": recording.offset,
        "out_of_phase": int(recording.out_of_phase),
    }


def clipped_share(values: np.ndarray) -> float:
    """Return the share of samples, (n, channels) float32, in runs of FLAT or more that are equal and at full scale.

    The top of a loud sine is not flat: it is not clipped.
    """
    equal = (values[1:] == values[:-1]) & (np.abs(values[1:]) >= FULL_SCALE)
    run = equal[1:] & equal[:-1]
    clipped = np.zeros(values.shape, bool)
    for shift in range(FLAT):
        clipped[shift : len(run) + shift] |= run
    return float(clipped.mean())


def silent_share(samples: np.ndarray, rate: int) -> float:
    """Return the share of steps of 20 ms, of samples (n,), in which all are below SILENT_PEAK."""
    step = max(1, int(STEP_SECONDS * rate))
    starts = np.arange(0, len(samples), step)
    return float((np.maximum.reduceat(np.abs(samples), starts) < SILENT_PEAK).mean())


def reject(measures: dict[str, float]) -> tuple[str, str] | None:
    """Return reason and detail if a recording is to be left out: there is nothing to hear in it."""
    if measures["peak"] >= LEAST_PEAK:
        return None
    level = 20 * np.log10(measures["peak"])
    return "silent", f"the loudest sample is at {level:.0f} dB of full scale: as good as silence"


def remarks(examples: pd.DataFrame) -> list[str]:
    """Return what to print about the recordings that are used, a line each.

    Args:
        examples: a row for each, with its measures.
    """
    count = len(examples)
    clipped = f"are clipped: more than {100 * MUCH_CLIPPED:g} % of their samples stand still at full scale"
    opposed = "have channels that cancel each other out (out of phase): the loudest is heard instead of their mean"
    longer = f"are longer than {LONG_SECONDS} s; if that is more than extract.size, windows of a second are heard"
    found = [
        (examples.rate < RATE, f"have fewer than {RATE:,} samples a second, and lack high frequencies"),
        (examples.clipped > MUCH_CLIPPED, clipped),
        (examples.peak > 1, "were louder than full scale, and are scaled down to it"),
        (examples.offset != 0, "had a DC offset, which is removed"),
        (examples.out_of_phase > 0, opposed),
        (examples.silent > MOSTLY_SILENT, f"are silent for more than {100 * MOSTLY_SILENT:g} % of their time"),
        (examples.seconds > LONG_SECONDS, longer),
    ]
    lines = [f"{which.sum():,} of {count:,} recordings {what}" for which, what in found if which.any()]
    rates = examples.rate.astype(int).value_counts()
    if len(rates) > 1:
        lines.append("samples a second: " + ", ".join(f"{rate:,} ({number:,})" for rate, number in rates.items()))
    return lines


def find_leaks(examples: pd.DataFrame) -> list[str]:
    """Return a line if the sample rate of a recording says much about its class.

    Rates from RATE on count as one: after resampling, the same frequencies are there.

    Args:
        examples: a row for each, with label and rate.
    """
    low = examples.rate < RATE
    leaks = []
    for label, own in low.groupby(examples.label):
        others = low.drop(own.index)
        difference = own.mean() - others.mean() if len(own) >= FEWEST and len(others) else 0.0
        if abs(difference) >= LEAK_SHARE:
            leaks.append((abs(difference), str(label), own.mean(), others.mean()))
    if not leaks:
        return []
    leaks.sort(key=lambda leak: (-leak[0], leak[1]))
    shown = ", ".join(
        f"{readable(label)} ({100 * share:.0f} % of it has fewer than {RATE:,} samples a second, "
        f"{100 * elsewhere:.0f} % of others)"
        for _, label, share, elsewhere in leaks[:MAX_SHOWN]
    )
    return [
        f"sample rates give {len(leaks)} of {examples.label.nunique()} classes away: {shown}. A model can tell these "
        f"by how they were recorded: record all alike, or resample all to {int(examples.rate.min()):,} samples a second"
    ]
