"""How fast photographs go through ViT-S/16 at 224 pixels: by extract, OpenVINO alone and timm in torch, in turns.

Command: python benchmarks/hub_images.py PHOTOS [--size 224] [--count 100] [--torch PYTHON]

PHOTOS is a folder of photographs, PYTHON an interpreter that has timm (the extra `reference`), by default this one.

extract    the stage without its start: reading, decoding, the network, the store, the files
openvino   the same network on pixels that are in memory, as OpenVINO itself would run it: throughput hint, all cores
torch      timm's vit_small_patch16_224 behind a DataLoader with timm's own preprocessing, batches of 32; left out
           where timm is not installed

All in float32, then in bfloat16. The weights are random: they take the same time as others. Rates are those of the
median round, by the clock and by the processor's time, which other programs disturb less. A ratio is the median over
rounds and carries over to other machines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from extract import IMAGES, extract, manifest_of, photographs
from prepare import machine, seconds

from headstart.backbones import get_backbone
from headstart.data.files import Folder
from headstart.features.engines import open_engine
from headstart.features.engines.openvino_engine import convert
from headstart.framework import device_name, keras

ROUNDS = 5
DIM, LAYERS, HEADS = 384, 12, 6  # of ViT-S
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def write_vit(folder: Path, size: int, dim: int = DIM, layers: int = LAYERS, heads: int = HEADS) -> Path:
    """Write a ViT with patches of 16 pixels and random weights, by default a ViT-S, as Hugging Face keeps one."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.position_embeddings": (1, (size // 16) ** 2 + 1, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (dim,),
    }
    norms, dense = ["layernorm"], dict[str, tuple[int, ...]]()
    for number in range(layers):
        layer = f"encoder.layer.{number}"
        norms += [f"{layer}.layernorm_before", f"{layer}.layernorm_after"]
        dense |= {f"{layer}.attention.attention.{name}": (dim, dim) for name in ("query", "key", "value")}
        dense |= {f"{layer}.attention.output.dense": (dim, dim)}
        dense |= {f"{layer}.intermediate.dense": (4 * dim, dim), f"{layer}.output.dense": (dim, 4 * dim)}
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    weights = {f"vit.{name}": rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        weights |= {f"vit.{name}.weight": np.ones(dim, np.float32), f"vit.{name}.bias": np.zeros(dim, np.float32)}
    config = {
        "model_type": "vit", "image_size": size, "patch_size": 16, "hidden_size": dim, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * dim, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "qkv_bias": True,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    return folder


def openvino_alone(encoder: keras.Model, arrays: np.ndarray, precision: str) -> Callable[[], None]:
    """Return what runs the network over pixels, (N, size, size, 3) uint8, as OpenVINO recommends it."""
    import openvino

    size = arrays.shape[1]
    model = convert(encoder, IMAGES.spec(size))
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    model.reshape([1, size, size, 3])
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    kind = compiled.input(0).element_type.to_dtype()

    def run() -> None:
        queue = openvino.AsyncInferQueue(compiled)
        for array in arrays:
            queue.start_async({0: array[None].astype(kind)})
        queue.wait_all()

    return run


class ByTimm:
    """Features with timm, in a process that computes them once for each line it is sent."""

    def __init__(self, python: str, files: list[Path], size: int, precision: str) -> None:
        command = [python, str(ROOT / "benchmarks" / "peers" / "timm_vit.py"), str(size), precision, *map(str, files)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def __call__(self) -> tuple[float, float]:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wall, cpu = map(float, self._answer().split())
        return wall, cpu

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--torch", default=sys.executable)
    arguments = parser.parse_args()
    source, size = Folder(arguments.photos), arguments.size
    names = photographs(arguments.photos)[: arguments.count]
    manifest = manifest_of(source, names)
    arrays = np.stack([IMAGES.load(source.read(name), size) for name in names])
    print(f"{machine()}, {device_name()}; {len(names)} photographs at {size} pixels")
    with tempfile.TemporaryDirectory() as temporary:
        row = get_backbone(str(write_vit(Path(temporary) / "vit", size)))
        build = partial(row.build, "pretrained", size, "avg", 0)
        encoder = build()
        for precision in PRECISIONS:
            run = open_engine("auto", build, IMAGES.spec(size), precision, None, "extract")
            ways: dict[str, Callable[[], tuple[float, float]]] = {
                "extract": partial(measure, partial(extract, source, manifest, run, size)),
                "openvino": partial(measure, openvino_alone(encoder, arrays, precision)),
            }
            timm = ByTimm(arguments.torch, [arguments.photos / name for name in names], size, precision)
            if timm.versions:
                ways["torch"] = timm
            print(timm.versions or f"{arguments.torch} has no timm: torch is left out")
            report(precision, ways, len(names))
            timm.close()


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds of the clock and of the processor."""
    used = time.process_time()
    wall = seconds(work)
    return wall, time.process_time() - used


def report(precision: str, ways: dict[str, Callable[[], tuple[float, float]]], count: int) -> None:
    """Print rates of all ways, and how they compare with extract, the first of them."""
    for way in ways.values():  # their start
        way()
    times = np.array([[way() for way in ways.values()] for _ in range(ROUNDS)])  # (rounds, ways, 2)
    rates = count / np.median(times, axis=0)
    ratios = np.median(times / times[:, :1], axis=0)
    for name, (wall, cpu), (by_clock, by_cpu) in zip(ways, rates, ratios, strict=True):
        beside = "" if name == "extract" else f"; extract is {by_clock:.2f} and {by_cpu:.2f} times as fast"
        print(f"{precision:<9} {name:<9} {wall:>6.1f} images/s, {cpu:.1f} per second of a core{beside}", flush=True)


if __name__ == "__main__":
    main()
