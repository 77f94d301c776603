"""How fast prepare inspects images, against decoding alone; how its memory and its index grow.

Command: python benchmarks/prepare.py speed PHOTOS     # a folder of JPEG files
         python benchmarks/prepare.py rows [1000000] [100]   # so many small images of so many classes, in a manifest
         python benchmarks/prepare.py index [100000]   # near copies among that many descriptors

Ratios within one run carry over to other machines, absolute figures do not.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import yaml
from PIL import features

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from headstart.data.duplicates import near_pairs
from headstart.data.files import Folder
from headstart.data.inspection import inspect
from headstart.data.inspection_cache import InspectionCache
from headstart.modalities import get_modality

ROUNDS = 3
IMAGES = 16_000


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(photos: Path) -> None:
    """Rates of libjpeg-turbo alone and of prepare's whole pass, in turns; then a pass after 1 % of files changed."""
    with tempfile.TemporaryDirectory() as folder:
        given = [file for file in sorted(photos.rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg")]
        copies = Path(folder) / "photos"
        for turn in range(-(-IMAGES // len(given))):  # a byte more makes another file of it
            (copies / f"{turn}").mkdir(parents=True)
            for number, file in enumerate(given):
                (copies / f"{turn}" / f"{number}.jpg").write_bytes(file.read_bytes() + turn.to_bytes(4, "big"))
                os.utime(copies / f"{turn}" / f"{number}.jpg", (1e9, 1e9))
        source = Folder(copies).scan()
        names = source.files
        size = sum(source.state(name)[0] for name in names) / len(names)
        print(f"{machine()}; {len(names):,} JPEG files of {size / 1024:.0f} KiB on average")

        def decode() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for _ in pool.map(lambda name: simplejpeg.decode_jpeg(source.read(name)).shape, names):
                    pass

        def inspect_all(file: Path) -> None:
            with InspectionCache(file, "photos") as cache:
                for _ in inspect(names, source, cache, get_modality("image")):
                    pass

        alone, whole, again = [], [], []
        changed = names[::100]
        for turn in range(ROUNDS):
            cache_file = Path(folder) / f"{turn}.sqlite"
            alone.append(seconds(decode))
            whole.append(seconds(partial(inspect_all, cache_file)))
            for name in changed:
                (copies / name).write_bytes((copies / name).read_bytes() + turn.to_bytes(4, "big"))
            again.append(seconds(partial(inspect_all, cache_file)))
        rates = [len(names) / statistics.median(times) for times in (alone, whole)]
        ratio = statistics.median(a / b for a, b in zip(alone, whole, strict=True))
        print(f"libjpeg-turbo, reading and decoding alone   {rates[0]:7.0f} images/s")
        print(f"prepare, the whole inspection               {rates[1]:7.0f} images/s, {ratio:.0%} of it")
        share = statistics.median(a / b for a, b in zip(again, whole, strict=True))
        print(f"prepare again, {len(changed) / len(names):.1%} of the files changed     {share:.1%} of the first time")


def rows(count: int, classes: int) -> None:
    """Measure time and memory of the whole stage for `count` images of 16 x 16 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = root / "images"
        images.mkdir()
        generator = np.random.default_rng(0)
        header = None
        with (images / "list.csv").open("w") as table:
            table.write("path,label\n")
            for start in range(0, count, 1000):
                cells = generator.integers(0, 256, (1000, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
                (images / f"{start // 1000:04}").mkdir()
                for number, pixels in enumerate(cells[: count - start], start):
                    name = f"{start // 1000:04}/{number:07}.ppm"
                    header = header or b"P6 16 16 255\n"
                    (images / name).write_bytes(header + pixels.tobytes())
                    table.write(f"{name},class {number % classes}\n")
        for name in ("pipeline", "headstart"):
            os.symlink(ROOT / name, root / name)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["data"]["source"] = str(images / "list.csv")
        if count < 100 * classes:  # by hash, small classes would lack a split
            params["prepare"]["split"] = "exact"
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        print(f"{machine()}; {count:,} images of 16 x 16 pixels, {classes:,} classes")
        for turn in ("first", "again"):
            begun = time.perf_counter()
            environment = {**os.environ, "HEADSTART_TRACKING": "off"}
            subprocess.run([sys.executable, "-m", "pipeline", "prepare"], cwd=root, env=environment, check=True)
            taken = time.perf_counter() - begun
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"{turn}: {taken:.0f} s, {count / taken:.0f} images/s, {peak:.2f} GiB at most")


def index(count: int) -> None:
    """Time of the search for near copies among `count` descriptors, a hundredth of them copies."""
    generator, dim = np.random.default_rng(0), get_modality("image").descriptor_dim
    decay = 1 / (1 + np.arange(dim)) ** 0.5  # low frequencies hold most of an image
    scenes = generator.normal(size=(count, dim)) * decay
    scenes[-count // 100 :] = scenes[: count // 100] + 0.05 * generator.normal(size=(count // 100, dim)) * decay
    scenes /= np.linalg.norm(scenes, axis=1, keepdims=True)
    found = []
    taken = seconds(lambda: found.append(near_pairs(scenes.astype(np.float16), 0.25)))
    planted = {(number, count - count // 100 + number) for number in range(count // 100)}
    hits = len(planted & set(map(tuple, found[0].tolist())))
    print(f"{machine()}; {count:,} descriptors: {taken:.1f} s, {hits} of {len(planted)} copies found")


def machine() -> str:
    try:
        name = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    turbo = features.version("libjpeg_turbo")
    return f"{os.cpu_count()} cores of {name.split(':')[-1].strip()}, Pillow {PIL.__version__} (libjpeg-turbo {turbo})"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["speed", photos]:
            speed(Path(photos))
        case ["rows", *counts]:
            rows(*map(int, [*counts, *("1000000", "100")[len(counts) :]]))
        case ["index", *count]:
            index(int(count[0]) if count else 100_000)
        case _:
            sys.exit(__doc__)
