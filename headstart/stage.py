"""How a stage runs: params in, outputs all at once or not at all, a log in MLflow, errors in plain words.

def main() -> None:
    with stage("extract") as run:
        features = compute(run.params)
        np.save(run.path(paths.FEATURES), features)
        run.metrics({"feature_dim": features.shape[1]})
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from headstart import backbones, costs, paths, tracking
from headstart.config import Params, load_params
from headstart.errors import UserError
from headstart.lockfile import CODE, SOURCE, Workspace, read_stages
from headstart.outputs import Outputs
from headstart.restore import restore_outputs


class Run:
    """One run of a stage. What is written appears under its final name when the stage has succeeded.

    Attributes:
        name: of the stage.
        params: params.yaml, checked.
    """

    def __init__(self, name: str, params: Params, outputs: Outputs, logger: tracking.StageLogger) -> None:
        self.name, self.params = name, params
        self._outputs, self._logger = outputs, logger
        self.costs: dict[str, Any] = {}
        self.clean_ups: list[Callable[[], None]] = []

    def path(self, final: Path) -> Path:
        """Where to write the output `final`: a temporary name of the same suffix, in a folder that exists."""
        return self._outputs.path(final)

    def csv(self, final: Path, table: pd.DataFrame) -> None:
        """Write `table` as CSV, its floats rounded."""
        self._outputs.csv(final, table)

    def json(self, final: Path, value: Any) -> None:
        """Write `value` as JSON, its floats rounded."""
        self._outputs.json(final, value)

    def metrics(self, values: dict[str, Any]) -> None:
        """Write the few figures that people compare: metrics/STAGE.json."""
        self._outputs.json(paths.metrics(self.name), values)

    def report(self, values: dict[str, Any]) -> None:
        """Write everything else that is worth knowing: reports/STAGE.json, with its floats as they are."""
        self._outputs.json(paths.report(self.name), values, exact=True)

    def cost(self, **figures: Any) -> None:
        """Note what the result cost, such as rates and latency; its seconds are noted by themselves."""
        self.costs |= figures

    def on_success(self, clean_up: Callable[[], None]) -> None:
        """Call `clean_up` when the outputs have their final names: what they were made from is not needed any more."""
        self.clean_ups.append(clean_up)

    def log_epoch(self, row: dict[str, float]) -> None:
        """Show an epoch in MLflow while the stage runs: its number under `epoch`, and figures by name."""
        self._logger.log_epoch(row)


@contextmanager
def stage(name: str) -> Iterator[Run]:
    """Run the stage `name`: what stands inside `with` computes and writes its outputs.

    A mistake in the input ends in its message and exit code 1. Whatever fails, the outputs of the last good run are
    put back: DVC removes them before it starts a stage. Once the outputs are there the stage has succeeded, whatever
    becomes of the log in MLflow.
    """
    started, outputs, logger = time.time(), Outputs(through_links=False), tracking.NO_LOGGER
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        params = load_params()
        backbones.check_params(params)
        check_inputs(name)
        logger = tracking.start(name, params)
        run = Run(name, params, outputs, logger)
        yield run
        outputs.commit()
        for number in (signal.SIGINT, signal.SIGTERM):  # the stage is done: they end the logging, and nothing else
            signal.signal(number, lambda *_: logger.stop())
        for clean_up in run.clean_ups:
            clean_up()
    except BaseException as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt putting outputs back
        outputs.discard()
        try:
            restore_outputs(name)
        except Exception as problem:  # the error that is reported below matters more
            print(f"{name}: could not restore the previous outputs ({problem}); run `dvc repro`", file=sys.stderr)
        logger.fail()
        if isinstance(error, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        message = explain(name, error)
        if message is None:
            raise
        print(f"{name}: {message}", file=sys.stderr)
        raise SystemExit(1) from error
    seconds = {f"{name}_seconds": round(time.time() - started, 3)}
    try:
        costs.write(name, seconds | run.costs)
    except (UserError, OSError) as error:
        print(f"{name}: its cost is not recorded: {error}", file=sys.stderr)
    logger.finish()


def check_inputs(name: str) -> None:
    """Look for the files of earlier stages.

    Raises:
        UserError: naming the first one that is missing.
    """
    for dep in read_stages(Workspace()).get(name, {}).get("deps", []):
        if dep != SOURCE and dep.split("/")[0] not in CODE and not Path(dep).exists():
            if Path(dep) == paths.WATCHED:
                raise UserError(f"the folder {dep} is missing; restore it: git checkout HEAD -- {dep}")
            raise UserError(f"{dep} does not exist; run `dvc repro`, which runs the stages before this one")


# What to lower when a stage runs out of memory, by the params that it has.
SMALLER = {
    "prepare": "free some memory; each core reads a few files at a time, so that very large ones add up",
    "extract": "lower extract.batch_size or extract.size in params.yaml",
    "train_head": "lower train_head.batch_size or train_head.hidden in params.yaml",
    "fine_tune": "lower fine_tune.batch_size, or unfreeze less by fine_tune.unfreeze in params.yaml",
    "evaluate": "free some memory; the shipped model must fit into it",
}


def explain(name: str, error: BaseException) -> str | None:
    """What to print for `error`, or None if only its traceback can help."""
    line = (" ".join(str(error).split()) or type(error).__name__)[:200]
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)) or os.strerror(errno.ENOSPC) in line
    ):
        return f"the disk is full ({line}); free some space, then run again"
    if isinstance(error, sqlite3.OperationalError) and "full" in line:
        return f"the disk is full ({line}); free some space, then run again: what was computed is kept"
    if isinstance(error, sqlite3.OperationalError) and "locked" in line:
        return f"another process has locked the database for too long ({line}); run again when it has ended"
    # The second is TensorFlow's, which is not imported for its name's sake.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"out of memory ({line}); {SMALLER.get(name, 'free some memory')}"
    return None
