"""What survives kills and outages: a small project in a temporary clone, disturbed at random moments.

kills     `dvc repro` and everything it started are killed at a random moment; a `dvc repro` after that must give the
          same bits as an undisturbed run, in every output.
outages   a server of MLflow is killed at a random moment of `dvc repro` and comes back afterwards; `dvc repro` must
          succeed, and `headstart track` must complete the row of every run.

Prints a line per trial and, at the end, how many of them were survived; the exit code is 1 if one was lost.

Command: python benchmarks/chaos.py kills|outages [--trials 25] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
STAGES = ("prepare", "extract", "train_head", "fine_tune", "evaluate")
PER_CLASS = 12  # images of data/digits.zip
CHANGES = {  # a run of seconds
    "train_head.epochs": 3,
    "fine_tune.epochs": 1,
    "fine_tune.folds": 0,
    "fine_tune.trunk_cache": "off",
    "prepare.split": "exact",
    "evaluate.resamples": 100,
}
OUTPUTS = ("data/prepared", "features", "models", "metrics", "plots", "predictions", "reports")


class Clone:
    """A clone of this repository with few images and a short training."""

    def __init__(self, root: Path) -> None:
        self.root = root
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        self.environment = {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}
        subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
        subprocess.run(["git", "rm", "-q", "--cached", "dvc.lock"], cwd=root, check=True)
        (root / "dvc.lock").unlink()
        params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
        for key, value in {**CHANGES, "data.source": "few.zip"}.items():
            section, name = key.split(".")
            params[section][name] = value
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        few_digits(root / "few.zip")
        # Else a trial would begin with the params of this repository, and its recorded run would be a row of MLflow.
        commit = ["git", "-c", "user.name=chaos", "-c", "user.email=chaos@localhost", "commit", "-qam", "Few images"]
        subprocess.run(commit, cwd=root, check=True)

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start `command` as the leader of a process group of its own."""
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command: str) -> tuple[int, str]:
        """Exit code and output of `command`."""
        process = self.start(list(command))
        output, _ = process.communicate()
        return process.returncode, output

    def forget(self) -> None:
        """Remove every result: outputs, DVC's cache, the feature store."""
        for name in (*OUTPUTS, ".dvc/cache", ".dvc/tmp", "dvc.lock"):
            path = self.root / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def outputs(self) -> dict[str, str]:
        """The sha256 of every output, by its path."""
        files = [file for name in OUTPUTS for file in (self.root / name).rglob("*") if file.is_file()]
        # What a killed run had begun to write lies beside the outputs for a day, under names of its own.
        ours = [file for file in files if not re.fullmatch(r"\..+\.partial\.\d+\..+", file.name)]
        kept = [file for file in ours if file.suffix != ".html" and file.name != ".gitignore"]
        return {str(file.relative_to(self.root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


def few_digits(file: Path) -> None:
    """Write an archive of the first images of each class of data/digits.zip."""
    with zipfile.ZipFile(ROOT / "data/digits.zip") as source, zipfile.ZipFile(file, "w") as target:
        classes: dict[str, list[str]] = defaultdict(list)
        for name in sorted(source.namelist()):
            if not name.endswith("/"):
                classes[name.rsplit("/", 1)[0]].append(name)
        for names in classes.values():
            for name in names[:PER_CLASS]:
                target.writestr(name, source.read(name))


def kills(clone: Clone, trials: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield what was done in each trial, and what was lost: nothing if it is empty."""
    started = time.monotonic()
    code, output = clone.run("dvc", "repro")
    seconds, expected = time.monotonic() - started, clone.outputs()
    if code:
        sys.exit(output)
    for _ in range(trials):
        clone.forget()
        moment = draw.uniform(0, seconds)
        process = clone.start(["dvc", "repro"])
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        code, output = clone.run("dvc", "repro")
        found = clone.outputs()
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        lost = output.strip().splitlines()[-1] if code else ", ".join(differing)
        yield f"killed after {moment:.1f} s of {seconds:.1f} s", lost


def outages(clone: Clone, trials: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield what was done in each trial, and what was lost: nothing if it is empty."""
    address = free_address()
    clone.environment["MLFLOW_TRACKING_URI"] = address
    with mlflow_server(clone.root, address):
        started = time.monotonic()
        code, output = clone.run("dvc", "repro")
        seconds = time.monotonic() - started
    if code:
        sys.exit(output)
    for trial in range(trials):
        clone.run("git", "checkout", "-q", "--", "params.yaml")
        params = clone.root / "params.yaml"
        values = yaml.safe_load(params.read_text(encoding="utf-8"))
        values["seed"] = 1000 + trial  # another experiment
        params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        moment = draw.uniform(0, seconds)
        with mlflow_server(clone.root, address):
            process = clone.start(["dvc", "repro"])
            time.sleep(moment)
        output, _ = process.communicate()
        lost = "" if process.returncode == 0 else output.strip().splitlines()[-1]
        with mlflow_server(clone.root, address):
            code, output = clone.run(sys.executable, "-m", "headstart", "track")
            lost = lost or (output.strip().splitlines()[-1] if code else "")
            lost = lost or incomplete(address, 2 + trial)
        yield f"the server died after {moment:.1f} s of {seconds:.1f} s", lost


def incomplete(address: str, rows: int) -> str:
    """What MLflow lacks of `rows` experiments of five stages; empty if it lacks nothing."""
    from mlflow import MlflowClient

    client = MlflowClient(address)
    (experiment,) = client.search_experiments(filter_string="name = 'headstart'")
    runs = client.search_runs([experiment.experiment_id], max_results=50000)
    children: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        parent = run.data.tags.get("mlflow.parentRunId")
        if parent and run.info.status == "FINISHED":
            children[parent].add(run.info.run_name)
    parents = [run for run in runs if "headstart.key" in run.data.tags]
    if len(parents) != rows:
        return f"{len(parents)} rows instead of {rows}"
    for row in parents:
        if missing := set(STAGES) - children[row.info.run_id]:
            return f"{row.info.run_name} lacks {', '.join(sorted(missing))}"
        if "accuracy" not in row.data.metrics:
            return f"{row.info.run_name} has no accuracy"
    return ""


def free_address() -> str:
    """Return an address on this machine that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def mlflow_server(root: Path, address: str) -> Iterator[None]:
    """A server of MLflow whose database survives it; it is killed at the end of the context."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--port", address.rsplit(":", 1)[1], "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{root}/server.db", "--artifacts-destination", str(root / "artifacts")),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, cwd=root, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


TRIALS: dict[str, Callable[[Clone, int, random.Random], Iterator[tuple[str, str]]]] = {
    "kills": kills,
    "outages": outages,
}


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=TRIALS)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    survived = 0
    with tempfile.TemporaryDirectory() as scratch:
        clone = Clone(Path(scratch) / "clone")
        trials = TRIALS[arguments.kind](clone, arguments.trials, random.Random(arguments.seed))
        for number, (what, lost) in enumerate(trials, 1):
            print(f"{number}: {what}: {lost or 'survived'}", flush=True)
            survived += not lost
    print(f"{survived} of {arguments.trials} survived")
    sys.exit(survived < arguments.trials)


if __name__ == "__main__":
    main()
