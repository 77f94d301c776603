"""All experiments, the best on val first: for choosing a backbone or a head before paying for fine-tuning.

These are the workspace, the last commits and the experiments that start from them. A run that ended with train_head is
ranked by its head. Test accuracy never ranks: whoever chooses by it has nothing left to test with.
"""

from __future__ import annotations

import json
import math
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from headstart import paths
from headstart.errors import UserError, one_line
from headstart.evaluation import results
from headstart.evaluation.datasets import Dataset, parse_manifest
from headstart.evaluation.formatting import Table, escape_markdown, markdown_table, text_table, to_cell, write_text
from headstart.lockfile import PARAMS, Revision, Tree, Workspace, git_objects, up_to_date_stages

NOT_DONE = ("Queued", "Running", "Failed")
COLUMNS = {  # header and format of each figure
    "val_loss": ("val log loss", "{:.4f}"),
    "val_accuracy": ("val accuracy", "{:.4f}"),
    "seconds": ("seconds", "{:,.0f}"),
    "examples_per_second": ("examples/s", "{:,.0f}"),
    "latency_ms": ("latency, ms", "{:.1f}"),
    "model_mb": ("model, MB", "{:.2f}"),
}
NO_DATASETS: Mapping[str, Dataset] = MappingProxyType({})
TEST_FIGURES = ["accuracy", "accuracy_low", "accuracy_high"]


@dataclass(frozen=True)
class Entry:
    """One experiment.

    Attributes:
        names: of the experiment, or `workspace`, or a branch or commit; several if they are the same run.
        params: the leaves of params.yaml but those of the gate.
        reached: the stages whose results belong to these params and this code.
        figures: val_loss, and as far as known val_accuracy, seconds, examples_per_second, latency_ms, model_mb, and on
            test accuracy, accuracy_low, accuracy_high.
        data: the md5 of the manifest, which identifies examples and splits; empty if there is none.
    """

    names: list[str]
    params: dict[str, Any]
    reached: list[str]
    figures: dict[str, float] = field(default_factory=dict)
    data: str = ""


def leaderboard(
    by: str = "val_loss", heads: bool = False, test: bool = False, format: str = "text", commits: int = 1
) -> None:
    """Print the table.

    Args:
        by: val_loss or val_accuracy.
        heads: rank heads, also of what was fine-tuned.
        test: show test accuracy too.
        format: text, markdown or json.
        commits: how many commits to look back.

    Raises:
        UserError: if this is not a DVC repository.
    """
    entries, waiting, datasets = collect_entries(commits, heads)
    ranked = rank(entries, by, datasets)
    table, notes = to_table(ranked, test), explain(entries, waiting, by, test, datasets)
    if format == "json":
        rows = ranked.where(ranked.notna(), None).drop(columns=[] if test else TEST_FIGURES, errors="ignore")
        made = json.dumps(rows.to_dict("records"), indent=2)
    elif not table.rows:
        made = "\n\n".join(["No experiment has a head yet.", *notes])
    elif format == "markdown":
        sentences = (escape_markdown(note, keep_code=True) for note in notes)
        made = "\n\n".join([markdown_table(table, folded=False), *sentences])
    else:
        made = text_table(table) + "\n\n" + "\n".join(notes)
    write_text(made + "\n", None)


def collect_entries(commits: int, heads: bool) -> tuple[list[Entry], dict[str, int], dict[str, Dataset]]:
    """Return the experiments of the repository, how many are not done, by their state, and their data.

    The data are those of `read_datasets`.

    Those with a file that cannot be read are left out, with a line on stderr.

    Raises:
        UserError: if this is not a DVC repository.
    """
    from dvc.api import exp_show  # a second to import
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    entries: list[Entry] = []
    try:
        with Repo() as repo, git_objects(Path(repo.scm.root_dir)) as git:
            root, cache = Path(repo.root_dir), repo.cache.local

            def read_cached(md5: str) -> bytes | None:
                file = Path(cache.oid_to_path(md5))
                return file.read_bytes() if file.is_file() else None

            rows = exp_show(num=commits)
            for row in rows:
                if row["State"] in NOT_DONE:
                    continue
                is_here = row["rev"] == results.WORKSPACE
                tree = Workspace(root) if is_here else Revision(git, row["rev"], root.relative_to(repo.scm.root_dir))
                try:
                    entry = read_entry(row["Experiment"] or row["rev"], tree, read_cached, heads)
                except UserError as error:
                    print(f"leaderboard: left out: {error}", file=sys.stderr)
                    continue
                # An experiment and the workspace that it is in are the same run.
                same = [known for known in entries if (known.params, known.figures) == (entry.params, entry.figures)]
                if same:
                    same[0].names.extend(entry.names)
                else:
                    entries.append(entry)
            datasets = read_datasets(entries, read_cached)
    except (DvcException, SCMError) as error:
        raise UserError(f"there are no experiments here ({one_line(error)}); run it in a clone") from error
    return entries, Counter(row["State"] for row in rows if row["State"] in NOT_DONE), datasets


