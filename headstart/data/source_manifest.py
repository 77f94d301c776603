"""List the examples of a manifest: a .csv or .parquet table with a row per example."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from headstart.data.archives import leads_out
from headstart.data.listing import SPLIT_NAMES, Item, Listing
from headstart.data.prepared import read_parquet
from headstart.data.sources import is_csv, local_file, manifest_folder
from headstart.errors import UserError, did_you_mean, one_line
from headstart.paths import is_address

COLUMNS = "a manifest has the columns path, label and optionally split, in UTF-8, separated by commas"


def list_manifest(source: str, root: str | None, group_by: str | None) -> tuple[Listing, bool]:
    """List the rows of a table with the columns path, label and perhaps split.

    Args:
        root: the folder that paths start from, by default the table's.

    Returns:
        The listing, and whether `group_by` is a column of the table, so that the items have their groups.

    Raises:
        UserError: if the table cannot be read, or a row of it is wrong.
    """
    table = _read_table(source)
    grouped = group_by is not None and group_by in table
    columns = ["path", "label", *(["split"] if "split" in table else []), *([group_by] if grouped else [])]
    rows = [_as_text(source, table[column]) for column in columns]
    first = 2 if is_csv(source) else 1
    is_inside = _IsInside(root or manifest_folder(source))
    items, refused = [], []
    for number, values in enumerate(zip(*rows, strict=True), first):
        row = dict(zip(columns, values, strict=True))
        path, label = row["path"], sys.intern(row["label"])
        for column, value in (("path", path), ("label", label)):
            if not value.strip():
                raise UserError(f"{source}: row {number}: {column} is empty; fill it in or remove the row")
            if "\0" in value:
                raise UserError(f"{source}: row {number}: {column} {value!r} contains a zero byte; write it without")
        split = SPLIT_NAMES.get(row["split"].lower()) if "split" in row else None
        if "split" in row and not split:
            raise UserError(f"{source}: row {number}: split must be train, val or test, got {row['split']!r}")
        plain = path if "/" in path else path.replace("\\", "/")  # as written on Windows
        if leads_out(plain) or not is_inside(plain):
            refused.append((path, label, "outside", f"row {number}: leads out of {is_inside.root}"))
            continue
        group = (row[group_by] or None) if grouped else None
        items.append(Item("/".join(PurePosixPath(plain).parts), label, split, group))
    if items and "split" in table and not any(item.split == "train" for item in items):
        raise UserError(f"{source}: no row has the split train; there is nothing to train on")
    classes = sorted({item.label for item in items} | {label for _, label, _, _ in refused})
    return Listing(sorted(items, key=lambda item: item.path), classes, refused, []), grouped


def _read_table(source: str) -> pd.DataFrame:
    file = local_file(source)
    if is_csv(source):
        try:
            table = _read_csv(file)
        except pd.errors.ParserWarning as error:
            raise UserError(f"{source}: rows have more values than the header; {COLUMNS}") from error
        except (ValueError, OSError) as error:
            advice = "save it as UTF-8" if isinstance(error, UnicodeError) else COLUMNS
            raise UserError(f"{source}: not a readable .csv table ({one_line(error)}); {advice}") from error
    else:
        try:
            table = read_parquet(file)
        except ValueError as error:
            raise UserError(f"{source}: {error}; write it again") from error
    for column in ("path", "label"):
        if column not in table:
            near = did_you_mean(column, map(str, table.columns)) or ";"
            raise UserError(f"{source}: the column {column!r} is missing{near} {COLUMNS}")
    if table.empty:
        raise UserError(f"{source}: it has no rows; {COLUMNS}")
    return table


def _read_csv(file: Path) -> pd.DataFrame:
    """Read a table of text. Of values beyond the header, pandas only warns, and only in the first row."""
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "index_col": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(file, **options)
        except pd.errors.ParserWarning:
            header = pd.read_csv(file, nrows=0, **options).columns
            table = pd.read_csv(file, **options, names=[*header, None], skiprows=1)
            if table[None].any():
                raise
            return table[header]  # each row ends in a comma


def _as_text(source: str, column: pd.Series) -> list[str]:
    """Return text and numbers as text, a missing value as empty text."""
    if pd.api.types.infer_dtype(column) in ("bytes", "mixed"):
        raise UserError(f"{source}: the column {column.name!r} must hold text or numbers; write it so")
    return column.astype(object).where(column.notna(), "").astype(str).tolist()


class _IsInside:
    """Whether a relative path, links resolved, stays below `root`; at an address there are no links."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._real = "" if is_address(root) else os.path.realpath(root)
        self._folders: dict[str, bool] = {}

    def __call__(self, path: str) -> bool:
        if not self._real:
            return True
        folder, full = os.path.dirname(path), os.path.join(self.root, path)
        if folder not in self._folders:  # a million files lie in few folders
            self._folders[folder] = self._contains(os.path.join(self.root, folder))
        return self._folders[folder] and (not os.path.islink(full) or self._contains(full))

    def _contains(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real)
