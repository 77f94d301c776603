"""List the examples of tables of texts: one table, or those of a folder or an archive, which may be its splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import pandas as pd

from headstart.data.listing import Item, Kind, Listing, printable
from headstart.data.split_folders import Splits, recognize
from headstart.data.table_file import as_text, read_labels, whole_numbers
from headstart.data.tables import Columns, Rows, row_name
from headstart.errors import UserError, readable

MAX_SHOWN = 5  # tables in a message
NO_LABEL = ("", "nan")  # what a missing label is written as, in lower case
FEW_ROWS, MOST_CLASSES = 20, 0.5  # in more rows, a column with a new value in every other row holds no classes


class FoundTables(NamedTuple):
    """Tables of a source.

    Attributes:
        columns: of each table that holds texts and labels.
        others: why each other table does not.
    """

    columns: dict[str, Columns]
    others: dict[str, UserError]


NO_TABLES = FoundTables({}, {})


def find_tables(rows: Rows, kind: Kind) -> FoundTables:
    """Find the tables whose rows are the examples: none if there is a manifest, or files in class folders.

    Raises:
        UserError: if a table cannot be read, or the only one lacks a column.
    """
    found = FoundTables({}, {})
    if rows.single:
        if rows.inline:
            found.columns[rows.single] = rows.columns.find(rows.column_names(rows.single), rows.single)
        return found
    rows.scan()
    if not rows.tables or len(_class_folders(rows.files, kind)) > 1:
        return found
    for table in sorted(rows.tables):
        try:
            found.columns[table] = rows.columns.find(rows.column_names(table), table)
        except UserError as error:
            found.others[table] = error
    return found


def _class_folders(files: Sequence[str], kind: Kind) -> set[str]:
    """Return the folders that hold files which are examples by their suffix."""
    names = [name for name in files if PurePosixPath(name).suffix.lower() in kind.suffixes]
    return {os.path.dirname(name) for name in names if "/" in name}


def list_tables(
    rows: Rows, source: str, found: FoundTables, group_by: str | None, splits: Splits = None
) -> tuple[Listing, bool]:
    """List the rows of tables.

    Args:
        splits: data.splits: names of tables, or words in the column split.

    Returns:
        The listing, and whether `group_by` is a column, so that the items have their groups.

    Raises:
        UserError: if a table cannot be read, or its rows have no classes.
    """
    named = {} if rows.single else _table_splits(source, list(found.columns), splits)
    items: list[Item] = []
    refused: list[tuple[str, str, str, str]] = []
    grouped = False
    for table in found.columns:
        frame = rows.load(table)
        columns = rows.columns.find(list(frame.columns), table)
        labels = [label.strip() for label in read_labels(table, frame[columns.label])]
        given = _row_splits(table, frame, splits, named.get(table))
        has_group = group_by is not None and group_by in frame
        groups = list(map(printable, as_text(table, frame[group_by]))) if has_group else [""] * len(frame)
        grouped |= has_group
        for number, label, split, group in zip(frame.index, labels, given, groups, strict=True):
            path = row_name(table, number)
            if label.casefold() in NO_LABEL:
                refused.append((path, "", "no_label", "the label is missing"))
            elif printable(label) != label:
                refused.append((path, "", "encoding", "the label is not UTF-8, others are; save the table as UTF-8"))
            else:
                items.append(Item(path, label, split, group or None))
    labels, notes = whole_numbers([item.label for item in items])
    if notes:
        items = [Item(item.path, label, item.split, item.group) for item, label in zip(items, labels, strict=True)]
    if any(item.split for item in items) and not any(item.split == "train" for item in items):
        raise UserError(f"{source}: no row has the split train; there is nothing to train on")
    classes = sorted(set(labels))
    if len(classes) < 2:
        shown = ", ".join(map(readable, classes)) or "none"
        raise UserError(
            f"{source}: rows with at least two labels are needed, found {len(classes)} ({shown}) in {len(items)} rows; "
            "is data.label_column the right one?"
        )
    if len(items) > FEW_ROWS and len(classes) > MOST_CLASSES * len(items):
        raise UserError(
            f"{source}: the column of labels has {len(classes):,} different values in {len(items):,} rows: these are "
            "no classes; set data.label_column to another column"
        )
    notes = [*_describe(rows, found, named), *notes]
    ignored = [] if rows.single else _others(rows, found)
    return Listing(sorted(items, key=lambda item: item.path), classes, refused, ignored, notes), grouped


def _others(rows: Rows, found: FoundTables) -> list[tuple[str, str]]:
    """Return name and reason of the files that are not read."""
    reasons = dict.fromkeys(found.others, "a table without these columns")
    others = [(name, reasons.get(name, "not a table of texts")) for name in rows.files if name not in found.columns]
    refused = [(name, detail) for name, _, detail in rows.refused]
    return [(printable(name), reason) for name, reason in others + refused + rows.ignored]


def _describe(rows: Rows, found: FoundTables, named: Mapping[str, str]) -> list[str]:
    """Say which columns are read, which tables are splits, and which are left out."""
    notes = [
        f"texts are in the column {readable(columns.text or '')}, labels in {readable(columns.label or '')}"
        for columns in dict.fromkeys(found.columns.values())
    ]
    if named:
        notes.append("; ".join(f"{readable(table)} is the split {split}" for table, split in named.items()))
    notes += [f"{error}; this table is not used" for error in list(found.others.values())[:MAX_SHOWN]]
    return notes


def _table_splits(source: str, tables: Sequence[str], splits: Splits) -> dict[str, str]:
    """Return the split that each table is, by its name; none if the tables are no splits, or `splits` has other names.

    Raises:
        UserError: if only some of them are.
    """
    outer = os.path.commonpath([os.path.dirname(table) for table in tables])
    plain = {table: os.path.splitext(table[len(outer) :].lstrip("/"))[0] for table in tables}
    if isinstance(splits, Mapping):
        wanted = {os.path.splitext(name.strip("/"))[0]: split for split, name in splits.items()}
        named = {table: wanted[name] for table, name in plain.items() if name in wanted}
        complete = len(named) == len(tables) and set(named.values()) == set(splits)
        return {table: named[table] for table in tables} if complete else {}
    known = recognize(plain.values()) if splits is None and len(tables) > 1 else {}
    named = {table: known[name] for table, name in plain.items() if name in known}
    if not named:
        return {}
    others = [table for table in tables if table not in named]
    if others or "train" not in named.values():
        shown = ", ".join(map(readable, (others or tables)[:MAX_SHOWN]))
        raise UserError(
            f"{source}: {next(iter(named))} is named as a split, "
            + (f"but {shown} not" if others else "but no table as train")
            + "; name each table train, val or test, or give one of them as data.source; if they are no splits, set "
            "data.splits=none"
        )
    return named


def _row_splits(table: str, frame: pd.DataFrame, splits: Splits, named: str | None) -> list[str | None]:
    """Return the split of each row: that of the table, or by its column split; None: prepare draws it."""
    if named or splits == "none":
        return [named] * len(frame)
    column = next((name for name in frame.columns if str(name).strip().casefold() == "split"), None)
    if column is None:
        if isinstance(splits, Mapping):
            raise UserError(
                f"{table}: params.yaml: data.splits must name all tables and no others, or words of a column split, "
                "which is missing; correct it, or set it to null, or to none for splits that prepare draws"
            )
        return [None] * len(frame)
    words = as_text(table, frame[column])
    inverse = {word: split for split, word in splits.items()} if isinstance(splits, Mapping) else recognize(set(words))
    allowed = " or ".join(splits.values()) if isinstance(splits, Mapping) else "train, val or test"
    for number, word in zip(frame.index, words, strict=True):
        if word not in inverse:
            raise UserError(f"{table}: row {number}: split must be {allowed}, got {word!r}")
    return [inverse[word] for word in words]
