"""How many planted copies of images or recordings prepare finds, and how many of the pairs it finds are false.

Command: python benchmarks/near_copies.py SOURCE [KIND]    # a folder, .zip or .tar with class folders; image or audio

Of every second example a copy is made, changed in one of the ways of KINDS in turn, by an amount drawn at random: an
image as JPEG, a recording as the format says. Pairs of an example and its copy should be found, all others not.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from headstart.config import load_params
from headstart.data.duplicates import near_pairs
from headstart.data.inspection import inspect_contents
from headstart.data.layouts import list_items
from headstart.data.sources import open_source
from headstart.modalities import Modality, get_modality
from headstart.modalities.image.decode import decode


def change_image(data: bytes, kind: str, generator: np.random.Generator) -> bytes:
    """The copy as a file: 50 to 200 % of the size, quality 40 to 85, 75 to 125 % of the brightness, a few % cut off."""
    image, quality = decode(data), 90
    if kind in ("resized", "all three"):
        scale = float(np.exp(generator.uniform(np.log(0.5), np.log(2))))
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    if kind in ("brightened", "all three"):
        image = ImageEnhance.Brightness(image).enhance(generator.uniform(0.75, 1.25))
    if kind in ("recompressed", "all three"):
        quality = int(generator.integers(40, 86))
    if kind == "cropped":
        image = image.crop((1, 1, image.width - max(1, image.width // 50), image.height - max(1, image.height // 50)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


FORMATS = {"MP3": ("MP3", "MPEG_LAYER_III"), "OGG": ("OGG", "VORBIS"), "mu-law": ("WAV", "ULAW")}
MP3_LEVEL = 0.62  # of soundfile: 64 kbit/s from 16 to 24 kHz; below, 0 is


def change_sound(data: bytes, kind: str, generator: np.random.Generator) -> bytes:
    """The copy as a file: at 8 kHz (or 11 kHz, if it is at 8 kHz), up to 12 dB louder or softer but not clipped, with
    up to 0.3 s of silence before it or without its own, with noise 30 dB below it, or with clipping by up to 6 dB."""
    import soundfile
    import soxr

    recording = get_modality("audio").decode(data)
    samples, rate, name, loudest = recording.samples, recording.rate, kind, float(np.abs(recording.samples).max())
    if kind == "other rate":
        rate = 8000 if recording.rate > 8000 else 11_025
        samples = soxr.resample(samples, recording.rate, rate)
    if kind == "clipped":
        samples = samples / max(loudest, 1e-9) * 10 ** (generator.uniform(0, 6) / 20)
    if kind in ("shifted", "four at once"):
        count = int(generator.uniform(0.02, 0.3) * rate)
        if generator.random() < 0.5:
            samples = np.concatenate([np.zeros(count), samples])
        else:
            samples = samples[min(count, int(np.argmax(np.abs(samples) > loudest * 10 ** (-45 / 20)))) :]
    if kind in ("noisy", "four at once"):
        deviation = np.sqrt(np.mean(np.square(samples))) * 10 ** (-30 / 20)
        samples = samples + generator.normal(0, deviation, len(samples))
    if kind in ("louder or softer", "four at once"):
        samples = samples * min(10 ** (generator.uniform(-12, 12) / 20), 0.99 / max(float(np.abs(samples).max()), 1e-9))
    if kind == "four at once":
        name = "MP3"
    container, subtype = FORMATS.get(name, ("WAV", "PCM_16"))
    level = MP3_LEVEL * (rate >= 16_000) if name == "MP3" else None
    mode = "CONSTANT" if name == "MP3" else None
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype, format=container, compression_level=level, bitrate_mode=mode)
    return buffer.getvalue()


class Plan(NamedTuple):
    """How copies are made; `hard` ones need not be found."""

    change: Callable[[bytes, str, np.random.Generator], bytes]
    kinds: tuple[str, ...]
    hard: tuple[str, ...]


SOUNDS = ("MP3", "OGG", "mu-law", "other rate", "louder or softer", "shifted", "noisy", "four at once", "clipped")
KINDS = {
    "image": Plan(change_image, ("resized", "recompressed", "brightened", "all three", "cropped"), ("cropped",)),
    "audio": Plan(change_sound, SOUNDS, ("clipped",)),
}


def main(address: str, name: str = "image") -> None:
    plan, modality = KINDS[name], get_modality(name)
    distance = load_params(ROOT / "params.yaml").prepare.near_distance
    generator = np.random.default_rng(0)
    with open_source(address) as source:
        items = list_items(source, address, modality).items
        originals = [source.read(item.path) for item in items]
    natural = pairs_of(originals, modality, distance)
    print(f"{len(items)} {modality.noun}s; prepare.near_distance {distance}")
    print(f"before planting: {len(natural)} pairs, alike by themselves: " + ", ".join(
        f"{items[a].path} {items[b].path}" for a, b in sorted(natural)[:4]
    ))  # fmt: skip
    chosen = range(0, len(items), 2)
    kinds = [plan.kinds[number % len(plan.kinds)] for number in range(len(chosen))]
    copies = [plan.change(originals[row], kind, generator) for row, kind in zip(chosen, kinds, strict=True)]
    found = pairs_of([*originals, *copies], modality, distance)
    planted = {(row, len(items) + number): kind for number, (row, kind) in enumerate(zip(chosen, kinds, strict=True))}
    for kind in plan.kinds:
        of_kind = [pair for pair, other in planted.items() if other == kind]
        print(f"{kind:16} {sum(pair in found for pair in of_kind):5} of {len(of_kind)} found")
    required = [pair for pair, kind in planted.items() if kind not in plan.hard]
    hits = sum(pair in found for pair in required)
    print(f"all but {' and '.join(plan.hard)}: {hits / len(required):.2%} found")
    false = found - set(planted) - natural
    print(f"{len(found)} pairs in all, {len(false)} of them false: {len(false) / len(found):.2%}")


def pairs_of(files: list[bytes], modality: Modality, distance: float) -> set[tuple[int, int]]:
    empty = bytes(np.dtype(modality.descriptor_dtype).itemsize * modality.descriptor_dim)
    infos = inspect_contents(files, modality)
    descriptors = np.stack([np.frombuffer(info.descriptor or empty, modality.descriptor_dtype) for info in infos])
    return set(map(tuple, near_pairs(descriptors, distance).tolist()))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], *([kind] for kind in KINDS)):
        sys.exit(__doc__)
    main(*sys.argv[1:])
