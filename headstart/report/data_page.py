"""The data page, reports/data.html: classes, splits, samples, what was left out, copies, outliers.

Reads what prepare writes, and the data source for thumbnails.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pandas as pd

from headstart import paths
from headstart.config import Params
from headstart.data import decisions
from headstart.data.layouts import open_examples
from headstart.data.listing import similar_class_names
from headstart.data.prepared import load_classes, load_files
from headstart.data.splits import SPLITS
from headstart.errors import ItemError, UserError
from headstart.modalities import load_modality
from headstart.report import charts
from headstart.report.rendering import Read, read_report, render, thumbnails

# What is shown of each; the rest is counted. A page with a few thousand thumbnails of three kilobytes opens at once.
SAMPLES, SAMPLED_CLASSES, LISTED_CLASSES = 8, 120, 1000
ROWS, GROUPS, PER_GROUP, OUTLIERS = 200, 60, 8, 12

REASONS = {
    "bad_box": "boxes without an area",
    "bad_name": "the name is not UTF-8",
    "bomb": "decompression bombs",
    "box_outside": "boxes that are mostly outside of their image",
    "conflict": "the same content under several labels, or in groups that are in different splits",
    "crowd": "boxes around several objects (iscrowd)",
    "damaged": "damaged",
    "duplicate": "the same content as another file: it counts once",
    "empty": "empty files, or texts without a character",
    "encoding": "texts in an encoding that is not known, or in another than the rest of their table",
    "encrypted": "encrypted",
    "link": "links in an archive",
    "missing": "missing files",
    "near_duplicate": "near copies of an example in another split",
    "no_label": "rows without a label",
    "not_an_image": "not images",
    "not_text": "not texts",
    "outside": "outside of the data folder",
    "repeated": "archive members that share a name",
    "several_labels": "images of several categories",
    "too_large": "too large",
    "too_long": "too long for a text",
    "too_short": "a single character",
    "too_small": "smaller than prepare.min_size",
    "truncated": "truncated",
    "unknown_category": "annotations of a category that is not listed",
    "unknown_image": "annotations of an image that is not listed",
    "unreadable": "unreadable",
    "unsupported": "unsupported kinds of files",
    "wrong_size": "images of another size than their annotations say",
}


def render_data_page(params: Params, remarks: Sequence[str], fingerprint: str) -> str:
    """Return the page as HTML.

    Args:
        remarks: warnings for the top of the page.
        fingerprint: of what the page is made from.
    """
    table = load_files()
    good, left_out = table[table.reason == ""], table[table.reason != ""]
    classes, modality = load_classes(), load_modality()
    ignored = pd.read_csv(paths.IGNORED, keep_default_na=False)
    with ExitStack() as stack:
        remarks = list(remarks)
        read: Read = _unreadable
        try:
            read = stack.enter_context(open_examples(params.data, modality)).read
        except UserError as error:
            remarks.append(f"The page has no pictures: {error}")
        return render(
            "data.html",
            fingerprint=fingerprint,
            remarks=remarks,
            source=params.data.source,
            params={"seed": params.seed, **params.prepare.model_dump()},
            counts=read_report("prepare"),
            splits=SPLITS,
            reasons=REASONS,
            thumbnail=thumbnails(read, modality),
            classes=_classes(good, classes),
            listed=LISTED_CLASSES,
            classes_without_samples=max(0, len(classes) - SAMPLED_CLASSES),
            similar_names=similar_class_names(classes),
            histograms=[
                {"title": title, "median": form.format(values.median()), "chart": charts.histogram(title, values)}
                for title, (values, form) in modality.histograms(good).items()
            ],
            categories={title: names.value_counts() for title, names in modality.categories(good).items()},
            left_out=_left_out(left_out),
            copies=_copy_groups(table),
            outliers={
                kind: (len(index), good.loc[index[:OUTLIERS]].to_dict("records"))
                for kind, index in decisions.outliers(modality.outlier_measures(good)).items()
            },
            ignored=ignored.reason.value_counts().to_dict(),
        )


def _unreadable(path: str) -> bytes:
    raise ItemError("missing", "the data source is not there")


def _classes(good: pd.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """Name, counts and samples of each class, the largest first; samples are the first by item_id: random ones."""
    counts = pd.crosstab(good.label, good.split).reindex(index=classes, columns=list(SPLITS), fill_value=0)
    counts["total"] = counts.sum(axis=1)
    counts = counts.sort_values("total", ascending=False, kind="stable")
    largest = max(int(counts.total.max()), 1)
    sampled = good[good.label.isin(counts.index[:SAMPLED_CLASSES])].sort_values("item_id")
    samples = {label: rows.head(SAMPLES).to_dict("records") for label, rows in sampled.groupby("label")}
    return [
        {"name": name, "counts": row, "widths": {split: 100 * row[split] / largest for split in SPLITS},
         "total": row["total"], "samples": samples.get(name, [])}
        for name, row in counts.to_dict("index").items()
    ]  # fmt: skip


def _left_out(left_out: pd.DataFrame) -> list[dict[str, Any]]:
    """Reason, count and the first rows of each, the most frequent first."""
    return [
        {"reason": reason, "count": count, "rows": left_out[left_out.reason == reason].head(ROWS).to_dict("records")}
        for reason, count in left_out.reason.value_counts().items()
    ]


def _copy_groups(table: pd.DataFrame) -> dict[str, Any]:
    """Groups of near and exact copies, those with several labels first, then the largest."""
    rows = table[table.copies.notna() & table.copies.duplicated(keep=False)]
    summary = rows.groupby("copies").agg(count=("path", "size"), labels=("label", "nunique"), first=("path", "first"))
    summary = summary.sort_values(["labels", "count", "first"], ascending=[False, False, True])
    first = summary.head(GROUPS)
    members = dict(list(rows[rows.copies.isin(first.index)].groupby("copies")))
    groups = [
        {**group, "rows": members[number].head(PER_GROUP).to_dict("records")}
        for number, group in first.to_dict("index").items()
    ]
    return {"count": len(summary), "files": len(rows), "groups": groups}
