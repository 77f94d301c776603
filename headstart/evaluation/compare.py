"""Is the difference real? Two revisions, experiments or files of predictions, on the images that both have seen.

Command: python -m headstart.evaluation.compare BASE [HEAD] [--format text|markdown|json] [--output FILE]

BASE and HEAD are revisions of Git, names of DVC experiments or .csv files of predictions; HEAD is the workspace where
it is not given. Accuracy is judged by McNemar's exact test; intervals are 95 %, by resampling images in pairs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from headstart import lockfile, paths
from headstart.errors import UserError
from headstart.evaluation.metrics import Predictions
from headstart.evaluation.paired import Pair
from headstart.outputs import Outputs

WORKSPACE = "workspace"
SHOWN = 20  # flipped images and moved classes that text and Markdown name
PROBABILITY = "p_"
ROUNDED = 0.02  # what the sum of a row may lack of 1, being rounded: a thousand classes may lack 0.0005


@dataclass(frozen=True)
class Side:
    """What is known of one of two.

    Attributes:
        predictions: indexed by item_id: path, label, predicted, then the probability of each class.
        params: the leaves of params.yaml; none where only predictions are given.
        cost: figures of metrics/cost.json and sizes.
        outdated: whether the predictions are known to be of other params or other code than those that are there now.
    """

    name: str
    predictions: pd.DataFrame
    params: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    outdated: bool = False

    @property
    def classes(self) -> list[str]:
        return [name.removeprefix(PROBABILITY) for name in self.predictions if name.startswith(PROBABILITY)]


def load(name: str) -> Side:
    """What `name` stands for: the workspace, a .csv file, a revision or an experiment.

    Raises:
        UserError: where it stands for nothing, or has no predictions.
    """
    if name.endswith(".csv"):
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{name}: {error.strerror}; give a file of predictions such as {paths.PREDICTIONS}"
            ) from error
        return Side(name, _predictions(content, name))
    read = read_workspace if name == WORKSPACE else reader(name)
    content = read(paths.PREDICTIONS)
    if content is None:
        advice = "run `dvc repro`" if name == WORKSPACE else f"`dvc pull`, or `dvc repro` there; {name} must have run"
        raise UserError(f"{name}: {paths.PREDICTIONS} is not there; {advice}")
    cost, evaluate = (figures(read(file), f"{name}: {file}") for file in (paths.COST, paths.metrics("evaluate")))
    cost = {**cost, "model_mb": evaluate.get("model_mb")}
    cost = {name: value for name, value in cost.items() if isinstance(value, (int, float))}  # no fingerprints
    params = params_of(read, name)
    known = name == WORKSPACE and lockfile.PIPELINE.is_file()
    outdated = known and "evaluate" not in lockfile.reached(params)
    return Side(name, _predictions(content, f"{name}: {paths.PREDICTIONS}"), params, cost, outdated)


def figures(content: bytes | None, name: str) -> dict[str, Any]:
    """The figures in a JSON file of metrics; none where there is no file.

    Raises:
        UserError: naming the file, where it holds something else, as one does that Git could not merge.
    """
    try:
        found = json.loads(content or b"{}")
    except ValueError as error:
        raise UserError(f"{name} is no JSON ({error}); `git checkout` a good one, or run `dvc repro`") from error
    if not isinstance(found, dict):
        raise UserError(f"{name} holds no figures by name; `git checkout` a good one, or run `dvc repro`")
    return found


def params_of(read: Callable[[Path], bytes | None], name: str) -> dict[str, Any]:
    """The leaves of the params.yaml that `read` gives.

    Raises:
        UserError: naming `name`, where it is no YAML.
    """
    try:
        return _leaves(yaml.safe_load(read(Path("params.yaml")) or b"{}") or {})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{name}: params.yaml is no YAML of params ({' '.join(str(error).split())})") from error


def read_workspace(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def reader(revision: str) -> Callable[[Path], bytes | None]:
    """Reads files as they stand in a revision, out of Git or DVC's cache, else from DVC's remote."""
    from dvc.api import DVCFileSystem  # a second to import
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError, resolve_rev

    try:
        with Repo() as repo:
            files = DVCFileSystem(rev=resolve_rev(repo.scm, revision))
        files.isfile("dvc.yaml")  # raises here what no file could be read of
    except (DvcException, SCMError, AttributeError, ValueError) as error:  # the last two: of a file or a tree in Git
        raise UserError(
            f"{revision} is no revision, experiment or .csv file ({' '.join(str(error).split())}); `git log` and "
            "`dvc exp list` name some"
        ) from error

    def read(path: Path) -> bytes | None:
        try:
            return files.read_bytes(path.as_posix())
        except (OSError, DvcException):  # not made there, or neither in the cache nor in a remote
            return None

    return read


def _predictions(content: bytes, name: str) -> pd.DataFrame:
    try:
        # A class can be named `nan` or `None`.
        table = pd.read_csv(io.BytesIO(content), dtype={"item_id": str, "path": str, "label": str, "predicted": str},
                            keep_default_na=False)  # fmt: skip
        table = table.set_index("item_id")
        if not table.index.is_unique:
            raise ValueError("with an item_id that is there twice")
        table[["path", "label", "predicted"]]
        probabilities = table[[column for column in table if column.startswith(PROBABILITY)]].to_numpy(np.float64)
        if probabilities.shape[1] < 2 or not np.isfinite(probabilities).all():
            raise ValueError("without numbers as the probabilities of two classes or more")
        if (probabilities < 0).any() or (abs(probabilities.sum(axis=1) - 1) > ROUNDED).any():
            raise ValueError("with a row of probabilities that are below 0, or do not sum to 1")
        known = [column.removeprefix(PROBABILITY) for column in table if column.startswith(PROBABILITY)]
        for column in ("label", "predicted"):
            if not table[column].isin(known).all():
                raise ValueError(f"with a {column} that has no column of probabilities")
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{name}: not predictions: {' '.join(str(error).split())}; the columns must be path, item_id, label, "
            f"predicted and {PROBABILITY}CLASS for each class, as evaluate writes them"
        ) from error
    return table


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    """As Params.leaves gives them, also of keys that this version does not know: what a section holds is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        section = isinstance(value, dict) and value
        leaves |= {f"{key}.{name}": leaf for name, leaf in value.items()} if section else {key: value}
    return leaves


