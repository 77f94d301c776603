"""Decide what is learned from: which files are images, and which split each is in, once and for all.

Reads:   the data source.
Writes:  data/prepared/manifest.parquet, a row an image: item_id (of its pixels, see `images.item_id`), path (inside
         the source), label, split (train, val, test), given (whether the source itself says so), group (of
         prepare.group_by, else missing), connected (shared by images that groups and copies, exact or near, connect),
         width, height (pixels, int32), file_hash (of its bytes, see `images.file_hash`), sorted by path; classes.json,
         the labels in the order of the model's outputs; quarantine.csv (path, label, reason, detail), the images that
         are left out; ignored.csv (path, reason), the files that are not meant as images; files.parquet, what is
         known of every file; reports/prepare.json; metrics/prepare.json.
Params:  seed, data, prepare.
Command: python -m pipeline.prepare
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
from tqdm import tqdm

from headstart import paths
from headstart.config import Params
from headstart.data import decisions, splits
from headstart.data.files import Source
from headstart.data.inspection import DESCRIPTOR_DIM, inspect
from headstart.data.inspection_cache import Facts, Memory
from headstart.data.layouts import Item, Listing, list_items, twins
from headstart.data.sources import open_source
from headstart.data.splits import SHOWN, SPLITS
from headstart.errors import UserError
from headstart.stage import stage


def tabulate(items: list[Item], facts: Iterable[Facts], min_size: int, on_bad: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The facts about the items as the table of `headstart.data.decisions`, in their order.

    Returns:
        The table, and the (n, DESCRIPTOR_DIM) float16 descriptors.

    Raises:
        UserError: at the first file that cannot be used, where `on_bad` is fail.
    """
    n = len(items)
    descriptors = np.zeros((n, DESCRIPTOR_DIM), np.float16)
    item_ids, file_hashes, numbers = np.zeros(n, "S32"), np.zeros(n, "S32"), np.zeros((n, 4), np.float32)
    reasons, details = [""] * n, [""] * n
    progress = tqdm(facts, total=n, desc="prepare", unit=" images", disable=None)
    for row, found in enumerate(progress):
        reasons[row], details[row] = found.reason, found.detail
        item_ids[row], file_hashes[row] = found.item_id.encode(), found.file_hash.encode()
        numbers[row] = found.width, found.height, found.brightness, found.sharpness
        if not found.reason and min(found.width, found.height) < min_size:
            reasons[row] = "too_small"
            details[row] = f"{found.width} x {found.height} pixels, prepare.min_size is {min_size}"
        if found.descriptor:
            descriptors[row] = np.frombuffer(found.descriptor, np.float16)
        if reasons[row] and on_bad == "fail":
            progress.close()
            raise UserError(
                f"{items[row].path}: {details[row]}; mend or remove it, or let prepare leave such files out with "
                "prepare.on_bad=quarantine"
            )
    table = pd.DataFrame(
        {
            "path": [item.path for item in items],
            "label": [item.label for item in items],
            "split": pd.Series([item.split for item in items], dtype=object),
            "group": pd.Series([item.group for item in items], dtype=object),
            "reason": reasons,
            "detail": details,
            "item_id": item_ids.astype("U32"),
            "width": numbers[:, 0].astype(np.int32),
            "height": numbers[:, 1].astype(np.int32),
            "brightness": numbers[:, 2],
            "sharpness": numbers[:, 3],
            "file_hash": file_hashes.astype("U32"),
        }
    )
    return table, descriptors


def read(listing: Listing, source: Source, params: Params) -> tuple[pd.DataFrame, np.ndarray]:
    """What is known about all items, see `tabulate`; refused files are rows too."""
    origin = f"{os.path.abspath(params.data.source)} {params.data.root or ''}"
    with Memory(paths.cache_path("images.sqlite"), origin) as memory:
        facts = inspect([item.path for item in listing.items], source, memory)
        table, descriptors = tabulate(listing.items, facts, params.prepare.min_size, params.prepare.on_bad)
    if not listing.refused:
        return table, descriptors
    refused = pd.DataFrame(listing.refused, columns=["path", "label", "reason", "detail"])
    numbers = dict.fromkeys(("width", "height", "brightness", "sharpness"), 0)
    table = pd.concat([table, refused.assign(**numbers, item_id="", file_hash="")], ignore_index=True)
    return table, np.pad(descriptors, ((0, len(refused)), (0, 0)))


