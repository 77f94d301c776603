"""Which files of a source are examples, with which label, split and group: by their folders, or by a manifest."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import pandas as pd

from headstart.data.archives import leads_out
from headstart.data.files import Source
from headstart.data.sources import is_csv, is_manifest, local_file, manifest_folder
from headstart.errors import ItemError, UserError, did_you_mean
from headstart.paths import is_address

SPLIT_NAMES = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation", "dev"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """What may be an example: its path inside the source, its label, and its split and group if it has any."""

    path: str
    label: str
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a source holds. Each of its files, or rows, is in one of items, refused and ignored.

    Attributes:
        items: sorted by path.
        classes: the labels, sorted: the order of a model's outputs.
        refused: path, label, reason and detail of what is not even read.
        ignored: path and reason of what is not meant as an example.
    """

    items: list[Item]
    classes: list[str]
    refused: list[tuple[str, str, str, str]]
    ignored: list[tuple[str, str]]


class FileKind(Protocol):
    """What a layout asks of a modality, see `headstart.modalities.base.Modality`."""

    noun: str
    suffixes: Sequence[str]
    unsupported: dict[str, str]

    def recognizes(self, head: bytes, suffix: str) -> bool: ...


def list_items(
    opened: Source, source: str, kind: FileKind, root: str | None = None, group_by: str | None = None
) -> Listing:
    """The examples of `source`, which is `opened`, without reading them.

    Args:
        root: where the files of a manifest lie, by default beside it.
        group_by: a column of the manifest, or a regular expression that is searched in every path: what its groups
            match, or without groups what it matches, names the group.

    Raises:
        UserError: where it cannot be read, has less than two classes, or an empty one.
    """
    if is_manifest(source):
        opened.watch()
        listing, grouped = _by_manifest(source, root, group_by)
    else:
        listing, grouped = _by_folders(source, opened, kind), False
    if group_by and not grouped:
        listing = _grouped(listing, group_by)
    if len(listing.classes) < 2:
        raise UserError(
            f"{source}: {kind.noun}s of at least two classes are needed, found {len(listing.classes)} "
            f"({', '.join(listing.classes) or f'no {kind.noun} in a class folder'}); "
            "put each class into a folder of its own, or give a .csv manifest with the columns path,label"
        )
    return listing