@dataclass(frozen=True)
class Common:
    """What two sides have in common.

    Attributes:
        pair: the predictions of the images that both have seen, under the same label, of a class that both know.
        base: rows of those images, as in Side.predictions, and `head` likewise, in the same order.
        classes: names that both know.
        relabelled: images that are left out, since their label is another one now.
    """

    pair: Pair
    base: pd.DataFrame
    head: pd.DataFrame
    classes: list[str]
    relabelled: int


def common(base: Side, head: Side, top_k: int) -> Common:
    """Pair what both sides say of the same images.

    Raises:
        UserError: where both do not share two images and two classes.
    """
    a, b = base.predictions, head.predictions
    shared = a.index.intersection(b.index)
    relabelled = int((a.label[shared] != b.label[shared]).sum())
    shared = shared[(a.label[shared] == b.label[shared]).to_numpy()]
    classes = [name for name in base.classes if name in set(head.classes)]
    # Of a class that only one side knows the other one's answer would be wrong by necessity.
    shared = shared[a.label[shared].isin(classes).to_numpy()]
    if len(shared) < 2 or len(classes) < 2:
        raise UserError(
            f"{base.name} and {head.name} have no two test images of the same label in common; compare runs on the "
            "same data"
        )
    a, b = a.loc[shared], b.loc[shared]
    targets = pd.Categorical(a.label, classes).codes.astype(int)
    strange = set(base.classes) != set(head.classes)
    pair = Pair(*(_of_classes(side, rows, classes, targets, top_k, strange) for side, rows in ((base, a), (head, b))))
    return Common(pair, a, b, classes, relabelled)