def main() -> None:
    """Run the stage."""
    with stage("prepare") as run:
        params = run.params
        manifest_file, files_file = run.path(paths.MANIFEST), run.path(paths.FILES)
        with open_source(params.data.source, params.data.root) as source:
            listing = list_items(source, params.data.source, params.data.root, params.prepare.group_by)
            table, descriptors = read(listing, source, params)
        decisions.check_bad(table, params.data.source, params.prepare.max_bad_fraction)
        decisions.mark_conflicts(table, params.prepare.on_conflict)
        copies = decisions.find_copies(table, descriptors, params.prepare.near_distance)
        fractions = params.prepare.val_fraction, params.prepare.test_fraction
        table["given"] = table.split
        table["split"] = decisions.assign_splits(table, copies, params.prepare.split, params.seed, *fractions)
        decisions.mark_copies(table, copies)
        good = table[table.reason == ""]
        splits.check_classes(table, listing.classes, params.prepare.split == "exact")

        first = good.item_id.groupby(decisions.connected(good, copies)).transform("min")
        columns = ["item_id", "path", "label", "split", "given", "group", "connected", "width", "height", "file_hash"]
        manifest = good.assign(connected=first, given=good.given == good.split)[columns]
        manifest.astype({"group": "string"}).sort_values("path").to_parquet(manifest_file, index=False)
        run.json(paths.CLASSES, listing.classes)
        left_out = table[table.reason != ""][["path", "label", "reason", "detail"]].sort_values("path")
        run.csv(paths.QUARANTINE, left_out)
        run.csv(paths.IGNORED, pd.DataFrame(sorted(listing.ignored), columns=["path", "reason"]))
        files = table.assign(copies=copies.astype("Int64")).drop(columns=["given", "file_hash"])
        files.astype({"split": "string", "group": "string"}).to_parquet(files_file, index=False)
        values = summarize(table, copies, decisions.outliers(good), listing)
        run.metrics({"images": values["files"]["accepted"], "quarantined": values["files"]["quarantined"]})
        run.report(values)
        tell(values, good, listing)


def summarize(table: pd.DataFrame, copies: pd.Series, unlike: dict[str, pd.Index], listing: Listing) -> dict:
    """What metrics/prepare.json holds."""
    good = table[table.reason == ""]
    left_out = table.reason[table.reason != ""]
    per_class = good.label.value_counts()
    together = copies[good.index]
    return {
        "images": {split: int((good.split == split).sum()) for split in SPLITS},
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
            "kept_together": int(together.duplicated(keep=False).sum()),
            "under_several_labels": int((good.label.groupby(together).transform("nunique") > 1).sum()),
        },
        "outliers": {name: len(index) for name, index in unlike.items()},
    }


def tell(values: dict, good: pd.DataFrame, listing: Listing) -> None:
    """Say on the screen what was decided."""
    for names in twins(listing.classes):
        print(f"prepare: the classes {', '.join(map(repr, names))} differ only in case or spaces; is one meant?")
    files = values["files"]
    print(
        f"prepare: {files['accepted']} images of {values['classes']} classes: "
        + ", ".join(f"{values['images'][split]} {split}" for split in SPLITS)
    )
    if files["quarantined"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in values["quarantined"].items())
        print(f"prepare: {files['quarantined']} left out ({reasons}), see {paths.QUARANTINE}")
    if several := values["near_copies"]["under_several_labels"]:
        print(f"prepare: {several} near copies are under several labels; is one label wrong? The page shows them first")
    if files["ignored"]:
        counts = Counter(reason for _, reason in listing.ignored).most_common(SHOWN)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
        print(f"prepare: {files['ignored']} files are passed over ({reasons}), see {paths.IGNORED}")
    alone = int(good.group.isna().sum())
    if 0 < alone < len(good):
        print(f"prepare: {alone} images are in no group of prepare.group_by; each is split for itself")


if __name__ == "__main__":
    main()