def similar_class_names(classes: Iterable[str]) -> list[list[str]]:
    """Classes whose names differ in nothing but upper and lower case or spaces around them."""
    alike = defaultdict(list)
    for name in classes:
        alike[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    return [sorted(names) for names in alike.values() if len(names) > 1]


def _by_folders(source: str, opened: Source, kind: FileKind) -> Listing:
    """`CLASS/...` or `SPLIT/CLASS/...`, both also inside one outer folder."""
    opened.scan()
    refused = [(printable(name), "", reason, detail) for name, reason, detail in opened.refused]
    ignored = [(printable(name), reason) for name, reason in opened.ignored]
    names = []
    for name in opened.files:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in kind.unsupported and not _is_recognized(opened, name, suffix, kind):
            advice = f"{suffix} files are not supported; {kind.unsupported[suffix]}"
            refused.append((printable(name), "", "unsupported", advice))
        elif suffix and suffix not in kind.suffixes and not _is_recognized(opened, name, suffix, kind):
            ignored.append((printable(name), f"not {kind.noun} data by its suffix ({printable(suffix)}) and content"))
        elif printable(name) != name:
            refused.append((printable(name), "", "bad_name", "its name is not UTF-8"))
        else:
            names.append(name)

    outer = _outer_folder(names)
    inside = [name[len(outer) :] for name in names]
    folders = [name[len(outer) :] for name in opened.folders if name.startswith(outer)]
    depth = 1 if _has_splits(source, inside) else 0

    items = []
    for name, below in zip(names, inside, strict=True):
        parts = below.split("/")
        if len(parts) < depth + 2:
            ignored.append((name, "in no class folder"))
        else:
            items.append(Item(name, _label(parts[depth]), SPLIT_NAMES[parts[0].lower()] if depth else None))
    labels = {item.label for item in items}
    listed = {_label(parts[depth]) for parts in (folder.split("/") for folder in folders) if len(parts) == depth + 1}
    if empty := sorted(listed - labels):
        raise UserError(_no_examples(source, empty, outer, depth, refused, kind))
    return Listing(sorted(items, key=lambda item: item.path), sorted(labels), refused, ignored)


def _label(folder: str) -> str:
    """A folder's name as a label: composed, since some file systems decompose accents; one text for all its images."""
    return sys.intern(unicodedata.normalize("NFC", folder))


def _no_examples(
    source: str, empty: list[str], outer: str, depth: int, refused: list[tuple[str, str, str, str]], kind: FileKind
) -> str:
    """What to say of class folders without a usable file: why those that are there are refused."""
    names = ", ".join(map(repr, empty))
    inside = (name[len(outer) :].split("/") for name, *_ in refused)
    reasons = Counter(
        detail for parts, (*_, detail) in zip(inside, refused, strict=True) if _label(parts[depth]) in empty
    )
    if not reasons:
        return f"{source}: no {kind.noun} in the class folder {names}; put {kind.noun}s there or remove it"
    detail, count = reasons.most_common(1)[0]
    return f"{source}: no usable {kind.noun} in the class folder {names}: {count} files, {detail}"


def _is_recognized(opened: Source, name: str, suffix: str, kind: FileKind) -> bool:
    try:
        return kind.recognizes(opened.head(name), suffix)
    except ItemError:
        return False


def _outer_folder(names: list[str]) -> str:
    """The folders around all others, with a `/` at the end, or an empty text: archives often hold a single folder."""
    if not names:
        return ""
    prefix = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
    while prefix and any(os.path.dirname(name) == prefix for name in names):
        prefix = os.path.dirname(prefix)  # images lie in it: it is a class
    return f"{prefix}/" if prefix else ""


def _has_splits(source: str, names: list[str]) -> bool:
    """Whether the first folders are splits: all are called so, and train is among them."""
    first = {name.split("/")[0] for name in names if "/" in name}
    splits = {name for name in first if name.lower() in SPLIT_NAMES}
    kinds = {SPLIT_NAMES[name.lower()] for name in splits}
    if "train" in kinds and splits == first:
        return True
    if len(kinds) > 1:
        others = ", ".join(map(repr, sorted(first - splits))) or "no train folder"
        raise UserError(
            f"{source}: folders of splits ({', '.join(sorted(splits))}) beside {others}; "
            "give train and optionally val and test, with the class folders inside, and nothing else"
        )
    return False


def _by_manifest(source: str, root: str | None, group_by: str | None) -> tuple[Listing, bool]:
    """The rows of a table with the columns path, label and perhaps split; and whether `group_by` is one of its columns.

    Paths are relative to `root`, by default the table's folder.
    """
    table = _read_table(source)
    grouped = group_by is not None and group_by in table
    columns = ["path", "label", *(["split"] if "split" in table else []), *([group_by] if grouped else [])]
    rows = [table[column].astype(object).where(table[column].notna(), "").astype(str).tolist() for column in columns]
    first = 2 if is_csv(source) else 1
    inside = _Inside(root or manifest_folder(source))
    items, refused = [], []
    for number, values in enumerate(zip(*rows, strict=True), first):
        row = dict(zip(columns, values, strict=True))
        where = f"{source}: row {number}"
        path, label = row["path"], sys.intern(row["label"])
        if not path or not label:
            raise UserError(f"{where}: {'label' if path else 'path'} is empty; fill it in or remove the row")
        if "\0" in path:
            raise UserError(f"{where}: path {path!r} holds a zero byte; write the file's name there")
        split = None
        if "split" in row:
            if row["split"].lower() not in SPLIT_NAMES:
                raise UserError(f"{where}: split must be train, val or test, got {row['split']!r}")
            split = SPLIT_NAMES[row["split"].lower()]
        plain = path if "/" in path else path.replace("\\", "/")  # as written on Windows
        if leads_out(plain) or not inside(plain):
            refused.append((path, label, "outside", f"row {number}: leads out of {inside.root}"))
            continue
        items.append(
            Item("/".join(PurePosixPath(plain).parts), label, split, (row[group_by] or None) if grouped else None)
        )
    if items and "split" in table and not any(item.split == "train" for item in items):
        raise UserError(f"{source}: no row has the split train; there is nothing to learn from")
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
                "a manifest has the columns path, label and, where wished, split, in UTF-8, separated by commas"
            )
    return table


class _Inside:
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
            self._folders[folder] = self._holds(os.path.join(self.root, folder))
        return self._folders[folder] and (not os.path.islink(full) or self._holds(full))

    def _holds(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real)


def _grouped(listing: Listing, pattern: str) -> Listing:
    """The same listing, its items in the groups that `pattern` finds in their paths."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read otherwise
            compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"params.yaml: prepare.group_by must be a column of the manifest or a regular expression, got {pattern!r} "
            f"({error})"
        ) from error

    def group(path: str) -> str | None:
        found = compiled.search(path)
        if not found:
            return None
        return "/".join(part or "" for part in found.groups()) or found.group() or None

    items = [Item(item.path, item.label, item.split, group(item.path)) for item in listing.items]
    if items and not any(item.group for item in items):
        raise UserError(
            f"params.yaml: prepare.group_by {pattern!r} is no column of a manifest, and as a regular expression it is "
            f"found in no path, e.g. not in {items[0].path!r}"
        )
    return Listing(items, listing.classes, listing.refused, listing.ignored)


def printable(name: str) -> str:
    """`name` with bytes that are not UTF-8 spelled out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