def read_datasets(entries: list[Entry], read_cached: Callable[[str], bytes | None]) -> dict[str, Dataset]:
    """Return the data of `entries` by Entry.data, as far as DVC's cache has them; nothing if all have the same."""
    first = {entry.data: entry for entry in reversed(entries) if entry.figures}
    datasets = {}
    for md5, entry in first.items() if len(first) > 1 else ():
        content = read_cached(md5) if md5 else None
        try:
            if content is not None:
                datasets[md5] = parse_manifest(content, f"{entry.names[0]}: {paths.MANIFEST}")
        except UserError as error:
            print(f"leaderboard: {error}", file=sys.stderr)
    return datasets


def read_entry(name: str, tree: Tree, read_cached: Callable[[str], bytes | None], heads: bool) -> Entry:
    """Return what the files of `tree` say, as far as they belong to its params and code.

    DVC leaves the metrics of stages that did not run as they were: those belong to other params.

    Args:
        read_cached: reads from DVC's cache by md5.
        heads: the figures of the head, also if it was fine-tuned.

    Raises:
        UserError: if a file cannot be read, as with the marks of a merge conflict in it.
    """
    params = results.parse_params(tree.read(PARAMS), name)
    leaves = {key: value for key, value in results.flatten(params).items() if not key.startswith("gate.")}
    try:
        reached, outputs = up_to_date_stages(tree, params), results.locked_outputs(tree)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if "train_head" not in reached:
        return Entry([name], leaves, reached)

    def read_metrics(stage: str) -> dict[str, float]:
        file = paths.metrics(stage)
        return results.numbers(results.parse_figures(tree.read(file), f"{name}: {file}"))

    def read_report(stage: str) -> dict[str, float]:
        file = paths.report(stage)
        content = read_cached(outputs[stage].get(file.as_posix(), ""))
        return results.numbers(results.parse_figures(content, f"{name}: {file}"))

    is_head = heads or "fine_tune" not in reached
    stage, figure = ("train_head", "head_val_loss") if is_head else ("fine_tune", "val_loss")
    costs = results.read_costs(tree, reached)
    known = {
        "val_loss": read_metrics(stage).get(figure),
        "val_accuracy": read_report(stage).get("val_accuracy"),
        "seconds": sum(costs.get(f"{stage}_seconds", 0) for stage in reached) or None,
        "examples_per_second": costs.get("examples_per_second"),
    }
    if known["val_loss"] is None:
        raise UserError(f"{name}: {paths.metrics(stage)} lacks {figure}; run `dvc repro`")
    if "evaluate" in reached:
        report, accuracy = read_report("evaluate"), f"{'head' if heads else 'final'}/metrics/accuracy"
        known |= {figure: report.get(f"{accuracy}/{part}")
                  for figure, part in zip(TEST_FIGURES, ("value", "low", "high"), strict=True)}  # fmt: skip
        if not heads:
            known |= {"accuracy": read_metrics("evaluate").get("accuracy"), "latency_ms": costs.get("latency_ms"),
                      "model_mb": report.get("model_mb")}  # fmt: skip
    data = outputs["prepare"].get(paths.MANIFEST.as_posix(), "") if "prepare" in reached else ""
    return Entry([name], leaves, reached, {key: value for key, value in known.items() if value is not None}, data)


def _ranked(entries: list[Entry], by: str) -> list[Entry]:
    sign = 1 if by == "val_loss" else -1
    ranked = [entry for entry in entries if entry.figures]
    return sorted(ranked, key=lambda entry: sign * entry.figures.get(by, sign * math.inf))