def compare(base: Side, head: Side, top_k: int) -> dict[str, Any]:
    """All that `text` and `markdown` tell, as JSON can hold it.

    Raises:
        UserError: where both do not share two images and two classes.
    """
    found = common(base, head, top_k)
    pair, a, b, classes = found.pair, found.base, found.head, found.classes
    right = pair.right
    flipped = [
        {"item_id": a.index[place], "path": b.path.iloc[place], "label": a.label.iloc[place],
         "base": a.predicted.iloc[place], "head": b.predicted.iloc[place], "mended": bool(right[1][place])}
        for place in np.flatnonzero(right[0] != right[1])
    ]  # fmt: skip
    return {
        "base": base.name,
        "head": head.name,
        "outdated": [side.name for side in (base, head) if side.outdated],
        "verdict": pair.verdict(),
        "p": pair.p_value(),
        "images": {
            "compared": len(a),
            "only_base": len(base.predictions.index.difference(head.predictions.index)),
            "only_head": len(head.predictions.index.difference(base.predictions.index)),
            "relabelled": found.relabelled,
        },
        "classes_left_out": sorted(set(base.classes) ^ set(head.classes)),
        "mended": pair.mended,
        "broken": pair.broken,
        "metrics": pair.differences().to_dict("records"),
        "classes": pair.classes(classes).to_dict("records"),
        "flipped": flipped,
        "cost": {name: {"base": base.cost.get(name), "head": head.cost.get(name)}
                 for name in {**base.cost, **head.cost}},
        "params": changed(base.params, head.params),
    }  # fmt: skip


