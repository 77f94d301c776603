"""Comparisons in words and tables, as text for a terminal and as Markdown for a pull request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd

from headstart.errors import UserError, readable
from headstart.evaluation.class_changes import NAMED, describe_changes
from headstart.outputs import Outputs

MAX_ROWS = 20  # of a table in text and Markdown
FEW = 100  # compared examples: of fewer, only large differences can be seen
# What means something in Markdown: underscores do so only at the edge of a word, brackets before an address.
_MARKS = re.compile(r"[\\`*#~]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")
_CODE_OR_MARKS = re.compile(r"""(`[\w ./:=,()"-]+`)|""" + _MARKS.pattern)
ADDRESS = "%/?#:@!$&'*+,;=~"  # what stands for itself in an address, but brackets
# What means something in tables and HTML; on GitHub @ and $ start a mention and a formula.
_ENTITIES = str.maketrans({letter: f"&#{ord(letter)};" for letter in "<>&|@$"})


class Table(NamedTuple):
    """A table of text; `numeric` names the columns to align right."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    numeric: tuple[str, ...] = ()


def describe(comparison: dict[str, Any], markdown: bool = False) -> str:
    """Return one sentence: the verdict, and what it rests on."""
    accuracy = next(row for row in comparison["metrics"] if row["metric"] == "accuracy")
    bold = "**" if markdown else ""
    base, head = (escape_markdown(comparison[name]) if markdown else comparison[name] for name in ("base", "head"))
    verdict = {
        "better": f"{bold}{head} is better{bold} than {base}",
        "worse": f"{bold}{head} is worse{bold} than {base}",
        "no evidence": f"{bold}No evidence{bold} that {head} differs in accuracy from {base}",
    }[comparison["verdict"]]
    return (
        f"{verdict}: accuracy {accuracy['base']:.4f} ({base}) -> {accuracy['head']:.4f} ({head}), difference "
        f"{accuracy['difference']:+.4f} (95 % interval {accuracy['low']:+.4f} to {accuracy['high']:+.4f}), on "
        f"{comparison['examples']['compared']:,} test examples{_of_known(comparison)}; {comparison['fixed']} fixed, "
        f"{comparison['regressed']} regressed, McNemar's exact test p = {comparison['p']:.2g}."
    )


def _of_known(comparison: dict[str, Any]) -> str:
    """Of which classes the examples are, if not of all."""
    is_part = any(change["change"] != "renamed" for change in comparison["class_changes"])
    return f" of the {comparison['classes_compared']:,} classes that both know" if is_part else ""


def about_outdated(comparison: dict[str, Any]) -> list[str]:
    """Return what makes the comparison one of other results than it is called, in sentences."""
    return [f"Warning: {reason}." for reason in comparison["outdated"].values()]


def caveats(comparison: dict[str, Any]) -> list[str]:
    """Return what limits the comparison, in sentences."""
    base, head, examples = comparison["base"], comparison["head"], comparison["examples"]
    sentences = []
    if examples["only_base"] or examples["only_head"]:
        sentences.append(
            f"The test sets differ: {examples['only_base']:,} examples only in {base}, {examples['only_head']:,} only "
            f"in {head}; the {examples['compared']:,} that both have are compared."
        )
    if examples["relabelled"]:
        sentences.append(f"{examples['relabelled']:,} examples have different labels and are left out.")
    if examples["compared"] < FEW:
        sentences.append(
            f"Only {examples['compared']:,} examples are compared: McNemar's test sees no difference unless at least 6 "
            "of them are classified correctly by only one of the two."
        )
    return sentences + _about_classes(comparison)


def _about_classes(comparison: dict[str, Any]) -> list[str]:
    """How the classes differ, and what that means for the comparison."""
    changes, left_out, outside = (
        comparison[name] for name in ("class_changes", "classes_left_out", "answers_left_out")
    )
    if not changes:
        return []
    sentences = [f"The classes differ: {describe_changes(changes)}."]
    if any(change["change"] == "renamed" for change in changes):
        sentences.append("Renamed classes are compared under their new names.")
    if known := _of_known(comparison):
        listed = [f"{count:,} of {readable(name)}" for name, count in left_out.items()]
        more = f" and of {len(listed) - NAMED:,} more classes" if len(listed) > NAMED else ""
        others = " and ".join(f"{outside[side]:,} answers of {comparison[side]}" for side in ("base", "head"))
        sentences.append(
            f"Compared are {comparison['examples']['compared']:,} examples{known}, as if there were no other classes "
            f"({others} were others); left out: {', '.join(listed[:NAMED]) or 'no examples'}{more}."
        )
    return sentences


