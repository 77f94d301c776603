"""List the examples of a manifest: a .csv or .parquet table with a row per example."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from headstart.data.archives import leads_out
from headstart.data.files import Source
from headstart.data.listing import Item, Kind, Listing
from headstart.data.prepared import read_parquet
from headstart.data.sources import is_csv, local_file, manifest_folder
from headstart.data.split_folders import Splits, recognize
from headstart.data.table_file import as_text, read_csv, read_labels, whole_numbers
from headstart.errors import UserError, did_you_mean, one_line, readable
from headstart.paths import is_address

COLUMNS = "a manifest has the columns path, label and optionally split, in UTF-8, separated by commas"
NO_SPLITS = "set data.splits to null, or to none for splits that prepare draws"


def list_manifest(
    opened: Source, source: str, kind: Kind, root: str | None, group_by: str | None, splits: Splits = None
) -> tuple[Listing, bool]:
    """List the rows of a table with the columns path, label and perhaps split.

    Args:
        opened: the files that it names.
        root: the folder that paths start from, by default the table's.
        splits: data.splits, in place of the usual words in the column split.

    Returns:
        The listing, and whether `group_by` is a column of the table, so that the items have their groups.

    Raises:
        UserError: if the table cannot be read, or a row of it is wrong.
    """
    table = _read_table(source)
    grouped = group_by is not None and group_by in table
    if isinstance(splits, Mapping) and "split" not in table:
        raise UserError(
            f"{source}: params.yaml: data.splits names words of the column split, which is missing; add it, or "
            f"{NO_SPLITS}"
        )
    has_splits = "split" in table and splits != "none"
    columns = ["path", "label", *(["split"] if has_splits else []), *([group_by] if grouped else [])]
    labels, notes = whole_numbers(read_labels(source, table["label"]))
    others = {column: as_text(source, table[column], whole=column == "path") for column in columns if column != "label"}
    rows = {column: others.get(column, labels) for column in columns}
    first = 2 if is_csv(source) else 1
    folder = root or manifest_folder(source)
    relative, complete = _Relative(folder), _Completion(opened, kind)
    split_of = _read_splits(rows.get("split", []), splits)
    items, refused = [], []
    for number, values in enumerate(zip(*rows.values(), strict=True), first):
        row = dict(zip(columns, values, strict=True))
        path, label = row["path"], sys.intern(row["label"])
        for column, value in (("path", path), ("label", label)):
            if not value.strip():
                raise UserError(f"{source}: row {number}: {column} is empty; fill it in or remove the row")
            if "\0" in value:
                raise UserError(f"{source}: row {number}: {column} {value!r} contains a zero byte; write it without")
        split = split_of.get(row["split"]) if has_splits else None
        if has_splits and not split:
            allowed = " or ".join(splits.values()) if isinstance(splits, Mapping) else "train, val or test"
            raise UserError(f"{source}: row {number}: split must be {allowed}, got {row['split']!r}")
        plain = relative(path)
        if plain is None:
            refused.append((path, label, "outside", f"row {number}: {relative.explain(path)}"))
            continue
        group = (row[group_by] or None) if grouped else None
        items.append(Item(complete(plain), label, split, group))
    if items and has_splits and not any(item.split == "train" for item in items):
        raise UserError(f"{source}: no row has the split train; there is nothing to train on")
    if complete.example:
        notes.append(f"{complete.count} paths without a suffix are completed, e.g. {readable(complete.example)}")
    classes = sorted({item.label for item in items} | {label for _, label, _, _ in refused})
    return Listing(sorted(items, key=lambda item: item.path), classes, refused, [], notes), grouped


def file_names(source: str) -> list[str]:
    """Return the paths in a manifest as they are written; raises UserError as `list_manifest`."""
    return as_text(source, _read_table(source)["path"])


def _read_table(source: str) -> pd.DataFrame:
    file = local_file(source)
    if is_csv(source):
        try:
            table = read_csv(file)
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


def _read_splits(column: Iterable[str], splits: Splits) -> dict[str, str]:
    """Return the split that each value of the column split stands for, as far as it does."""
    if isinstance(splits, Mapping):
        return {word: split for split, word in splits.items()}
    return recognize(sorted(set(column)))


class _Relative:
    """Makes paths of a manifest relative to `root`; None if a path, links resolved, leads out of it."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/") or "/"
        self._shown = "this folder" if self._root == "." else readable(self._root)
        self._real = "" if is_address(root) else os.path.realpath(root)
        self._folders: dict[str, bool] = {}

    def __call__(self, path: str) -> str | None:
        plain = self._plain(path)
        return "/".join(PurePosixPath(plain).parts) if plain and self._is_inside(plain) else None

    def explain(self, path: str) -> str:
        """Return why a path leads out of the root, and what to do."""
        parts = PurePosixPath(self._plain(path)).parts
        for count in range(1, len(parts) + 1):
            link = os.path.join(self._root, *parts[:count])
            if os.path.islink(link) and not self._contains(link):
                place, target = readable("/".join(parts[:count])), readable(os.path.realpath(link))
                if count == len(parts):
                    return f"it is a link that leads out of {self._shown}, to {target}; put the file itself there"
                return (
                    f"{place} is a link that leads out of {self._shown}; put the files themselves there, or set "
                    f"data.root to {target} and let paths start from that"
                )
        return f"leads out of {self._shown}; make it relative to it, or set data.root to another folder"

    def _plain(self, path: str) -> str:
        """Return a path from the root on, links not resolved; nothing if it leads out of that."""
        plain = path if "/" in path else path.replace("\\", "/")  # as written on Windows
        if is_address(path) or os.path.isabs(path):
            plain = self._below(path)
        return "" if leads_out(plain) else plain

    def _below(self, path: str) -> str:
        """Return what of an absolute path, or of an address, follows the root; nothing if it is not below that."""
        if not self._real:
            return path.removeprefix(f"{self._root}/") if path.startswith(f"{self._root}/") else ""
        for place, root in (
            (os.path.normpath(path), os.path.abspath(self._root)),
            (os.path.realpath(path), self._real),
        ):
            if Path(place).is_relative_to(root):
                return Path(place).relative_to(root).as_posix()
        return ""

    def _is_inside(self, path: str) -> bool:
        """Whether a relative path, links resolved, stays below the root; at an address there are no links."""
        if not self._real:
            return True
        folder, full = os.path.dirname(path), os.path.join(self._root, path)
        if folder not in self._folders:  # a million files lie in few folders
            self._folders[folder] = self._contains(os.path.join(self._root, folder))
        return self._folders[folder] and (not os.path.islink(full) or self._contains(full))

    def _contains(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real)


class _Completion:
    """Adds the suffix to paths that have none, as in tables of ids, if there is exactly one such file.

    Attributes:
        count: how many paths were completed.
        example: the last of them, completed.
    """

    def __init__(self, opened: Source, kind: Kind) -> None:
        self._opened, self._suffixes = opened, frozenset(kind.suffixes)
        self._names: dict[
            str, dict[str, list[str]]
        ] = {}  # by folder: the names of its files by what is before a suffix
        self.count, self.example = 0, ""

    def __call__(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        if PurePosixPath(name).suffix.lower() in self._suffixes:
            return path
        if folder not in self._names:
            names = self._names[folder] = defaultdict(list)
            for other in self._opened.names_in(folder):
                names[other].append(other)
                if PurePosixPath(other).suffix.lower() in self._suffixes:
                    names[PurePosixPath(other).stem].append(other)
        found = self._names[folder].get(name, [])
        if len(found) != 1 or found == [name]:
            return path
        self.count, self.example = self.count + 1, f"{folder}/{found[0]}".lstrip("/")
        return self.example
