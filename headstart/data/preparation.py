"""Prepare a listing: one table of all files, which of them are used, and which split each is in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from headstart.config import Params
from headstart.data import decisions, splits
from headstart.data.inspection_cache import ItemInfo
from headstart.data.listing import Listing
from headstart.data.splits import SPLITS
from headstart.errors import UserError, readable

Reject = Callable[[dict[str, float]], "tuple[str, str] | None"]


def tabulate(
    listing: Listing, infos: Iterable[ItemInfo], reject: Reject, no_descriptor: np.ndarray, on_bad: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Collect what is known about all items in the table of `headstart.data.decisions`, refused files at its end.

    Args:
        infos: of listing.items, in their order.
        reject: gives reason and detail of an example that is not to be used, by its measures.
        no_descriptor: (descriptor_dim,) zeros of the dtype of descriptors.

    Returns:
        The table, and (n, descriptor_dim) descriptors.

    Raises:
        UserError: at the first file that cannot be used, if `on_bad` is fail.
    """
    n = len(listing.items)
    descriptors = np.tile(no_descriptor, (n + len(listing.refused), 1))
    measures: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(n, np.float32))
    found: list[tuple[str, ...]] = []
    progress = tqdm(infos, total=n, desc="prepare", unit=" files", disable=None)
    for row, info in enumerate(progress):
        item = listing.items[row]
        reason, detail = info.reason, info.detail
        if not reason:
            reason, detail = reject(info.measures) or ("", "")
        if reason and on_bad == "fail":
            progress.close()
            raise UserError(
                f"{readable(item.path)}: {detail}; repair or remove it, or let prepare leave such files out with "
                "prepare.on_bad=quarantine"
            )
        for name, value in info.measures.items():
            measures[name][row] = value
        if info.descriptor:
            descriptors[row] = np.frombuffer(info.descriptor, descriptors.dtype)
        found.append((item.path, item.label, reason, detail, info.item_id, info.file_hash))
    table = pd.DataFrame(found, columns=["path", "label", "reason", "detail", "item_id", "file_hash"])
    for place, name in ((2, "split"), (3, "group")):
        table.insert(place, name, pd.Series([getattr(item, name) for item in listing.items], dtype=object))
    table = table.assign(**measures)
    if listing.refused:
        refused = pd.DataFrame(listing.refused, columns=["path", "label", "reason", "detail"])
        refused = refused.assign(**dict.fromkeys(measures, np.float32(0)), item_id="", file_hash="")
        table = pd.concat([table, refused], ignore_index=True)
    return table, descriptors


def decide(table: pd.DataFrame, descriptors: np.ndarray, classes: list[str], params: Params) -> pd.Series:
    """Decide which examples are used and in which split: fills `split`, `given`, `reason` and `detail` of the table.

    Returns:
        A number for each example that was not left out before, shared by copies.

    Raises:
        UserError: if too many files cannot be used, or a class lacks a split.
    """
    settings = params.prepare
    decisions.check_bad_files(table, params.data.source, settings.max_bad_fraction)
    decisions.exclude_conflicts(table, settings.on_conflict)
    copies = decisions.find_copies(table, descriptors, settings.near_distance)
    fractions = settings.val_fraction, settings.test_fraction
    table["given"] = table.split
    table["split"] = decisions.assign_splits(table, copies, settings.split, params.seed, *fractions)
    decisions.exclude_copies(table, copies)
    splits.check_classes(table, classes, copies, settings)
    return copies


def make_manifest(table: pd.DataFrame, copies: pd.Series, columns: dict[str, str]) -> pd.DataFrame:
    """Return the rows of the examples that are used, sorted by path.

    Args:
        columns: the measures to keep, with their dtypes.
    """
    good = table[table.reason == ""]
    connected = good.item_id.groupby(decisions.connected(good, copies)).transform("min")
    names = ["item_id", "path", "label", "split", "given", "group", "connected", *columns, "file_hash"]
    manifest = good.assign(connected=connected, given=good.given == good.split)[names]
    return manifest.astype({"group": "string", **columns}).sort_values("path")


def summarize(
    table: pd.DataFrame, copies: pd.Series, outliers: dict[str, pd.Index], listing: Listing
) -> dict[str, Any]:
    """Return the counts of reports/prepare.json."""
    good = table[table.reason == ""]
    left_out = table.reason[table.reason != ""]
    per_class = good.label.value_counts()
    groups = copies[good.index]
    return {
        "examples": {split: int((good.split == split).sum()) for split in SPLITS},
        "classes": len(listing.classes),
        "imbalance": float(per_class.max() / per_class.min()),
        "files": {
            "seen": len(table) + len(listing.ignored),
            "accepted": len(good),
            "quarantined": len(left_out),
            "ignored": len(listing.ignored),
        },
        "quarantined": {str(reason): int(count) for reason, count in left_out.value_counts().sort_index().items()},
        "near_copies": {
            "kept_together": int(groups.duplicated(keep=False).sum()),
            "under_several_labels": int((good.label.groupby(groups).transform("nunique") > 1).sum()),
        },
        "outliers": {name: len(index) for name, index in outliers.items()},
    }
