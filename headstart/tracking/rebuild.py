"""Completes MLflow from what Git and DVC recorded: skipped and restored stages, the queue, a server that was down."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import config, lockfile
from headstart.errors import UserError
from headstart.provenance import git_text
from headstart.report import pages
from headstart.tracking import registry, runs, snapshot, store
from headstart.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PATIENCE = 600.0  # seconds for one experiment, with all its files
EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/([^/]+) ([0-9a-f]+)")  # where DVC keeps one


def rebuild(commits: int = 1, deadline: float = store.DEADLINE) -> None:
    """Make MLflow show the workspace, every DVC experiment and the last `commits` commits; what is there stays.

    Args:
        deadline: seconds for a first answer.

    Raises:
        UserError: naming the experiments that MLflow lacks, and why.
    """
    if store.is_off():
        print("track: tracking is off (HEADSTART_TRACKING=off)")
        return
    with lockfile.git_objects(Path()) as git:
        found = sorted(_of_revisions(git, commits), key=lambda item: item[1].moment)
        workspace = snapshot.of_workspace(config.load_params())
        found += [("the workspace", workspace)] if workspace.key and workspace.stages else []
        changed, new_pages = set(), False
        for place, (_, shot) in enumerate(found):
            try:
                if place == 0:
                    store.within(deadline, functools.partial(_connect, deadline))
                lacked, pages_added = store.within(PATIENCE, functools.partial(_complete, shot))
                changed |= {shot.key} if lacked else set()
                new_pages |= pages_added
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{store.uri()} lacks all or parts of {_listed(found[place:])}: {store.one_line(error)}; run "
                    "`headstart track` again when it answers"
                ) from error
    note = "; the pages of the workspace were added" if new_pages else ""
    print(f"track: MLflow shows {_listed(found)}; {len(changed) or 'nothing'} had to be completed{note}")


def _connect(seconds: float) -> None:
    with store.connected(seconds) as client:
        store.experiment_id(client)


def _complete(shot: Snapshot) -> tuple[bool, bool]:
    """Show one experiment and register its model; whether any of that was missing, and whether it got new pages."""
    with store.connected() as client:
        row, changed = runs.show(client, shot)
        said = registry.register(client, row, shot)
        pages_added = shot.is_workspace and _log_pages(client, row, shot)
    if said:
        print(said)
    return changed or bool(said), pages_added


def _log_pages(client: MlflowClient, row: Run, shot: Snapshot) -> bool:
    """Put the pages of the workspace into its row; whether there were new ones."""
    changed = False
    for file, fingerprint in pages.current_pages(shot.params).items():
        if row.data.tags.get(f"headstart.{file.name}") != fingerprint:
            client.log_artifact(row.info.run_id, str(file), file.parent.name)
            client.set_tag(row.info.run_id, f"headstart.{file.name}", fingerprint)
            changed = True
    return changed


def _of_revisions(git: subprocess.Popen[bytes], commits: int) -> Iterator[tuple[str, Snapshot]]:
    """Name and snapshot of DVC's experiments and of the last commits."""
    refs = git_text("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    revisions = [(ref[4], ref[1] + ref[2], ref[3]) for ref in map(EXPERIMENT.fullmatch, refs) if ref]
    revisions += [(commit, commit, "") for commit in git_text("rev-list", f"-{commits}", "HEAD").split()]
    prefix, cached, left_out = Path(git_text("rev-parse", "--show-prefix")), _cache(), []
    for revision, baseline, experiment in revisions:
        name, tree = experiment or revision[:7], lockfile.Revision(git, revision, prefix)
        try:
            params = config.parse((tree.read(lockfile.PARAMS) or b"").decode("utf-8"))
            shot = snapshot.of_revision(tree, params, revision, baseline, experiment, cached)
            if shot.key and shot.stages:
                yield name, shot
        except (UserError, UnicodeDecodeError):
            left_out.append(name)
    if left_out:
        print(f"track: left out, made by another version of this project: {', '.join(left_out)}", file=sys.stderr)


def _cache() -> Callable[[str], Path]:
    """Where DVC's cache has a file, by its md5."""

    @functools.cache
    def cache() -> Callable[[str], str]:
        from dvc.repo import Repo  # a second to import

        path: Callable[[str], str] = Repo().cache.local.oid_to_path
        return path

    return lambda md5: Path(cache()(md5))


def _listed(found: list[tuple[str, Snapshot]]) -> str:
    """The names of experiments; several of the same one count once."""
    names = list({shot.key: name for name, shot in reversed(found)}.values())[::-1]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"{len(names)} experiment{'' if len(names) == 1 else 's'} ({shown})" if names else "no experiment"
