"""How fast `extract.engine: jax` extracts features, against the raw forward pass, on a GPU or on the CPU.

Command: python benchmarks/gpu.py                                    # prints a table in Markdown
         python benchmarks/gpu.py --images 64 --batch 8 --rounds 1   # does it run?

It needs jax, keras, h5py, Pillow, simplejpeg and numpy alone: neither TensorFlow nor the rest of Headstart's packages.
The photographs are made, the weights random; both take the time of real ones. Images per second, medians of rounds:

- decode: reading, decoding and resizing, by threads on all cores;
- batch: stacking decoded images to batches, by one thread, while others decode;
- copy: batches in memory to the device, one after the other;
- forward: the engine's network on a batch that is on the device, with kernels that are the same in every run;
- raw: the same network and precision by jax.jit as it is, with kernels that XLA chose by timing them;
- fed: the engine on batches in memory, copies included: what overlapping copies and computing leaves of `forward`;
- extract: all of it, as the stage runs it, but for the feature store (see extract.py).

Steps that overlap cost as much as the slowest of them: extract is compared with raw, and with the slower of raw and
decode. `bits` stands for the features: it must be the same in every run on a machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def stand_in(module: str, **attributes: Any) -> None:
    """Replace a module that cannot be imported here; nothing that is measured uses it."""
    try:
        importlib.import_module(module)
    except ImportError:
        sys.modules[module] = ModuleType(module)
        vars(sys.modules[module]).update(attributes)


stand_in("blake3", blake3=hashlib.blake2b)
stand_in("headstart.locks")
stand_in("headstart.keras_backend")
stand_in("headstart.backbones.base", weights_sha256=lambda model: "")
sys.modules["headstart.keras_backend"].name = "jax"  # type: ignore[attr-defined]

import jax
import numpy as np
from PIL import Image

from headstart.features.engines.jax_engine import JaxEngine
from headstart.features.executors import LocalExecutor
from headstart.framework import device_name, keras
from headstart.machine import cores
from headstart.modalities import get_modality
from headstart.modalities.loading import prefetch

SIZE = 224
IMAGES = get_modality("image")
NETWORKS = {"mobilenetv2": "MobileNetV2", "resnet50": "ResNet50", "vgg16": "VGG16"}
MODULES = {"mobilenetv2": "mobilenet_v2"}  # others as their name
RATES = ("decode", "batch", "copy", "forward", "raw", "fed", "extract")
COLUMNS = ("network", "precision", *RATES, "extract / raw", "extract / slower", "memory", "compiled", "bits")


def make_photographs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Write JPEGs of noise at all scales, as photographs have it."""
    rng = np.random.default_rng(0)
    files = [folder / f"{number:05}.jpg" for number in range(count)]
    for file in files:
        total = np.zeros((height, width, 3))
        for scale in range(1, 9):
            noise = rng.integers(0, 256, (height // 2**scale + 2, width // 2**scale + 2, 3), dtype=np.uint8)
            large = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            total += np.asarray(large) * 2.0 ** (scale / 6)
        total = (total - total.min()) / np.ptp(total) * 255
        Image.fromarray(np.uint8(total)).save(file, quality=90)
    return files


def build_encoder(network: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    base = getattr(keras.applications, NETWORKS[network])(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3), pooling="avg"
    )
    image = keras.Input((SIZE, SIZE, 3), name="image")
    preprocess = getattr(keras.applications, MODULES.get(network, network)).preprocess_input
    return keras.Model({"image": image}, base(preprocess(image), training=False))


def peak_memory() -> float:
    """Return the most memory that was in use, in MiB: of the GPU, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return float(stats["peak_bytes_in_use"] / 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(options: argparse.Namespace, network: str, precision: str, files: Sequence[Path]) -> dict[str, Any]:
    """Return the row of a network in a precision, by column."""
    engine = JaxEngine(lambda: build_encoder(network), IMAGES.spec(SIZE), precision, options.batch)
    batch_size = engine.batch_size
    n_batches = -(-options.images // batch_size)
    count = n_batches * batch_size

    def load(tasks: Sequence[int]) -> Iterator[np.ndarray]:
        for task in tasks:
            yield IMAGES.load(files[task % len(files)].read_bytes(), SIZE)

    arrays = list(load(range(batch_size)))
    batch = IMAGES.batch(arrays)
    device = jax.local_devices()[0]
    start = time.perf_counter()
    engine(batch)
    compiled = time.perf_counter() - start
    results: list[np.ndarray] = []

    def extract() -> None:
        found = LocalExecutor().run(range(count), SimpleNamespace(load=load, batch=IMAGES.batch), engine)
        results.append(np.concatenate([features for _, features in found]))

    def decode() -> None:
        for _ in prefetch(load, count, batch_size):
            pass

    def copy() -> None:
        for _ in range(n_batches):
            jax.block_until_ready(jax.device_put(batch, device))

    def fed() -> None:
        for _ in engine.map(batch for _ in range(n_batches)):
            pass

    def stack() -> None:
        for _ in range(n_batches):
            IMAGES.batch(arrays)

    work = {"extract": extract, "decode": decode, "batch": stack, "copy": copy, "fed": fed}
    times = {name: seconds(each, options.rounds) for name, each in work.items()}
    memory = peak_memory()  # before the raw pass has its own
    on_device = jax.device_put(batch, device)
    run, weights, _ = engine.pool.get().args  # type: ignore[attr-defined]
    by_default = jax.jit(lambda *arguments: run.__wrapped__(*arguments))

    def compute(run: Callable[..., jax.Array]) -> None:
        jax.block_until_ready([run(weights, on_device) for _ in range(n_batches)])

    times["forward"] = seconds(lambda: compute(run), options.rounds)
    by_default(weights, on_device).block_until_ready()
    times["raw"] = seconds(lambda: compute(by_default), options.rounds)
    rates = {name: count / each for name, each in times.items()}
    assert all((one == results[0]).all() for one in results), "the features of two rounds differ"
    return {
        "machine": device_name() if device.platform == "cpu" else f"{device_name()} fed by {cores()} cores",
        "network": network,
        "precision": precision,
        **{name: f"{rates[name]:,.0f}" for name in RATES},
        "extract / raw": f"{rates['extract'] / rates['raw']:.2f}",
        "extract / slower": f"{rates['extract'] / min(rates['raw'], rates['decode']):.2f}",
        "memory": f"{memory:,.0f} MiB",
        "compiled": f"{compiled:.0f} s",
        "bits": hashlib.sha256(results[0].tobytes()).hexdigest()[:8],
    }


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """Return the median time of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192, help="per round; rounded up to whole batches")
    parser.add_argument("--batch", type=int, default=None, help="examples per batch; the engine's default if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photographs", type=int, default=256, help="how many different files are made")
    parser.add_argument("--width", type=int, default=500, help="of a photograph, which is three quarters as high")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--case", nargs=2, metavar=("NETWORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:  # a process for each row: its memory is its own
        network, folder = options.case
        (precision,) = options.precisions
        print(json.dumps(measure(options, network, precision, sorted(Path(folder).glob("*.jpg")))))
        return
    with tempfile.TemporaryDirectory() as folder:
        height = options.width * 3 // 4
        files = make_photographs(Path(folder), min(options.photographs, options.images), options.width, height)
        size = statistics.mean(file.stat().st_size for file in files) / 1024
        heading = f"JAX {jax.__version__}, Keras {keras.__version__}; photographs of {options.width} x {height} pixels"
        heading += f", {size:.0f} KiB"
        printed = False
        for network in options.networks:
            for precision in options.precisions:
                command = [
                    sys.executable,
                    __file__,
                    *sys.argv[1:],
                    "--precisions",
                    precision,
                    "--case",
                    network,
                    folder,
                ]
                done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    print(f"{network} in {precision} ended with {done.returncode}", file=sys.stderr)
                    continue
                values = json.loads(done.stdout.splitlines()[-1])
                if not printed:  # only the processes of the rows open the device
                    print(f"{values['machine']}; {heading}\n\n{row(COLUMNS)}")
                    print(row(["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)))
                    printed = True
                print(row([values[column] for column in COLUMNS]), flush=True)


if __name__ == "__main__":
    main()
