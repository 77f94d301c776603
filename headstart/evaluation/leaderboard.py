"""All experiments, the best first, by what they reached on val: for choosing a backbone before paying for fine-tuning.

Command: python -m headstart.evaluation.leaderboard [--by val_loss|val_accuracy] [--heads] [--test] [--format text|markdown|json]
                                        [--commits N]

The workspace, the last N commits and the experiments that start from them. What a run did not reach is left out: one
that ended with train_head is judged by its head. Test accuracy has no say: who chooses by it has nothing left to test
with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from headstart import lockfile, paths
from headstart.errors import UserError
from headstart.evaluation import compare

BY = {"val_loss": True, "val_accuracy": False}  # whether less is better
NOT_DONE = ("Queued", "Running", "Failed")
STAGES = ("prepare", "extract", "train_head", "fine_tune", "evaluate")


@dataclass(frozen=True)
class Entry:
    """One experiment.

    Attributes:
        names: that of the experiment, or `workspace`, or a branch or commit; several of the same run.
        params: all leaves of params.yaml but those of the gate.
        reached: the stages whose results are those of these params and this code.
        figures: val_loss, val_accuracy, and what there is of seconds, images_per_second, latency_ms, model_mb, and of
            accuracy, accuracy_low, accuracy_high, which are on test.
        data: names images and splits; entries of other data cannot be compared.
    """

    names: list[str]
    params: dict[str, Any]
    reached: list[str]
    figures: dict[str, float] = field(default_factory=dict)
    data: str = ""


def experiments(commits: int, heads: bool) -> tuple[list[Entry], dict[str, int]]:
    """The experiments of the repository in the current folder, and how many are not done, by their state.

    Those with a file that cannot be read are left out, with a line on stderr.

    Args:
        commits: how many commits back from HEAD.
        heads: whether heads are judged, also of what was fine-tuned.

    Raises:
        UserError: where there is no repository.
    """
    from dvc.api import exp_show  # a second to import
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo() as repo, _committed(repo.scm.root_dir) as content:
            rows, waiting = exp_show(num=commits), {}
            within = Path(repo.root_dir).relative_to(repo.scm.root_dir)
            entries = []
            for row in rows:
                if row["State"] in NOT_DONE:
                    waiting[row["State"]] = waiting.get(row["State"], 0) + 1
                    continue
                if row["rev"] == compare.WORKSPACE:
                    read = _of_folder(Path(repo.root_dir))
                else:
                    read = _of_revision(content, row["rev"], within)
                try:
                    entries.append(entry(row["Experiment"] or row["rev"], read, heads))
                except UserError as error:
                    print(f"leaderboard: left out: {error}", file=sys.stderr)
    except (DvcException, SCMError) as error:
        raise UserError(f"there are no experiments here ({' '.join(str(error).split())}); run in a clone") from error
    return _joined(entries), waiting


def _of_folder(root: Path) -> Callable[[Path], bytes | None]:
    return lambda path: (root / path).read_bytes() if (root / path).is_file() else None


@contextmanager
def _committed(root: str) -> Iterator[Callable[[str], bytes | None]]:
    """The content of `REVISION:PATH` in the repository at `root`, or None, from one process of Git.

    DVC's file system of a revision reads through a thread of pygit2, which can wait for ever: its reader clears
    the signal of a chunk that came since it had looked.
    """
    command = ["git", "cat-file", "--batch"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as git:

        def content(name: str) -> bytes | None:
            if "\n" in name:
                return None
            git.stdin.write(os.fsencode(name) + b"\n")
            git.stdin.flush()
            found = re.fullmatch(rb"[0-9a-f]+ (\w+) (\d+)\n", git.stdout.readline())
            if not found:  # missing, or ambiguous
                return None
            data = git.stdout.read(int(found[2]) + 1)[:-1]
            return data if found[1] == b"blob" else None

        yield content


def _of_revision(content: Callable[[str], bytes | None], revision: str, within: Path) -> Callable[[Path], bytes | None]:
    return lambda path: content(f"{revision}:{(within / path).as_posix()}")


def entry(name: str, read: Callable[[Path], bytes | None], heads: bool) -> Entry:
    """What the files say that `read` gives by their path, as far as they belong to each other.

    DVC leaves the metrics of stages that did not run as they were: figures of other params, which are not to be told.

    Raises:
        UserError: where a file cannot be read, as with the marks of a conflict in it.
    """
    from dvc.utils.serialize import ParseError, parse_yaml  # reads numbers and words as DVC does

    def mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            found = parse((read(path) or b"{}").decode("utf-8"))
        except (ParseError, ValueError) as error:
            raise UserError(f"{name}: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(found, dict):
            raise UserError(f"{name}: {path} cannot be read: it is no mapping")
        return found

    def parsed(path: Path) -> dict[str, Any]:
        return mapping(path, lambda text: parse_yaml(text, path) or {})

    def stages_of(path: Path) -> dict[str, Any]:
        found = parsed(path).get("stages") or {}
        if not isinstance(found, dict):
            raise UserError(f"{name}: {path} cannot be read: its stages are no mapping")
        return found

    def metrics(path: Path) -> dict[str, float]:
        found = mapping(path, json.loads)
        return {key: value for key, value in found.items() if type(value) in (int, float) and math.isfinite(value)}

    def md5(path: Path) -> str | None:
        content = read(path)
        return None if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()

    params = {
        (f"{key}.{inner}" if inner else key): leaf
        for key, value in parsed(Path("params.yaml")).items()
        for inner, leaf in (value.items() if isinstance(value, dict) else [("", value)])
    }
    stages, lock = stages_of(lockfile.PIPELINE), stages_of(lockfile.LOCK)
    reached = lockfile.standing(stages, lock, params, md5, lambda _: True)
    shown = {name: value for name, value in params.items() if not name.startswith("gate.")}
    if "train_head" not in reached:
        return Entry([name], shown, reached)
    judged = "fine_tune" if "fine_tune" in reached and not heads else "train_head"
    val, cost = metrics(paths.metrics(judged)), metrics(paths.COST)
    if not val.keys() >= BY.keys():
        raise UserError(f"{name}: {paths.metrics(judged)} lacks {' or '.join(BY)}")
    figures = {by: val[by] for by in BY}
    seconds = [cost[f"{stage}_seconds"] for stage in STAGES if stage in reached and f"{stage}_seconds" in cost]
    figures["seconds"] = sum(seconds) if seconds else None
    figures["images_per_second"] = metrics(paths.metrics("extract")).get("images_per_second")
    if "evaluate" in reached and heads:  # its interval is in DVC's cache alone
        of_head = mapping(paths.metrics("evaluate"), json.loads).get("head")
        figures["accuracy"] = of_head.get("accuracy") if isinstance(of_head, dict) else None
    elif "evaluate" in reached:
        test = metrics(paths.metrics("evaluate"))
        figures["latency_ms"] = cost.get("latency_ms")
        figures |= {key: test.get(key) for key in ("model_mb", "accuracy", "accuracy_low", "accuracy_high")}
    outs = {out["path"]: out["md5"] for out in lock["prepare"]["outs"]} if "prepare" in reached else {}
    return Entry([name], shown, reached, figures, outs.get(paths.MANIFEST.as_posix(), ""))


def _joined(entries: list[Entry]) -> list[Entry]:
    """One entry for all that are the same run: an experiment and the workspace that it is in."""
    joined: list[Entry] = []
    for item in entries:
        same = next((known for known in joined if (known.params, known.figures) == (item.params, item.figures)), None)
        if same:
            same.names.extend(item.names)
        else:
            joined.append(item)
    return joined


def ranked(entries: list[Entry], by: str) -> pd.DataFrame:
    """A row an entry with figures, the best first: rank, experiment, judged, figures, then the params that differ."""
    judged = [item for item in entries if item.figures]
    judged.sort(key=lambda item: item.figures[by] if BY[by] else -item.figures[by])
    keys = list(dict.fromkeys(key for item in judged for key in item.params))
    differing = [key for key in keys if len({json.dumps(item.params.get(key)) for item in judged}) > 1]
    rows = [
        {
            "rank": place,
            "experiment": ", ".join(item.names),
            "reached": item.reached[-1],
            **item.figures,
            **{key: item.params.get(key) for key in differing},
        }
        for place, item in enumerate(judged, 1)
    ]
    return pd.DataFrame(rows)


# --- words

FORMATS = {
    "val_loss": "{:.4f}",
    "val_accuracy": "{:.4f}",
    "seconds": "{:,.0f}",
    "images_per_second": "{:,.0f}",
    "latency_ms": "{:.1f}",
    "model_mb": "{:.2f}",
}
HEADERS = {
    "val_loss": "val log loss",
    "val_accuracy": "val accuracy",
    "images_per_second": "images/s",
    "latency_ms": "latency, ms",
    "model_mb": "model, MB",
}
OF_TEST = ["accuracy", "accuracy_low", "accuracy_high"]


def table(found: pd.DataFrame, test: bool) -> tuple[list[str], list[list[str]]]:
    """Header and rows to look at; test accuracy comes last, and where it is asked for."""
    params = [name for name in found if name not in ("rank", "experiment", "reached", *FORMATS, *OF_TEST)]
    figures = [name for name in FORMATS if name in found and found[name].notna().any()]
    header = ["", "experiment", "reached", *params, *(HEADERS.get(name, name) for name in figures)]
    rows = []
    for row in found.to_dict("records"):
        cells = [str(row["rank"]), row["experiment"], row["reached"], *(_word(row[name]) for name in params)]
        cells += [FORMATS[name].format(row[name]) if pd.notna(row[name]) else "" for name in figures]
        if test:
            known = [pd.notna(row.get(name)) for name in OF_TEST]
            form = "{accuracy:.4f} ({accuracy_low:.4f} to {accuracy_high:.4f})" if all(known) else "{accuracy:.4f}"
            cells.append(form.format(**row) if known[0] else "")
        rows.append(cells)
    return [*header, "test accuracy (95 %)"] if test else header, rows


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def remarks(entries: list[Entry], waiting: dict[str, int], by: str, test: bool) -> list[str]:
    """What to know about the table, in sentences."""
    said = [f"Ordered by {HEADERS[by]}. The test split has no say: who chooses by it has nothing left to test with"
            + ("." if test else "; --test shows it.")]  # fmt: skip
    judged = [item for item in entries if item.figures]
    if len({item.data for item in judged}) > 1:
        said.append("Not all are of the same images and splits: figures of different ones cannot be compared.")
    empty = [", ".join(item.names) for item in entries if not item.figures]
    if empty:
        said.append(f"Without a head of these params and this code, see `dvc status`: {'; '.join(empty)}.")
    if waiting:
        said.append("Not done: " + ", ".join(f"{count} {state.lower()}" for state, count in waiting.items()) + ".")
    return said


def text(header: list[str], rows: list[list[str]], said: list[str]) -> str:
    """For a terminal."""
    drawn = pd.DataFrame(rows, columns=header).to_string(index=False) if rows else "no experiment has a head yet"
    return drawn + "\n\n" + "\n".join(said) + "\n"


def markdown(header: list[str], rows: list[list[str]], said: list[str]) -> str:
    """For a pull request."""
    drawn = (
        compare.markdown_table("Experiments", header, rows, folded=False) if rows else "No experiment has a head yet."
    )
    return drawn + "\n\n" + "\n".join(compare.escaped(line) for line in said) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m headstart.evaluation.leaderboard", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--by", choices=list(BY), default="val_loss", help="what orders; default: %(default)s")
    parser.add_argument("--heads", action="store_true", help="judge heads, also of what was fine-tuned")
    parser.add_argument("--test", action="store_true", help="show test accuracy too; it does not order")
    parser.add_argument("--format", choices=["text", "markdown", "json"], default="text")
    parser.add_argument("--commits", type=int, default=1, help="how many commits to look back, default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        entries, waiting = experiments(arguments.commits, arguments.heads)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    found = ranked(entries, arguments.by)
    if arguments.format == "json":
        rows = found.astype(object).where(found.notna(), None).drop(columns=[] if arguments.test else OF_TEST,
                                                                     errors="ignore")  # fmt: skip
        shown = json.dumps(rows.to_dict("records"), indent=2) + "\n"
    else:
        form = {"text": text, "markdown": markdown}[arguments.format]
        shown = form(*table(found, arguments.test), remarks(entries, waiting, arguments.by, arguments.test))
    try:
        compare.put(shown, None)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