def _letters(ranked: list[Entry], datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """A letter for each Entry.data, the same for those of the same classes and examples of val and test."""
    keys = {entry.data: datasets[entry.data].key if entry.data in datasets else entry.data for entry in ranked}
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
    return {data: string.ascii_uppercase[numbers[key] % 26] * (numbers[key] // 26 + 1) for data, key in keys.items()}


def rank(entries: list[Entry], by: str, datasets: Mapping[str, Dataset] = NO_DATASETS) -> pd.DataFrame:
    """Return a row per entry with figures, the best first: rank, experiment, reached, data, figures, differing params.

    Figures of rows with different letters under `data` cannot be compared.
    """
    ranked = _ranked(entries, by)
    letters = _letters(ranked, datasets)
    keys = dict.fromkeys(key for entry in ranked for key in entry.params)
    differing = [key for key in keys if len({json.dumps(entry.params.get(key)) for entry in ranked}) > 1]
    rows = [
        {"rank": number, "experiment": ", ".join(entry.names), "reached": entry.reached[-1],
         "data": letters[entry.data], **entry.figures, **{key: entry.params.get(key) for key in differing}}
        for number, entry in enumerate(ranked, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows, dtype=object)  # else an integer beside null would become a float


def to_table(ranked: pd.DataFrame, test: bool) -> Table:
    """Return what `rank` returned as text; test accuracy comes last, if it is wanted."""
    params = [name for name in ranked if name not in ("rank", "experiment", "reached", "data", *COLUMNS, *TEST_FIGURES)]
    figures = [name for name in COLUMNS if name in ranked and ranked[name].notna().any()]
    marked = ["data"] if "data" in ranked and ranked["data"].nunique() > 1 else []
    header = ["", "experiment", "reached", *marked, *params, *(COLUMNS[name][0] for name in figures)]
    rows = []
    for row in ranked.to_dict("records"):
        cells = [str(row["rank"]), row["experiment"], row["reached"]]
        cells += [to_cell(row[name]) for name in (*marked, *params)]
        cells += [COLUMNS[name][1].format(row[name]) if pd.notna(row[name]) else "" for name in figures]
        if test:
            known = [pd.notna(row.get(name)) for name in TEST_FIGURES]
            form = "{accuracy:.4f} ({accuracy_low:.4f} to {accuracy_high:.4f})" if all(known) else "{accuracy:.4f}"
            cells.append(form.format(**row) if known[0] else "")
        rows.append(cells)
    return Table("Experiments", [*header, "test accuracy (95 %)"] if test else header, rows)


def explain(
    entries: list[Entry], waiting: dict[str, int], by: str, test: bool, datasets: Mapping[str, Dataset] = NO_DATASETS
) -> list[str]:
    """Return what to know about the table, in sentences."""
    notes = [
        f"Ranked by {COLUMNS[by][0]}. Test accuracy does not rank: whoever chooses by it has nothing left to test with"
        + ("." if test else "; --test shows it.")
    ]
    letters = _letters(_ranked(entries, by), datasets)
    if len(set(letters.values())) > 1:
        notes.append(
            "Not all have the same classes and examples: figures of different letters under `data` cannot be compared. "
            + _describe_data(letters, datasets)
        )
    empty = [", ".join(entry.names) for entry in entries if not entry.figures]
    if empty:
        notes.append(f"Without a head that belongs to their params and code, see `dvc status`: {'; '.join(empty)}.")
    unknown = [", ".join(entry.names) for entry in entries if entry.figures and by not in entry.figures]
    if unknown:
        notes.append(f"Without {COLUMNS[by][0]}, which `dvc fetch` or `dvc exp pull` brings: {'; '.join(unknown)}.")
    if waiting:
        notes.append("Not done: " + ", ".join(f"{count} {state.lower()}" for state, count in waiting.items()) + ".")
    return notes


def _describe_data(letters: dict[str, str], datasets: Mapping[str, Dataset]) -> str:
    """What each letter stands for, and how its classes differ from those of the first."""
    texts: dict[str, str] = {}
    first = next((datasets[data] for data in letters if data in datasets), None)
    for data, letter in letters.items():
        found = datasets.get(data)
        text = str(found or "not to be had from DVC's cache, see `dvc fetch`")
        if found and first and (changes := found.changes_since(first)):
            text += f" ({changes})"
        texts.setdefault(letter, f"{letter}: {text}")
    return "; ".join(texts.values()) + "."
