"""What a Ray cluster adds to extract: the same features here, by Ray on this machine, and how the rate grows.

    python benchmarks/cluster.py speed PHOTOS      # the stage on this machine, and by `cluster.address: here`
    python benchmarks/cluster.py workers           # 1, 2, 4 and 8 workers whose engine sleeps in the place of computing
    python benchmarks/cluster.py rows              # the memory of the driver with a million views

`workers` measures what Ray and the driver cost: workers that sleep need no cores, so that eight fit on any machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml

from headstart import ray_cluster
from headstart.cluster_config import Cluster
from headstart.config import load_params
from headstart.features.ray_executor import RayExecutor

ROOT = Path(__file__).resolve().parents[1]
DIM, SECONDS = 1280, 0.02  # of a row, and for a view


class SleepingWorker:
    """Sleeps instead of reading and computing."""

    def __init__(self, job: float) -> None:
        self._seconds = job

    def __call__(self, block: pd.DataFrame) -> dict[str, np.ndarray]:
        time.sleep(self._seconds * len(block))
        count = len(block)
        return {
            "view": block["view"].to_numpy(),
            "features": np.zeros((count, DIM), np.float32),
            "error": np.array([""] * count, dtype=object),
            "oom": np.zeros(count, int),
        }


class Names:
    """Views without files."""

    def names(self, chosen: Sequence[int]) -> list[tuple[str, str, int]]:
        return [(f"photos/class/{view:09}.jpg", f"{view:032x}", 0) for view in chosen]


def run(ray: Any, count: int, workers: int, seconds: float) -> float:
    """Return how long `count` views took, from the start of the workers on."""
    executor = RayExecutor(ray, seconds, settings(), workers, worker=SleepingWorker)
    start, seen = time.perf_counter(), 0
    engine, names = SimpleNamespace(batch_size=8), Names()
    with closing(executor.run(range(count), names, engine)) as results:  # type: ignore[arg-type]
        for views, _ in results:
            seen += len(views)
    assert seen == count, (seen, count)
    return time.perf_counter() - start


def settings() -> Cluster:
    """Return a Ray on this machine."""
    return load_params(ROOT / "params.yaml").cluster.model_copy(update={"address": "here"})


def workers(options: argparse.Namespace) -> None:
    """Print the rate of more and more workers, and its share of as many times that of one."""
    os.environ["HEADSTART_CORES"] = "8"  # places for workers, which sleep
    with ray_cluster.connect(settings()) as ray:
        run(ray, 8, 1, 0.0)  # Ray starts processes before it needs them
        for number in (1, 2, 4, 8):
            count = options.views * number
            starting = run(ray, number, number, 0.0)
            rate = count / (run(ray, count, number, SECONDS) - starting)
            ideal = number / SECONDS
            print(
                f"{number} workers: {rate:.1f} views/s, {rate / ideal:.2f} of {ideal:.0f}, without the start of "
                f"{starting:.1f} s"
            )


def rows(options: argparse.Namespace) -> None:
    """Print the most memory that the driver had."""
    with ray_cluster.connect(settings()) as ray:
        seconds = run(ray, options.views, 2, 0.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{options.views:,} views of {DIM} features: {seconds:.0f} s, {peak:,.0f} MiB at most in the driver")


def speed(options: argparse.Namespace) -> None:
    """Print how long extract takes here and by Ray on this machine, with the rate that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", str(ROOT), folder], check=True)
        file = Path(folder, "params.yaml")
        params = yaml.safe_load(file.read_text(encoding="utf-8"))
        params["data"]["source"], params["backbone"] = str(Path(options.photos).resolve()), options.backbone
        for address in ("prepare", "local", "here"):
            params["cluster"]["address"] = address if address != "prepare" else "local"
            file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
            for kept in ("features", "graphs"):
                shutil.rmtree(Path(folder, ".dvc/tmp/headstart", kept), ignore_errors=True)
            start = time.perf_counter()
            stage = "prepare" if address == "prepare" else "extract"
            command = [sys.executable, "-m", "pipeline", stage]
            environment = {**os.environ, "HEADSTART_TRACKING": "off"}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            if stage == "extract":
                (rate,) = [line for line in done.stdout.splitlines() if "computed" in line]
                print(f"{address}: {time.perf_counter() - start:.0f} s; {rate}", flush=True)


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    each = commands.add_parser("speed", help="the stage on this machine and by Ray")
    each.add_argument("photos", help="a folder or an archive of class folders")
    each.add_argument("--backbone", default="mobilenetv2")
    each.set_defaults(function=speed)
    each = commands.add_parser("workers", help="how the rate grows")
    each.add_argument("--views", type=int, default=1000, help="for each worker (default: 1000)")
    each.set_defaults(function=workers)
    each = commands.add_parser("rows", help="memory of the driver")
    each.add_argument("--views", type=int, default=1_000_000, help="(default: a million)")
    each.set_defaults(function=rows)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
