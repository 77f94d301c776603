"""Bring back the outputs that DVC removed before it started a stage that then failed or was interrupted.

Command: python -m headstart.restore STAGE
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from headstart import provenance
from headstart.lockfile import LOCK, Workspace, read_stages


def restore_outputs(name: str) -> None:
    """Bring back the outputs of `name` that dvc.lock has and the workspace lacks, from DVC's cache or from Git.

    After `dvc pull`, metrics and plots are only in Git.
    """
    locked = read_stages(Workspace(), LOCK).get(name, {})
    missing = [out for out in locked.get("outs", []) if not Path(out["path"]).exists()]
    if not missing:
        return
    from dvc.repo import Repo  # a second to import, needed after a failure only

    cache = Repo().cache.local
    for out in missing:
        cached, final = Path(cache.oid_to_path(out["md5"])), Path(out["path"])
        if not (final.parent.is_dir() or not final.parent.exists()):
            continue
        content = None if cached.is_file() else provenance.committed(out["path"])
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


if __name__ == "__main__":
    restore_outputs(sys.argv[1])
