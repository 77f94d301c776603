"""Read what prepare has written, as the later stages and the pages do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart import paths
from headstart.data.splits import SPLITS
from headstart.errors import damaged, one_line, readable

_MANIFEST_TEXT = ("item_id", "path", "label", "split", "connected", "file_hash")
_FILES_TEXT = ("path", "label", "reason", "detail", "item_id")


def read_parquet(file: Path | pa.BufferReader) -> pd.DataFrame:
    """Read a Parquet file.

    Raises:
        ValueError: saying what is wrong with it, if it is damaged.
    """
    try:
        table = pq.read_table(file)
        table.validate(full=True)  # else text that is not UTF-8 is noticed when it is used
        return table.to_pandas()
    except MemoryError:
        raise
    except Exception as error:  # of many kinds on damaged bytes
        raise ValueError(f"not a readable .parquet table ({one_line(error)})") from error


def load_manifest() -> pd.DataFrame:
    """Read data/prepared/manifest.parquet, see pipeline/prepare.py.

    Raises:
        UserError: if it is not as prepare has written it.
    """
    manifest = _load(paths.MANIFEST, _MANIFEST_TEXT, ("given", "group"))
    if unknown := set(manifest.split) - set(SPLITS):
        raise damaged(paths.MANIFEST, f"split must be {', '.join(SPLITS)}, got {min(unknown)!r}", "prepare")
    return manifest


def load_files() -> pd.DataFrame:
    """Read data/prepared/files.parquet, a row per file; raises as `load_manifest`."""
    files = _load(paths.FILES, _FILES_TEXT, ("split", "group", "copies"))
    _check_labels(files.label[files.reason == ""], load_classes(), paths.FILES)
    return files


def load_classes() -> list[str]:
    """Read the labels in the order of the model's outputs; raises as `load_manifest`."""
    try:
        classes = json.loads(paths.CLASSES.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(paths.CLASSES, f"not readable JSON ({one_line(error)})", "prepare") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise damaged(paths.CLASSES, "must be a list of class names", "prepare")
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise damaged(paths.CLASSES, "must name two classes or more, each once", "prepare")
    return classes


def load_split(split: str) -> pd.DataFrame:
    """Read the rows of one split in the manifest's order, with `target`, the int32 index of the label.

    Raises:
        UserError: as `load_manifest`, or if classes.json lacks a label.
    """
    manifest, classes = load_manifest(), load_classes()
    _check_labels(manifest.label, classes, paths.MANIFEST)
    examples = manifest[manifest.split == split].reset_index(drop=True)
    if examples.empty:
        raise damaged(paths.MANIFEST, f"has no row of the split {split}", "prepare")
    target = {label: number for number, label in enumerate(classes)}
    return examples.assign(target=examples.label.map(target).astype("int32"))


def _load(file: Path, text: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    """Read a table that has the columns `text`, which lack no value, and `others`."""
    try:
        table = read_parquet(file)
    except ValueError as error:
        raise damaged(file, str(error), "prepare") from error
    if table.empty:
        raise damaged(file, "has no rows", "prepare")
    if missing := [name for name in (*text, *others) if name not in table]:
        raise damaged(file, f"the column {missing[0]!r} is missing", "prepare")
    for name in text:
        if pd.api.types.infer_dtype(table[name], skipna=False) != "string":
            raise damaged(file, f"the column {name!r} must hold text in every row", "prepare")
    return table


def _check_labels(labels: pd.Series, classes: list[str], file: Path) -> None:
    if unknown := set(labels) - set(classes):
        raise damaged(paths.CLASSES, f"lacks the label {readable(min(unknown))}, which {file} has", "prepare")
