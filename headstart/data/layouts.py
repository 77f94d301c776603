"""Find the examples of a source by its folders, by a manifest or by COCO annotations."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from headstart.data.boxes import Crops, parse_name
from headstart.data.checks import compile_group_by
from headstart.data.coco import annotation_files, find_annotations, list_annotations
from headstart.data.files import Source
from headstart.data.listing import Item, Kind, Listing, printable
from headstart.data.recognition import sort_files
from headstart.data.source_manifest import NO_SPLITS, list_manifest
from headstart.data.source_tables import NO_TABLES, find_tables, list_tables
from headstart.data.sources import is_manifest, is_table, open_source
from headstart.data.split_folders import Splits, find_splits
from headstart.data.tables import Columns, Rows
from headstart.data_config import Data
from headstart.errors import UserError, readable
from headstart.paths import is_address

MAX_SHOWN = 5  # empty classes in a message
UNLABELLED = ("unsup", "unlabeled", "unlabelled")  # class folders of train alone that are no classes, as of IMDb


def open_examples(data: Data, kind: Kind) -> Source:
    """Open `data.source` as all stages read it: the boxes of COCO annotations are cut out, rows of tables are files.

    Raises:
        UserError: as `open_source`, or if its annotations files are no splits.
    """
    return open_within(open_source(data.source, data.root), data, kind)


def open_within(opened: Source, data: Data, kind: Kind) -> Source:
    """Return what `open_examples` does for an `opened` source, which it closes; raises as that."""
    if kind.inline:
        columns = Columns(data.text_column, data.label_column)
        return Rows(opened, columns, data.source if is_table(data.source) else None)
    boxes = data.coco == "boxes" and annotation_files(data.source, opened)
    return Crops(opened, kind, data.margin) if boxes else opened


def list_items(
    opened: Source,
    source: str,
    kind: Kind,
    root: str | None = None,
    group_by: str | None = None,
    coco: Literal["boxes", "images"] = "boxes",
    splits: Splits = None,
) -> Listing:
    """List the examples of `source`, which is `opened`, without reading them.

    Args:
        root: where the files of a manifest lie, by default beside it.
        coco: which of the two that COCO annotations hold are the examples.
        group_by: a column of the manifest, or a regular expression that is searched in every path: what its groups
            match, or all that it matches if it has none, names the group.
        splits: data.splits.

    Raises:
        UserError: if it cannot be read, has fewer than two classes, or an empty one.
    """
    grouped = False
    tables = find_tables(opened, kind) if isinstance(opened, Rows) else NO_TABLES
    if isinstance(opened, Rows) and tables.columns:
        listing, grouped = list_tables(opened, source, tables, group_by, splits)
    elif is_table(source) and not is_manifest(source):
        raise UserError(f"{source}: a table of texts, not a manifest of {kind.noun}s, which is a .csv or a .parquet")
    elif is_manifest(source):
        opened.watch()
        listing, grouped = list_manifest(opened, source, kind, root, group_by, splits)
    elif annotations := annotation_files(source, opened):
        opened.watch()
        if os.path.isdir(source):
            opened.scan()  # for its links to folders
        if isinstance(splits, Mapping):
            raise UserError(
                f"{source}: params.yaml: data.splits names folders or words of a manifest, but COCO annotations have "
                f"the splits of their files; {NO_SPLITS}"
            )
        unused = splits == "none" and len(annotations) > 1
        annotations = dict.fromkeys(annotations) if unused else annotations
        listing = list_annotations(opened, source, annotations, whole=coco == "images")
        if unused:
            note = "the splits by annotations files are not used, since data.splits is none"
            listing = replace(listing, notes=[*listing.notes, note])
    else:
        listing = _list_folders(source, opened, kind, splits)
    if group_by and not grouped:
        listing = replace(listing, items=_group(listing.items, group_by))
    if len(listing.classes) < 2:
        shown = ", ".join(map(readable, listing.classes)) or f"no {kind.noun} in a class folder"
        outside = [f"{readable(name)} {detail}" for name, _, reason, detail in listing.refused if reason == "outside"]
        because = "".join(f"; {note}" for note in (*listing.notes, *tables.others.values(), *outside[:1]))
        other = f"table with the columns {kind.column},label" if kind.inline else "manifest with the columns path,label"
        raise UserError(
            f"{source}: {kind.noun}s of at least two classes are needed, found {len(listing.classes)} ({shown}); "
            f"put each class into a folder of its own, or give a .csv {other}{because}"
        )
    return listing


def _list_folders(source: str, opened: Source, kind: Kind, splits: Splits) -> Listing:
    """List `CLASS/...` or `SPLIT/CLASS/...`, both also inside one outer folder."""
    opened.scan()
    if annotations := find_annotations(opened, opened.files):
        advice = "give that file or its folder"
        if is_address(source):  # a folder there is not listed at each stage
            advice = f"of those at an address give the file itself: {source.rstrip('/')}/{annotations[0]}"
        raise UserError(f"{source}: it holds COCO annotations ({annotations[0]}); {advice}")
    found = sort_files(opened.files, opened.read, kind)
    refused = [(printable(name), "", reason, detail) for name, reason, detail in opened.refused + found.refused]
    ignored = [(printable(name), reason) for name, reason in opened.ignored + found.ignored]
    names = []
    for name in found.names:
        if printable(name) != name:
            refused.append((printable(name), "", "bad_name", "its name is not UTF-8"))
        else:
            names.append(name)

    unusable = [(name, detail) for name, _, reason, detail in refused if reason != "outside"]
    meant = names or [name for name, _ in unusable]
    outer = _outer_folder(meant)
    split_of = find_splits(source, meant, outer, splits)

    def place(name: str) -> str | None:
        """The folder around the class folder of a file; None if it is in no split."""
        return next((folder for folder in split_of or [outer] if name.startswith(folder)), None)

    def class_folder(name: str) -> str | None:
        """The label by the folders of a file, None if it is in no class folder."""
        folder = place(name)
        label, slash, _ = name[len(folder) :].partition("/") if folder is not None else ("", "", "")
        # Composed, since some file systems decompose accents; one text for all.
        return sys.intern(unicodedata.normalize("NFC", label)) if slash else None

    items = []
    for name in names:
        label = class_folder(name)
        folder = place(name)
        if label is None:
            ignored.append((name, "in no split folder" if folder is None else "in no class folder"))
        else:
            items.append(Item(name, label, split_of.get(folder or "")))
    labels = {item.label for item in items}
    elsewhere = {item.label for item in items if item.split != "train"}
    unlabelled = {label for label in labels if label.casefold() in UNLABELLED and elsewhere and label not in elsewhere}
    ignored += [(item.path, "without a label") for item in items if item.label in unlabelled]
    items = [item for item in items if item.label not in unlabelled]
    reasons = [(class_folder(name), detail) for name, detail in unusable]
    folders = {class_folder(f"{folder}/") for folder in opened.folders} | {label for label, _ in reasons}
    if empty := sorted(folder for folder in folders if folder and folder not in labels):
        raise UserError(f"{source}: {_describe_empty(empty, reasons, kind)}")
    folders_of = {split: [f.rstrip("/") for f in split_of if split_of[f] == split] for split in split_of.values()}
    splits_are = [f"{' and '.join(map(readable, places))} is the split {split}" for split, places in folders_of.items()]
    plain = all(folder[len(outer) :] == f"{split}/" for folder, split in split_of.items())
    notes = [] if plain else ["; ".join(splits_are)]
    notes += [f"{readable(label)}, which only train has, is left out: it has no labels" for label in sorted(unlabelled)]
    labels -= unlabelled
    links = [(name, detail) for name, _, reason, detail in refused if reason == "link"]
    if links:  # one may be a whole class
        others = f", and so are {len(links) - 1} others" if links[1:] else ""
        notes.append(f"{readable(links[0][0])} is left out{others}: {links[0][1]}")
    return Listing(sorted(items, key=lambda item: item.path), sorted(labels), refused, ignored, notes)


def _describe_empty(empty: list[str], reasons: list[tuple[str | None, str]], kind: Kind) -> str:
    """Say which class folders have no usable file, and why the files that are there are refused."""
    names = f"{'s' if len(empty) > 1 else ''} " + ", ".join(map(repr, empty[:MAX_SHOWN]))
    names += f" and {len(empty) - MAX_SHOWN} more" if len(empty) > MAX_SHOWN else ""
    among = set(empty)
    details = Counter(detail for label, detail in reasons if label in among)
    if not details:
        return f"no {kind.noun} in the class folder{names}; put {kind.noun}s there or remove it"
    detail, count = details.most_common(1)[0]
    return f"no usable {kind.noun} in the class folder{names}: {count} files there: {detail}"


def _outer_folder(names: list[str]) -> str:
    """Return the folders around all others with a `/` at the end, or an empty text: archives often hold one folder."""
    if not names:
        return ""
    prefix = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
    if 2 * sum(os.path.dirname(name) == prefix for name in names) >= len(names):
        prefix = os.path.dirname(prefix)  # most examples lie in it: it is a class
    return f"{prefix}/" if prefix else ""


def _group(items: list[Item], pattern: str) -> list[Item]:
    """Return the items in the groups that `pattern` finds in their paths."""
    compiled = compile_group_by(pattern)

    def group(path: str) -> str | None:
        match = compiled.search(path)
        return ("/".join(part or "" for part in match.groups()) or match.group() or None) if match else None

    found = [group(parse_name(item.path)[0]) for item in items]
    if items and not any(found):
        raise UserError(
            f"params.yaml: prepare.group_by {pattern!r} is not a column of a manifest, and as a regular expression it "
            f"matches no path, e.g. not {parse_name(items[0].path)[0]!r}"
        )
    return [replace(item, group=name or item.group) for item, name in zip(items, found, strict=True)]