def tables(comparison: dict[str, Any]) -> dict[str, Table]:
    """Return the tables that are not empty, by title, cut to MAX_ROWS rows."""
    changes = sorted(comparison["changed_predictions"], key=lambda row: row["fixed"])
    made = [
        Table("Metrics", ["metric", "base", "head", "difference", "95 % interval"],
              [[row["metric"], f"{row['base']:.4f}", f"{row['head']:.4f}", f"{row['difference']:+.4f}",
                f"{row['low']:+.4f} to {row['high']:+.4f}"] for row in comparison["metrics"]],
              numeric=("base", "head", "difference")),
        Table("Changed classes", ["class", "examples", "recall, base", "recall, head", "fixed", "regressed", "p"],
              [[row["class"], f"{row['examples']:,}", f"{row['base']:.3f}", f"{row['head']:.3f}", str(row["fixed"]),
                str(row["regressed"]), f"{row['p']:.2g}"] for row in comparison["classes"]]),
        Table("Changed predictions", ["", "example", "label", "base", "head"],
              [["fixed" if row["fixed"] else "regressed", row["path"], row["label"], row["base"], row["head"]]
               for row in changes]),
        Table("Cost", ["", "base", "head", "ratio"],
              [_cost(name, **pair) for name, pair in comparison["cost"].items()]),
        Table("Params", ["", "base", "head"],
              [[name, *map(to_cell, pair.values())] for name, pair in comparison["params"].items()]),
    ]  # fmt: skip
    for place, table in enumerate(made):
        if (hidden := len(table.rows) - MAX_ROWS) > 0:
            made[place] = table._replace(rows=table.rows[:MAX_ROWS], note=f"and {hidden:,} more: --format json has all")
    return {table.title: table for table in made if table.rows}


def _cost(name: str, base: float | None, head: float | None) -> list[str]:
    ratio = f"{head / base:.2f}" if base and head is not None else ""
    return [name, *("" if value is None else f"{value:.4g}" for value in (base, head)), ratio]


def to_cell(value: Any) -> str:
    """Return a param or figure as params.yaml writes it: null, true, 0.5, a text as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def comparison_as_text(comparison: dict[str, Any]) -> str:
    """Return a comparison for a terminal."""
    parts = ["\n".join([*about_outdated(comparison), describe(comparison), *caveats(comparison)])]
    parts += [f"{table.title}\n{text_table(table)}" for table in tables(comparison).values()]
    return "\n\n".join(parts) + "\n"


def comparison_as_markdown(comparison: dict[str, Any]) -> str:
    """Return a comparison for a pull request."""
    shown = [markdown_table(table, folded=table.title != "Metrics") for table in tables(comparison).values()]
    return "\n\n".join([verdict_as_markdown(comparison), *shown]) + "\n"


def verdict_as_markdown(comparison: dict[str, Any]) -> str:
    """Return the verdict between its warnings and its caveats as paragraphs."""

    def escaped(sentences: list[str]) -> list[str]:
        return [escape_markdown(sentence, keep_code=True) for sentence in sentences]

    verdict = describe(comparison, markdown=True)
    return "\n\n".join([*escaped(about_outdated(comparison)), verdict, *escaped(caveats(comparison))])


def text_table(table: Table) -> str:
    """Return a table for a terminal, without its title."""
    drawn = pd.DataFrame(table.rows, columns=table.header).to_string(index=False)
    return f"{drawn}\n{table.note}" if table.note else drawn


def markdown_table(table: Table, folded: bool = True) -> str:
    """Return a table under its title, its cells escaped."""
    align = ["---:" if name in table.numeric else "---" for name in table.header]
    cells = [[escape_markdown(cell) for cell in row] for row in (table.header, *table.rows)]
    lines = ["| " + " | ".join(line) + " |" for line in (cells[0], align, *cells[1:])]
    body = "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")
    if folded:
        return f"<details><summary>{table.title}</summary>\n\n{body}\n\n</details>"
    return f"**{table.title}**\n\n{body}"


def escape_markdown(text: str, keep_code: bool = False) -> str:
    """Return `text`, such as the name of a file or class, so that Markdown and HTML show it as it is, on one line.

    Args:
        keep_code: whether commands between backticks, as messages have them, stay code.
    """
    marks = _CODE_OR_MARKS if keep_code else _MARKS
    escaped = marks.sub(lambda found: found[0] if found.lastindex else f"\\{found[0]}", text)
    return " ".join(escaped.translate(_ENTITIES).split())


def link(text: str, address: str) -> str:
    """Return a link in Markdown; what could end it is escaped as addresses escape it."""
    text = re.sub(r"(?<!\\)([\[\]])", r"\\\1", escape_markdown(text))
    return f"[{text}]({quote(address, safe=ADDRESS)})"


def write_text(text: str, file: Path | None) -> None:
    """Print `text`, or write it to `file`, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    outputs = Outputs()
    try:
        if file is None:
            print(text, end="", flush=True)
        else:
            outputs.path(file).write_text(text, encoding="utf-8")
            outputs.commit()
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        raise
    except OSError as error:
        raise UserError(f"{file or 'standard output'}: cannot be written ({error.strerror})") from error
    finally:
        outputs.discard()
