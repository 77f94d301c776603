"""Where the time of the default run goes: each stage in a fresh clone, split into imports, work and logging to MLflow.

Prints a table. Command: python benchmarks/default_run.py [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
import yaml

ROOT = Path(__file__).parent.parent
# Runs one stage as `python -m pipeline STAGE` does and writes the seconds of its parts to the file named last.
STAGE = """
import importlib, json, sys, time
name, parts_file = sys.argv[1:]
begun = time.perf_counter()
stage_module = importlib.import_module(f"pipeline.{name}")
imported = time.perf_counter()
from headstart import tracking
start, logged = tracking.start, []
def timed(function):
    def call(*arguments):
        before = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            logged.append(time.perf_counter() - before)
    return call
def start_timed(*arguments):
    logger = start(*arguments)
    logger.finish = timed(logger.finish)
    return logger
tracking.start = start_timed
stage_module.main()
parts = {"imports": imported - begun, "logging": sum(logged)}
json.dump(parts, open(parts_file, "w"))
"""


def timed(command: list[str], folder: Path) -> float:
    """Seconds of wall time that `command` takes in `folder`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - start


def one_run() -> dict[str, dict[str, float]]:
    """Seconds of each stage and its parts, and of `dvc repro` with all to do and with nothing to do."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        clone, parts_file = Path(scratch) / "clone", Path(scratch) / "parts.json"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        stages = yaml.safe_load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        for stage in (name for name, definition in stages.items() if "cmd" in definition):  # a group is empty
            total = timed([sys.executable, "-c", STAGE, stage, str(parts_file)], clone)
            parts = json.loads(parts_file.read_text(encoding="utf-8"))
            rows[stage] = {**parts, "work": total - sum(parts.values()), "seconds": total}
        sums = pd.DataFrame(rows).T.sum().to_dict()
        rows["all five"] = sums
        rows["dvc repro, all to do"] = {"seconds": timed(["dvc", "repro", "--force"], clone)}
        rows["dvc repro, nothing to do"] = {"seconds": timed(["dvc", "repro"], clone)}
    return rows


def main() -> None:
    """Print the medians as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = [one_run() for _ in range(parser.parse_args().runs)]
    table = pd.DataFrame(
        {row: {part: median(run[row].get(part, float("nan")) for run in runs) for part in runs[0]["all five"]}
         for row in runs[0]}
    ).T  # fmt: skip
    table = table[["imports", "work", "logging", "seconds"]]
    table.insert(4, "share", table.seconds / table.seconds["all five"])
    print("| stage | imports | work | logging | seconds | share |\n|---|---:|---:|---:|---:|---:|")
    for name, row in table.iterrows():
        cells = [f"{row[part]:.1f}" if pd.notna(row[part]) else "" for part in table.columns[:4]]
        print(f"| {name} | {' | '.join(cells)} | {row.share:.0%} |")


if __name__ == "__main__":
    main()
