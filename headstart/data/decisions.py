"""What prepare decides about images: which are left out, and why; which split each is in; which are unlike the rest.

All work on one table with a row a file: path, label, split, group, reason, detail, item_id, width, height, brightness,
sharpness, file_hash. `reason` is why an image is left out, in one word, or an empty text; `detail` says it in words.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from headstart.data import duplicates, splits
from headstart.data.splits import SHOWN
from headstart.errors import UserError


def check_bad(table: pd.DataFrame, source: str, max_bad_fraction: float) -> None:
    """Stop where more files than allowed cannot be used.

    Raises:
        UserError: naming the first of them, with what to do.
    """
    bad = table[table.reason != ""]
    if len(bad) <= max_bad_fraction * len(table):
        return
    lines = [f"  {row.path}: {row.detail}" for row in bad.head(SHOWN).itertuples()]
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    if (bad.reason == "missing").mean() > 0.5:
        more += "\nPaths start from the folder of the manifest, or from data.root where that is set."
    raise UserError(
        f"{source}: {len(bad)} of {len(table)} files cannot be used:\n"
        + "\n".join(lines)
        + more
        + f"\nMend or remove them, or let prepare leave them out: prepare.max_bad_fraction is {max_bad_fraction}, "
        f"{np.ceil(1e4 * len(bad) / len(table)) / 1e4:.4f} is needed."
    )


def mark_conflicts(table: pd.DataFrame, policy: str) -> None:
    """Give a reason to all images of the same pixels under several labels: one is wrong, and none is known to be right.

    Raises:
        UserError: naming the first of them, where `policy` is fail.
    """
    good = table[table.reason == ""]
    conflict = good[good.groupby("item_id").label.transform("nunique") > 1]
    if conflict.empty or policy == "keep":
        return
    labels = conflict.groupby("item_id").label.agg(lambda column: ", ".join(sorted(set(column))))
    if policy == "fail":
        image = conflict.item_id.iloc[0]
        raise UserError(
            f"{', '.join(conflict[conflict.item_id == image].path)}: the same image under the labels {labels[image]}; "
            "keep the right one, or let prepare leave such images out with prepare.on_conflict=quarantine"
        )
    mark(table, conflict.index, "conflict", "the same image under the labels " + conflict.item_id.map(labels))


def find_copies(table: pd.DataFrame, descriptors: np.ndarray, max_distance: float) -> pd.Series:
    """A number for each image that is not left out, shared by those that are copies of each other, exact or near."""
    good = table[table.reason == ""]
    codes, _ = pd.factorize(good.item_id)
    first = good.index[~good.duplicated("item_id")]
    pairs = duplicates.near_pairs(descriptors[first], max_distance)
    return pd.Series(duplicates.groups(len(first), pairs)[codes], index=good.index)


def assign_splits(
    table: pd.DataFrame, copies: pd.Series, split: str, seed: int, val_fraction: float, test_fraction: float
) -> pd.Series:
    """The split of every image that is not left out: the source's own; what it lacks is cut from train.

    Args:
        split: hash or exact.

    Raises:
        UserError: where the source puts a group into two splits.
    """
    good = table.loc[copies.index]
    given = set(table.split.dropna())  # also where nothing of it can be used: it is not made up from train then
    if given:
        spread = good[good.group.notna() & (good.groupby("group").split.transform("nunique") > 1)]
        if len(spread):
            group = spread.group.iloc[0]
            raise UserError(
                f"prepare.group_by: the group {group!r} is in several of the splits that data.source brings "
                f"({', '.join(sorted(set(spread.split[spread.group == group])))}); put it into one, or set "
                "prepare.group_by to null"
            )
    val_fraction = 0.0 if "val" in given else val_fraction
    test_fraction = 0.0 if "test" in given else test_fraction
    free = good[~good.split.isin(["val", "test"])]
    keys = free.group.where(free.group.notna(), free.item_id)
    if split == "hash":
        drawn = splits.by_hash(keys, seed, val_fraction, test_fraction)
    else:
        dealt = free[~free.duplicated(["item_id", "label"])]  # of the same image one counts
        units = connected(free, copies)[dealt.index]
        drawn = splits.exactly(dealt.label, units, keys[dealt.index], seed, val_fraction, test_fraction)
        drawn = free.item_id.map(drawn.groupby(dealt.item_id).first())
    return good.split.where(good.split.isin(["val", "test"]), drawn)


def connected(images: pd.DataFrame, copies: pd.Series) -> pd.Series:
    """A number for each image, shared by those that copies and groups connect."""
    rows = pd.Series(np.arange(len(images)), index=images.index)
    links = [np.stack([rows, rows.groupby(copies[images.index]).transform("first")], axis=1)]
    grouped = rows[images.group.notna()]
    links.append(np.stack([grouped, grouped.groupby(images.group[grouped.index]).transform("first")], axis=1))
    return pd.Series(duplicates.groups(len(images), np.concatenate(links)), index=images.index)


def mark_copies(table: pd.DataFrame, copies: pd.Series) -> None:
    """Give a reason to all images but one of the same pixels, and to copies in another split than the strongest."""
    good = table.loc[copies.index]
    order = splits.strength([split for split in ("val", "test") if split in set(table.given.dropna())])

    stays = splits.keep_strongest(good.split, good.item_id, order)
    torn = good[~stays.groupby(good.item_id).transform("all")]
    if not set(table.given.dropna()):  # then groups alone can tear an image
        names = torn.group.groupby(torn.item_id).agg(lambda column: ", ".join(sorted(map(str, set(column)))))
        detail = "the same image in the groups " + torn.item_id.map(names) + ", which are in different splits"
        mark(table, torn.index, "conflict", detail)
    else:
        weaker = torn[~stays[torn.index]]
        kept = torn[stays[torn.index]].groupby("item_id")[["path", "split"]].first().loc[weaker.item_id]
        detail = [f"the same image as {row.path}, which is in {row.split}" for row in kept.itertuples()]
        mark(table, weaker.index, "duplicate", detail)

    good = good[table.reason[good.index] == ""]
    kept = good.groupby("item_id").path.transform("first")
    again = good.duplicated(["item_id", "label"])
    twice = again & (kept == good.path)
    mark(table, good.index[again], "duplicate", "the same image as " + kept[again])
    mark(table, good.index[twice], "duplicate", "the manifest names it more than once")

    good = good[~again]
    stays = splits.keep_strongest(good.split, copies[good.index], order)
    kept = good[stays].groupby(copies[good.index[stays]])[["path", "split"]].first()
    strongest = kept.loc[copies[good.index[~stays]]]
    detail = [f"a near copy of {row.path}, which is in {row.split}" for row in strongest.itertuples()]
    mark(table, good.index[~stays], "near_duplicate", detail)


def mark(table: pd.DataFrame, index: pd.Index, reason: str, detail: object) -> None:
    """Leave images out."""
    table.loc[index, "reason"] = reason
    table.loc[index, "detail"] = detail


def outliers(measures: dict[tuple[str, str | None], tuple[pd.Series, float]]) -> dict[str, pd.Index]:
    """Examples that differ from most others, the most extreme first.

    They lie beyond the outer fences (Tukey 1977), three interquartile ranges from the quartiles.

    Args:
        measures: see `Modality.outlier_measures`.

    Returns:
        The rows under the names of the ends, e.g. small, large.
    """
    found = {}
    for (low, high), (values, least) in measures.items():
        first, third = values.quantile([0.25, 0.75])
        reach = 3 * max(third - first, least)
        found[low] = values[values < first - reach].sort_values(kind="stable").index
        if high:
            found[high] = values[values > third + reach].sort_values(ascending=False, kind="stable").index
    return found
