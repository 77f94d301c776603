"""Which files of a source are images, and under which label and split: by their folders, or by a manifest."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from pipeline.errors import UserError, did_you_mean
from pipeline.images import SUFFIXES
from pipeline.sources import MANIFESTS, Folder, Source, open_source

SPLIT_NAMES = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation", "dev"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}


@dataclass(frozen=True)
class Item:
    """An image: its path inside the source, its label, and its split where the source gives one."""

    path: str
    label: str
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        items: sorted by path.
        classes: the labels, sorted: the order of a model's outputs.
        ignored: path and reason of each file that was left out.
    """

    items: list[Item]
    classes: list[str]
    ignored: list[tuple[str, str]]


def list_items(source: Path) -> Listing:
    """The images of `source`, without reading them.

    Raises:
        UserError: where it cannot be read, has less than two classes, or an empty one.
    """
    with open_source(source) as opened:
        if source.is_file() and source.suffix.lower() in MANIFESTS:
            listing = _by_manifest(source)
        else:
            listing = _by_folders(source, opened.scan() if isinstance(opened, Folder) else opened)
    if len(listing.classes) < 2:
        raise UserError(
            f"{source}: images of at least two classes are needed, found {len(listing.classes)} "
            f"({', '.join(listing.classes) or 'no image in a class folder'}); "
            "put each class into a folder of its own, or give a .csv manifest with the columns path,label"
        )
    return listing


def _by_folders(source: Path, opened: Source) -> Listing:
    """`CLASS/...` or `SPLIT/CLASS/...`, both also inside one outer folder."""
    ignored, names = list(opened.refused), []
    for name in opened.files:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix and suffix not in SUFFIXES:
            ignored.append((_printable(name), f"not an image by its name ({_printable(suffix)})"))
        elif _printable(name) != name:
            ignored.append((_printable(name), "its name is not UTF-8"))
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
            items.append(Item(name, parts[depth], SPLIT_NAMES[parts[0].lower()] if depth else None))
    labels = {item.label for item in items}
    empty = {parts[depth] for parts in (folder.split("/") for folder in folders) if len(parts) == depth + 1} - labels
    if empty:
        raise UserError(
            f"{source}: no image in the class folder {', '.join(map(repr, sorted(empty)))}; "
            "put images there or remove it"
        )
    return Listing(sorted(items, key=lambda item: item.path), sorted(labels), ignored)


def _outer_folder(names: list[str]) -> str:
    """The folders around all others, with a `/` at the end, or an empty text: archives often hold a single folder."""
    if not names:
        return ""
    prefix = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
    while prefix and any(os.path.dirname(name) == prefix for name in names):
        prefix = os.path.dirname(prefix)  # images lie in it: it is a class
    return f"{prefix}/" if prefix else ""


def _has_splits(source: Path, names: list[str]) -> bool:
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


def _by_manifest(file: Path) -> Listing:
    """The rows of a table with the columns path, label and perhaps split; paths are relative to its folder."""
    try:
        table = (
            pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
            if file.suffix.lower() == ".csv"
            else pd.read_parquet(file)
        )
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not a readable {file.suffix} table ({str(error).splitlines()[0]})") from error
    for column in ("path", "label"):
        if column not in table:
            raise UserError(
                f"{file}: the column {column!r} is missing{did_you_mean(column, map(str, table.columns)) or ';'} "
                "a manifest has the columns path, label and, where wished, split, in UTF-8, separated by commas"
            )
    table = table[[name for name in ("path", "label", "split") if name in table]]
    table = table.astype(object).where(table.notna(), "").astype(str)
    items, root = [], Path(os.path.realpath(file.parent))
    for number, row in enumerate(table.itertuples(index=False), 2 if file.suffix.lower() == ".csv" else 1):
        where = f"{file}: row {number}"
        if not row.path or not row.label:
            raise UserError(f"{where}: {'label' if row.path else 'path'} is empty; fill it in or remove the row")
        if "\0" in row.path:
            raise UserError(f"{where}: path {row.path!r} holds a zero byte; write the file's name there")
        path = row.path if "/" in row.path else row.path.replace("\\", "/")  # as written on Windows
        parts = PurePosixPath(path).parts
        real = Path(os.path.realpath(root / path))
        if PurePosixPath(path).is_absolute() or ".." in parts or not real.is_relative_to(root):
            raise UserError(
                f"{where}: path {row.path!r} leads out of the table's folder; "
                "give paths relative to it, to images beside or below the table"
            )
        split = None
        if "split" in table:
            if row.split.lower() not in SPLIT_NAMES:
                raise UserError(f"{where}: split must be train, val or test, got {row.split!r}")
            split = SPLIT_NAMES[row.split.lower()]
        items.append(Item("/".join(parts), row.label, split))
    repeated = [path for path, count in Counter(item.path for item in items).items() if count > 1]
    if repeated:
        raise UserError(f"{file}: path {repeated[0]!r} stands in more than one row; keep one of them")
    if items and "split" in table and not any(item.split == "train" for item in items):
        raise UserError(f"{file}: no row has the split train; there is nothing to learn from")
    return Listing(sorted(items, key=lambda item: item.path), sorted({item.label for item in items}), [])


def _printable(name: str) -> str:
    """`name` with bytes that are not UTF-8 spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()
