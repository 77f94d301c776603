"""How a stage runs: params in, outputs all at once or not at all, a record for the tracker, errors in plain words."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from pipeline.errors import UserError
from pipeline.journal import origin, recording, resources, timings
from pipeline.journal.records import LOCK, PIPELINE
from pipeline.outputs import Outputs
from pipeline.params import Params, load_params


def run(
    stage: str,
    main: Callable[[Params, Outputs], dict[str, float] | None],
    after: Callable[[], None] = lambda: None,
    recorded: Callable[[], object] = lambda: None,
) -> None:
    """Run `main` as the stage named `stage` and end the process. What it returns are figures of cost, by name.

    `after` makes what is no output of the stage, from its outputs; what goes wrong there, as with the figures of cost,
    costs a line. `recorded` goes
    on from the record in MLflow, and never raises.

    A mistake in the input ends in its message and exit code 1. Whatever fails, the outputs of the last good run are
    back in their places: DVC removes them before it starts a stage.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started, outputs = time.time(), Outputs(through_links=False)
    try:
        params = load_params()
        check_inputs(stage)
        with resources.Sampler() as sampler:
            costs = main(params, outputs)
        outputs.commit()
    except BaseException as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C does not keep the earlier outputs from their places
        outputs.discard()
        try:
            put_back(stage)
        except OSError as problem:
            print(f"{stage}: earlier outputs are not back ({problem}); run `dvc checkout` for them", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        message = explain(stage, error)
        if message is None:
            raise
        print(f"{stage}: {message}", file=sys.stderr)
        sys.exit(1)
    try:
        timings.note(stage, time.time() - started, costs or {})
        timings.follow()
        after()
    except Exception as error:
        print(f"{stage}: {explain(stage, error) or ' '.join(str(error).split())[:300]}", file=sys.stderr)
    recording.record(stage, params.leaves(), started, sampler.samples)
    recorded()


def check_inputs(stage: str) -> None:
    """Look for the files of earlier stages.

    Raises:
        UserError: naming the first one that is not there.
    """
    deps = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"][stage]["deps"]
    for dep in deps:
        if not dep.startswith("${") and not Path(dep).exists():
            raise UserError(f"{dep} does not exist; run `dvc repro`, which runs the stages before this one")


def explain(stage: str, error: BaseException) -> str | None:
    """What to tell of `error`, or None where only its traceback can help."""
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
        return f"another process holds the database for too long ({line}); run again when it has ended"
    # The second is TensorFlow's, which is not imported for its name's sake.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"the memory does not suffice ({line}); lower {stage}.batch_size or extract.image_size in params.yaml"
    return None


def put_back(stage: str) -> None:
    """Bring back those outputs of `stage` that dvc.lock has and the workspace has not, from DVC's cache or from Git.

    Git alone has metrics and plots where the results were pulled.
    """
    if not LOCK.is_file():
        return
    locked = yaml.safe_load(LOCK.read_text(encoding="utf-8")).get("stages", {}).get(stage, {})
    missing = [out for out in locked.get("outs", []) if not Path(out["path"]).exists()]
    if not missing:
        return
    from dvc.repo import Repo  # a second to import, needed after a failure only

    cache = Repo().cache.local
    for out in missing:
        cached, final = Path(cache.oid_to_path(out["md5"])), Path(out["path"])
        if not (final.parent.is_dir() or not final.parent.exists()):
            continue
        content = None if cached.is_file() else origin.committed(out["path"])
        if content is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != out["md5"]:
            content = None  # of other results
        if content is None and not cached.is_file():
            continue
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.stem}.partial{final.suffix}")
        try:
            if content is None:
                shutil.copyfile(cached, partial)
            else:
                partial.write_bytes(content)
            os.replace(partial, final)
        finally:
            partial.unlink(missing_ok=True)