def changed(base: dict[str, Any], head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The params that are not the same, by name, as base and head; none where those of one side are not known."""
    return {
        name: {"base": base.get(name), "head": head.get(name)}
        for name in (sorted({*base, *head}) if base and head else ())
        if base.get(name) != head.get(name)
    }


def _of_classes(
    side: Side, rows: pd.DataFrame, classes: list[str], targets: np.ndarray, top_k: int, strange: bool
) -> Predictions:
    """The side's predictions; what it gives to classes that the other one does not know is a wrong answer.

    Args:
        strange: whether one of both sides knows such classes.
    """
    known = rows[[PROBABILITY + name for name in classes]].to_numpy(np.float64)
    answers = pd.Index(classes).get_indexer(rows.predicted)  # -1 where it is none of them
    if not strange:
        return Predictions(targets, known, top_k, answers=answers)
    other = rows[[PROBABILITY + name for name in side.classes if name not in set(classes)]].to_numpy(np.float64)
    # One more class on both sides, which no label has.
    probabilities = np.column_stack([known, other.max(axis=1, initial=0.0)])
    return Predictions(targets, probabilities, top_k, rest=True, answers=np.where(answers < 0, len(classes), answers))


# --- words


def summary(found: dict[str, Any]) -> str:
    """One sentence: the verdict, and what it rests on."""
    accuracy = next(row for row in found["metrics"] if row["metric"] == "accuracy")
    words = {
        "better": f"**{found['head']} is better** than {found['base']}",
        "worse": f"**{found['head']} is worse** than {found['base']}",
        "no evidence": f"**No evidence** that {found['head']} differs in accuracy from {found['base']}",
    }[found["verdict"]]
    return (
        f"{words}: accuracy {accuracy['base']:.4f} ({found['base']}) -> {accuracy['head']:.4f} ({found['head']}), "
        f"difference {accuracy['difference']:+.4f} (95 % interval {accuracy['low']:+.4f} to {accuracy['high']:+.4f}), "
        f"on {found['images']['compared']:,} test images; {found['mended']} mended, {found['broken']} broken, "
        f"McNemar's exact test p = {found['p']:.2g}."
    )


def remarks(found: dict[str, Any]) -> list[str]:
    """What limits the comparison, in sentences."""
    images = found["images"]
    said = [f"The results in the {name} are not those of its params and code; run `dvc repro`."
            for name in found["outdated"]]  # fmt: skip
    if images["only_base"] or images["only_head"]:
        said.append(
            f"The test sets differ: {images['only_base']:,} images only in {found['base']}, {images['only_head']:,} "
            f"only in {found['head']}; the {images['compared']:,} that both have are compared."
        )
    if images["relabelled"]:
        said.append(f"{images['relabelled']:,} images have another label now and are left out.")
    if found["classes_left_out"]:
        said.append(f"Classes that only one of them knows: {', '.join(found['classes_left_out'])}.")
    return said


def tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]], str]]:
    """Title, header, rows and a line below of each table that is not empty."""
    made = [
        ("Metrics", ["metric", "base", "head", "difference", "95 % interval"],
         [[row["metric"], f"{row['base']:.4f}", f"{row['head']:.4f}", f"{row['difference']:+.4f}",
           f"{row['low']:+.4f} to {row['high']:+.4f}"] for row in found["metrics"]]),
        ("Classes that moved", ["class", "images", "recall, base", "recall, head", "mended", "broken", "p"],
         [[row["class"], f"{row['images']:,}", f"{row['base']:.3f}", f"{row['head']:.3f}", str(row["mended"]),
           str(row["broken"]), f"{row['p']:.2g}"] for row in found["classes"]]),
        ("Images that flipped", ["", "image", "label", "base", "head"],
         [["mended" if row["mended"] else "broken", row["path"], row["label"], row["base"], row["head"]]
          for row in sorted(found["flipped"], key=lambda row: row["mended"])]),
        ("Cost", ["", "base", "head", "ratio"],
         [[name, *map(_number, pair.values()), _ratio(**pair)] for name, pair in found["cost"].items()]),
        ("Params", ["", "base", "head"],
         [[name, *map(json.dumps, pair.values())] for name, pair in found["params"].items()]),
    ]  # fmt: skip
    more = "and {:,} more: --format json has all"
    return [
        (title, header, rows[:SHOWN], more.format(len(rows) - SHOWN) if len(rows) > SHOWN else "")
        for title, header, rows in made
        if rows
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _ratio(base: float | None, head: float | None) -> str:
    return f"{head / base:.2f}" if base and head is not None else ""


def markdown(found: dict[str, Any]) -> str:
    """For a pull request."""
    parts = [summary(found), *map(escaped, remarks(found))]
    return (
        "\n\n".join([*parts, *(markdown_table(*table, folded=table[0] != "Metrics") for table in tables(found))]) + "\n"
    )


def markdown_table(title: str, header: list[str], rows: list[list[str]], below: str = "", folded: bool = True) -> str:
    """A table of text, its cells escaped, under its title."""
    numeric = {"difference", "base", "head"} if title == "Metrics" else set()
    align = ["---:" if name in numeric else "---" for name in header]
    lines = [header, align, *([escaped(cell) for cell in row] for row in rows)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines) + (f"\n\n{below}" if below else "")
    if folded:
        return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
    return f"**{title}**\n\n{body}"


# Those that start a mention, a formula or a strike-through on GitHub among them.
_LETTERS = str.maketrans(
    {**{letter: f"\\{letter}" for letter in "\\`*_[]#"}, **{letter: f"&#{ord(letter)};" for letter in "<>&|@$~"}}
)


def escaped(cell: str) -> str:
    """Names of files and classes as they are, whatever Markdown and HTML make of their letters."""
    return " ".join(cell.translate(_LETTERS).split())


def text(found: dict[str, Any]) -> str:
    """For a terminal."""
    parts = ["\n".join([summary(found).replace("**", ""), *remarks(found)])]
    for title, header, rows, below in tables(found):
        table = pd.DataFrame(rows, columns=header).to_string(index=False)
        parts.append(f"{title}\n{table}" + (f"\n{below}" if below else ""))
    return "\n\n".join(parts) + "\n"


def put(made: str, file: Path | None) -> None:
    """Print what was made, or write it to `file`, whole or not at all.

    Raises:
        UserError: where it cannot be written.
    """
    if file is None:
        try:
            sys.stdout.write(made)
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            if not isinstance(error, BrokenPipeError):  # there the reader has seen enough, as `head` does
                raise UserError(f"standard output: {error.strerror}") from error
        return
    outputs = Outputs()
    try:
        outputs.path(file).write_text(made, encoding="utf-8")
        outputs.commit()
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error
    finally:
        outputs.discard()


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; 0 whatever the verdict, which `headstart.evaluation.gate` can turn into an exit code."""
    parser = argparse.ArgumentParser(prog="python -m headstart.evaluation.compare", description=__doc__.split("\n")[0])
    parser.add_argument("base", help="a revision, the name of an experiment, or a .csv file of predictions")
    parser.add_argument("head", nargs="?", default=WORKSPACE, help="likewise; default: the %(default)s")
    parser.add_argument("--format", choices=["text", "markdown", "json"], default="text")
    parser.add_argument("--output", type=Path, help="a file to write instead of printing")
    arguments = parser.parse_args(argv)
    try:
        head, base = load(arguments.head), load(arguments.base)
        found = compare(base, head, int(head.params.get("evaluate.top_k", 3)))
        form = {"text": text, "markdown": markdown, "json": lambda found: json.dumps(found, indent=2) + "\n"}
        put(form[arguments.format](found), arguments.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
