"""List the examples of a manifest: a .csv or .parquet table with a row per example."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

import pandas as pd

from headstart.data.archives import leads_out
from headstart.data.listing import SPLIT_NAMES, Item, Listing
from headstart.data.sources import is_csv, local_file, manifest_folder
from headstart.errors import UserError, did_you_mean
from headstart.paths import is_address


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
    rows = [table[column].astype(object).where(table[column].notna(), "").astype(str).tolist() for column in columns]
    first = 2 if is_csv(source) else 1
    is_inside = _IsInside(root or manifest_folder(source))
    items, refused = [], []
    for number, values in enumerate(zip(*rows, strict=True), first):
        row = dict(zip(columns, values, strict=True))
        where = f"{source}: row {number}"
        path, label = row["path"], sys.intern(row["label"])
        if not path or not label:
            raise UserError(f"{where}: {'label' if path else 'path'} is empty; fill it in or remove the row")
        if "\0" in path:
            raise UserError(f"{where}: path {path!r} contains a zero byte; write the file's name there")
        split = None
        if "split" in row:
            if row["split"].lower() not in SPLIT_NAMES:
                raise UserError(f"{where}: split must be train, val or test, got {row['split']!r}")
            split = SPLIT_NAMES[row["split"].lower()]
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
    try:
        table = (
            pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
            if is_csv(source)
            else pd.read_parquet(file)
        )
    except (ValueError, OSError) as error:
        advice = "; save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise UserError(
            f"{source}: not a readable {file.suffix} table ({str(error).splitlines()[0]}){advice}"
        ) from error
    for column in ("path", "label"):
        if column not in table:
            raise UserError(
                f"{source}: the column {column!r} is missing{did_you_mean(column, map(str, table.columns)) or ';'} "
                "a manifest has the columns path, label and optionally split, in UTF-8, separated by commas"
            )
    return table


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
