"""The page about the data: classes, splits, samples, what was left out, copies, outliers; one file, no network."""

from __future__ import annotations

from typing import Any

import pandas as pd

from headstart.data.files import Source
from headstart.data.layouts import Listing, twins
from headstart.data.splits import SPLITS
from headstart.report.page import Thumbnails, render

# What is shown of each; the rest is counted. Some thousand thumbnails of three kilobytes are a page that opens at once.
SAMPLES, CLASSES = 8, 120
ROWS, GROUPS, GROUP_IMAGES, OUTLIERS, BINS = 200, 60, 8, 12, 24

REASONS = {
    "bad_name": "a name that is not UTF-8",
    "bomb": "a decompression bomb",
    "conflict": "the same image under several labels, or in groups that are in different splits",
    "damaged": "damaged",
    "duplicate": "the same pixels as another image: they count once",
    "empty": "empty",
    "encrypted": "encrypted",
    "link": "a link in an archive",
    "missing": "not there",
    "near_duplicate": "a near copy of an image in another split",
    "not_an_image": "no image",
    "outside": "outside the data's folder",
    "repeated": "one of two archive members of one name",
    "too_large": "too large a file",
    "too_small": "smaller than prepare.min_size",
    "truncated": "cut off",
    "unreadable": "not readable",
    "unsupported": "images of a kind that is not supported",
}


def page(
    table: pd.DataFrame,
    copies: pd.Series,
    unlike: dict[str, pd.Index],
    listing: Listing,
    values: dict[str, Any],
    chosen: dict[str, Any],
    source: Source,
) -> str:
    """The page as HTML.

    Args:
        table: a row a file, as prepare leaves it: path, label, split, reason, detail, item_id, width, height, ...
        copies: a number for each image that was compared, shared by copies.
        unlike: the rows of outliers by kind.
        values: metrics/prepare.json.
        chosen: the params, by name.
        source: gives the images to show.
    """
    good = table[table.reason == ""]
    left_out = table[table.reason != ""]
    return render(
        "data.html",
        values=values,
        chosen=chosen,
        splits=SPLITS,
        reasons=REASONS,
        thumb=Thumbnails(source.read),
        classes=_classes(good, listing.classes),
        classes_more=max(0, len(listing.classes) - CLASSES),
        twins=twins(listing.classes),
        histograms=_histograms(good),
        left_out=_quarantine(left_out),
        copies=_copy_groups(table, copies),
        outliers={kind: (len(index), good.loc[index[:OUTLIERS]].to_dict("records")) for kind, index in unlike.items()},
        ignored=pd.Series([reason for _, reason in listing.ignored], dtype=object).value_counts().to_dict(),
    )


def _classes(good: pd.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """Name, counts and samples of each class, the largest first; samples are the first by item_id: by chance."""
    counts = pd.crosstab(good.label, good.split).reindex(index=classes, columns=list(SPLITS), fill_value=0)
    totals = counts.sum(axis=1)
    largest = max(int(totals.max()), 1)
    samples = good.sort_values("item_id").groupby("label").head(SAMPLES)
    by_label = {label: rows.to_dict("records") for label, rows in samples.groupby("label")}
    return [
        {
            "name": name,
            "counts": {split: int(counts.loc[name, split]) for split in SPLITS},
            "widths": {split: 100 * int(counts.loc[name, split]) / largest for split in SPLITS},
            "total": int(totals[name]),
            "samples": by_label.get(name, []) if shown < CLASSES else [],
        }
        for shown, name in enumerate(totals.sort_values(ascending=False, kind="stable").index)
    ]


def _histograms(good: pd.DataFrame) -> list[dict[str, Any]]:
    """What is drawn of sizes, shapes, brightness and sharpness: name, labels of the ends, heights in [0, 100]."""
    measures = {
        "longer side": (good[["width", "height"]].max(axis=1), "{:.0f} px"),
        "width / height": (good.width / good.height, "{:.2f}"),
        "brightness": (good.brightness, "{:.2f}"),
        "sharpness": (good.sharpness, "{:.0f}"),
    }
    drawn = []
    for name, (column, form) in measures.items():
        low, high = float(column.min()), float(column.max())
        high = high if high > low else low + 1
        bins = ((column - low) / (high - low) * BINS).clip(upper=BINS - 1).astype(int)
        heights = bins.value_counts().reindex(range(BINS), fill_value=0)
        drawn.append(
            {
                "name": name,
                "low": form.format(low),
                "median": form.format(float(column.median())),
                "high": form.format(high),
                "bars": [round(100 * count / heights.max(), 1) for count in heights],
            }
        )
    return drawn


def _quarantine(left_out: pd.DataFrame) -> list[dict[str, Any]]:
    """Reason, count and the first rows of each, the most frequent first."""
    return [
        {
            "reason": reason,
            "count": int(count),
            "rows": left_out[left_out.reason == reason].head(ROWS).to_dict("records"),
        }
        for reason, count in left_out.reason.value_counts().items()
    ]


def _copy_groups(table: pd.DataFrame, copies: pd.Series) -> dict[str, Any]:
    """Groups of near and exact copies, those with several labels first, then the largest."""
    numbers = copies[copies.duplicated(keep=False)]
    rows = table.loc[numbers.index].assign(group_number=numbers)
    if rows.empty:
        return {"count": 0, "images": 0, "groups": []}
    summary = rows.groupby("group_number").agg(
        size=("path", "size"), labels=("label", "nunique"), first=("path", "first")
    )
    summary = summary.sort_values(["labels", "size", "first"], ascending=[False, False, True])
    shown = rows[rows.group_number.isin(summary.index[:GROUPS])]
    by_number = dict(list(shown.groupby("group_number")))
    return {
        "count": len(summary),
        "images": len(rows),
        "groups": [
            {
                "size": int(row.size_),
                "labels": int(row.labels),
                "rows": by_number[row.Index].head(GROUP_IMAGES).to_dict("records"),
            }
            for row in summary.head(GROUPS).rename(columns={"size": "size_"}).itertuples()
        ],
    }
