"""How many planted copies of images prepare finds, and how many of the pairs it finds are false.

Command: python benchmarks/near_copies.py IMAGES    # a folder, .zip or .tar with class folders

Of every second image a copy is made, resized, recompressed or brightened in turn, by an amount drawn at random, and
saved as JPEG. Pairs of an image and its copy should be found, all others not.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from headstart.config import load_params
from headstart.data.duplicates import near_pairs
from headstart.data.inspection import inspect_contents
from headstart.data.layouts import list_items
from headstart.data.sources import open_source
from headstart.modalities import get_modality
from headstart.modalities.image.decode import decode

IMAGES = get_modality("image")
KINDS = ("resized", "recompressed", "brightened", "all three", "cropped")


def change(image: Image.Image, kind: str, generator: np.random.Generator) -> bytes:
    """The copy as a file: 50 to 200 % of the size, quality 40 to 85, 75 to 125 % of the brightness, a few % cut off."""
    quality = 90
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


def main(address: str) -> None:
    distance = load_params(ROOT / "params.yaml").prepare.near_distance
    generator = np.random.default_rng(0)
    with open_source(address) as source:
        items = list_items(source, address, IMAGES).items
        originals = [source.read(item.path) for item in items]
    natural = pairs_of(originals, distance)
    print(f"{len(items)} images; prepare.near_distance {distance}")
    print(f"before planting: {len(natural)} pairs, alike by themselves: " + ", ".join(
        f"{items[a].path} {items[b].path}" for a, b in sorted(natural)[:4]
    ))  # fmt: skip
    chosen = range(0, len(items), 2)
    kinds = [KINDS[number % len(KINDS)] for number in range(len(chosen))]
    copies = [change(decode(originals[row]), kind, generator) for row, kind in zip(chosen, kinds, strict=True)]
    found = pairs_of([*originals, *copies], distance)
    planted = {(row, len(items) + number): kind for number, (row, kind) in enumerate(zip(chosen, kinds, strict=True))}
    for kind in KINDS:
        of_kind = [pair for pair, name in planted.items() if name == kind]
        print(f"{kind:13} {sum(pair in found for pair in of_kind):5} of {len(of_kind)} found")
    required = [pair for pair, kind in planted.items() if kind != "cropped"]
    hits = sum(pair in found for pair in required)
    print(f"resized, recompressed, brightened: {hits / len(required):.2%} found")
    false = found - set(planted) - natural
    print(f"{len(found)} pairs in all, {len(false)} of them false: {len(false) / len(found):.2%}")


def pairs_of(files: list[bytes], distance: float) -> set[tuple[int, int]]:
    empty = bytes(2 * IMAGES.descriptor_dim)
    infos = inspect_contents(files, IMAGES)
    descriptors = np.stack([np.frombuffer(info.descriptor or empty, np.float16) for info in infos])
    return set(map(tuple, near_pairs(descriptors, distance).tolist()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
