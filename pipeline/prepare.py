"""Prepare the data: which files are examples, which of them are used, and which split each is in.

Reads:   the data source.
Writes:  data/prepared/manifest.parquet, a row per example: item_id (of its content), path (inside the source), label,
         split (train, val, test), given (whether the source itself says so), group (by prepare.group_by, or missing),
         connected (shared by examples that groups and copies connect), measures of the modality (of images: width and
         height in pixels), file_hash (of its bytes), sorted by path; classes.json, the labels in the order of the
         model's outputs; reading.json, how examples are read in all later stages and in predictions, e.g. which values
         are black and white in images with more than 8 bits; files.parquet, all that is known about every file;
         quarantine.csv (path, label, reason, detail), the files that are left out; ignored.csv (path, reason), the
         files that are not meant as examples; reports/prepare.json, counts; metrics/prepare.json.
Params:  seed, data, prepare.
Command: python -m pipeline prepare
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from headstart import paths
from headstart.data import decisions
from headstart.data.inspection import fingerprint, inspect
from headstart.data.inspection_cache import InspectionCache
from headstart.data.layouts import list_items, open_within
from headstart.data.listing import Listing, similar_class_names
from headstart.data.preparation import decide, make_manifest, summarize, tabulate
from headstart.data.sources import open_source
from headstart.data.splits import MAX_SHOWN, SPLITS
from headstart.data.watching import check_links, remove_stale, unwatched
from headstart.modalities.detection import detect
from headstart.outputs import spreadsheet_safe
from headstart.stage import stage


def main() -> None:
    """Run the stage."""
    with stage("prepare") as run:
        data, settings = run.params.data, run.params.prepare
        remove_stale(run.params)
        manifest_file, files_file = run.path(paths.MANIFEST), run.path(paths.FILES)
        cache_file = paths.cache_path("inspection.sqlite")
        with ExitStack() as stack:
            opened = stack.enter_context(open_source(data.source, data.root))
            modality, why = detect(opened, data)
            source = stack.enter_context(open_within(opened, data, modality))
            cache = stack.enter_context(InspectionCache(cache_file, fingerprint(modality)))
            listing = list_items(source, data.source, modality, data.root, settings.group_by, data.coco, data.splits)
            check_links(source, run.params)
            lines = [*unwatched("source", run.params, source)]
            infos = inspect([item.path for item in listing.items], source, cache, modality)
            reject = partial(modality.reject, settings=settings)
            no_descriptor = np.zeros(modality.descriptor_dim, modality.descriptor_dtype)
            table, descriptors = tabulate(listing, infos, reject, no_descriptor, settings.on_bad)
            leaks = modality.find_leaks(table[table.reason == ""], source.read)
        copies = decide(table, descriptors, listing.classes, run.params)

        good, left_out = table[table.reason == ""], table[table.reason != ""]
        outliers = decisions.outliers(modality.outlier_measures(good))
        reading, remarks = modality.find_reading(good, settings)
        remarks = [*remarks, *leaks]
        make_manifest(table, copies, modality.columns).to_parquet(manifest_file, index=False)
        files = table.assign(copies=copies.astype("Int64")).drop(columns=["given", "file_hash"])
        files.astype({"split": "string", "group": "string"}).to_parquet(files_file, index=False)
        run.json(paths.CLASSES, listing.classes)
        run.json(paths.READING, {"kind": modality.name, **reading})
        quarantine = left_out[["path", "label", "reason", "detail"]].sort_values("path")
        run.csv(paths.QUARANTINE, quarantine.map(spreadsheet_safe))
        run.csv(paths.IGNORED, pd.DataFrame(sorted(listing.ignored), columns=["path", "reason"]).map(spreadsheet_safe))
        summary = summarize(table, copies, outliers, listing)
        run.report({**summary, "reading": reading, "remarks": remarks})
        run.metrics({"examples": len(good), "quarantined": len(left_out)})
        for line in lines:
            print(f"prepare: {line}")
        if why:
            print(f"prepare: the examples are {modality.noun}s, by {why}")
        print_summary(summary, good, listing, modality.noun)
        for remark in remarks:
            print(f"prepare: {remark}")


def print_summary(summary: dict[str, Any], good: pd.DataFrame, listing: Listing, noun: str) -> None:
    """Print what was decided."""
    for names in similar_class_names(listing.classes):
        print(f"prepare: the classes {', '.join(map(repr, names))} differ only in case or spaces; is one meant?")
    for note in listing.notes:
        print(f"prepare: {note}")
    files = summary["files"]
    print(
        f"prepare: {files['accepted']} {noun}s of {summary['classes']} classes: "
        + ", ".join(f"{summary['examples'][split]} {split}" for split in SPLITS)
    )
    if files["quarantined"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["quarantined"].items())
        print(f"prepare: {files['quarantined']} left out ({reasons}), see {paths.QUARANTINE}")
    if several := summary["near_copies"]["under_several_labels"]:
        print(f"prepare: {several} near copies have different labels; is one wrong? See `headstart report`")
    if files["ignored"]:
        counts = Counter(reason for _, reason in listing.ignored).most_common(MAX_SHOWN)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
        print(f"prepare: {files['ignored']} files are ignored ({reasons}), see {paths.IGNORED}")
    alone = int(good.group.isna().sum())
    if 0 < alone < len(good):
        print(f"prepare: {alone} {noun}s have no group by prepare.group_by; each is split by itself")


if __name__ == "__main__":
    main()
