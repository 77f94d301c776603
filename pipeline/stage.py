"""How a stage runs: params in, outputs all at once or not at all, a record for the tracker, errors in plain words."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from pipeline import timings, tracking
from pipeline.errors import UserError
from pipeline.outputs import Outputs
from pipeline.params import Params, load_params

LOCK = Path("dvc.lock")


def run(stage: str, main: Callable[[Params, Outputs], None]) -> None:
    """Run `main` as the stage named `stage` and end the process.

    A mistake in the input ends in its message and exit code 1. Whatever fails, the outputs of the last good run are
    back in their places: DVC removes them before it starts a stage.
    """
    outputs = Outputs()
    try:
        params = load_params()
        main(params, outputs)
        outputs.commit()
    except BaseException as error:
        outputs.discard()
        put_back(stage)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if not isinstance(error, UserError):
            raise
        print(f"{stage}: {error}", file=sys.stderr)
        sys.exit(1)
    timings.follow()
    tracking.record(stage, params.leaves())


def put_back(stage: str) -> None:
    """Copy those outputs of `stage` that dvc.lock has and the workspace has not out of DVC's cache."""
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
        if cached.is_file() and (final.parent.is_dir() or not final.parent.exists()):
            final.parent.mkdir(parents=True, exist_ok=True)
            partial = final.with_name(f".{final.stem}.partial{final.suffix}")
            shutil.copyfile(cached, partial)
            os.replace(partial, final)
