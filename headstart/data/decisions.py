"""What prepare decides about examples: which are left out and why, which split each is in, which are outliers.

Everything works on one table with a row per file: path, label, split, group, reason, detail, item_id, file_hash, the
measures of the modality. `reason` is why an example is left out, in one word, or empty; `detail` says it in words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from headstart.data import duplicates, splits
from headstart.data.boxes import is_box
from headstart.data.splits import MAX_SHOWN, SPLITS, and_more
from headstart.errors import UserError, readable

MEANT = ("crowd", "duplicate", "several_labels")  # reasons of a listing that say nothing bad about a file


def check_bad_files(table: pd.DataFrame, source: str, max_bad_fraction: float) -> None:
    """Check that no more files than allowed are unusable.

    Raises:
        UserError: naming the first of them, with what to do.
    """
    # What annotations leave out is no damage: of COCO's boxes a tenth are tiny.
    meant = table.reason.isin(MEANT) | ((table.reason == "too_small") & table.path.map(is_box))
    bad = table[(table.reason != "") & ~meant]
    if len(bad) <= max_bad_fraction * len(table):
        return
    lines = [f"{readable(row.path)}: {row.detail}" for row in bad.head(MAX_SHOWN).itertuples()]
    missing = (bad.reason == "missing").mean() > 0.5
    advice = "Paths start from the folder of the manifest, or from data.root if that is set.\n" if missing else ""
    raise UserError(
        f"{source}: {len(bad)} of {len(table)} files cannot be used:\n"
        + and_more(lines, len(bad))
        + advice
        + f"Repair or remove them, or let prepare leave them out: prepare.max_bad_fraction is {max_bad_fraction}, "
        f"{np.ceil(1e4 * len(bad) / len(table)) / 1e4:.4f} is needed."
    )


def exclude_conflicts(table: pd.DataFrame, policy: str) -> None:
    """Leave out all examples of the same content under several labels: one label is wrong, and nobody knows which.

    Args:
        policy: quarantine, keep or fail.

    Raises:
        UserError: naming the first of them, if `policy` is fail.
    """
    good = table[table.reason == ""]
    conflict = good[good.groupby("item_id").label.transform("nunique") > 1]
    if conflict.empty or policy == "keep":
        return
    labels = conflict.groupby("item_id").label.agg(lambda column: ", ".join(sorted(set(column))))
    if policy == "fail":
        first = conflict.item_id.iloc[0]
        raise UserError(
            f"{', '.join(map(readable, conflict[conflict.item_id == first].path))}: the same content under the labels "
            f"{labels[first]}; keep the right one, or let prepare leave such examples out with "
            "prepare.on_conflict=quarantine"
        )
    exclude(table, conflict.index, "conflict", "the same content under the labels " + conflict.item_id.map(labels))


def find_copies(table: pd.DataFrame, descriptors: np.ndarray, max_distance: float) -> pd.Series:
    """Number the examples that are not left out: exact and near copies of each other share a number."""
    good = table[table.reason == ""]
    codes, _ = pd.factorize(good.item_id)
    first = good.index[~good.duplicated("item_id")]
    pairs = duplicates.near_pairs(descriptors[first], max_distance)
    return pd.Series(duplicates.groups(len(first), pairs)[codes], index=good.index)


def assign_splits(
    table: pd.DataFrame, copies: pd.Series, split: str, seed: int, val_fraction: float, test_fraction: float
) -> pd.Series:
    """Return the split of every example that is not left out: the source's own; splits that it lacks come from train.

    Args:
        split: hash or exact.

    Raises:
        UserError: if the source puts a group into two splits.
    """
    good = table.loc[copies.index]
    given = set(table.split.dropna())  # also if nothing in it can be used: it is then not made up from train
    if given:
        spread = good[good.group.notna() & (good.groupby("group").split.transform("nunique") > 1)]
        if len(spread):
            group = spread.group.iloc[0]
            raise UserError(
                f"prepare.group_by: the group {group!r} is in several of the splits of data.source "
                f"({', '.join(sorted(set(spread.split[spread.group == group])))}); put it into one, or set "
                "prepare.group_by to null"
            )
    fractions = 0.0 if "val" in given else val_fraction, 0.0 if "test" in given else test_fraction
    free = good[~good.split.isin(["val", "test"])]
    keys = free.group.where(free.group.notna(), free.item_id)
    if split == "hash":
        drawn = splits.hash_split(keys, seed, *fractions)
    else:
        unique = free[~free.duplicated(["item_id", "label"])]  # the same content counts once
        units = connected(free, copies)[unique.index]
        drawn = splits.stratified_split(unique.label, units, keys[unique.index], seed, *fractions)
        drawn = free.item_id.map(drawn.groupby(unique.item_id).first())
    return good.split.where(good.split.isin(["val", "test"]), drawn)


def connected(examples: pd.DataFrame, copies: pd.Series) -> pd.Series:
    """Number the examples: those that copies and groups connect share a number."""
    rows = pd.Series(np.arange(len(examples)), index=examples.index)
    links = [np.stack([rows, rows.groupby(copies[examples.index]).transform("first")], axis=1)]
    grouped = rows[examples.group.notna()]
    links.append(np.stack([grouped, grouped.groupby(examples.group[grouped.index]).transform("first")], axis=1))
    return pd.Series(duplicates.groups(len(examples), np.concatenate(links)), index=examples.index)


def exclude_copies(table: pd.DataFrame, copies: pd.Series) -> None:
    """Leave out all examples but one of the same content, and near copies in another split than the first.

    A val or test split of the source stays whole. Otherwise train is first: what an earlier, smaller version of the
    data has trained on is then never tested on.
    """
    good = table.loc[copies.index]
    given = set(table.given.dropna())
    whole = [split for split in ("test", "val") if split in given]
    order = [*whole, *(split for split in SPLITS if split not in whole)]

    stays = _in_first_split(good.split, good.item_id, order)
    spread = good[~stays.groupby(good.item_id).transform("all")]  # of the same content, in several splits
    if not given:  # only groups can have caused that
        names = spread.group.groupby(spread.item_id).agg(lambda column: ", ".join(sorted(map(str, set(column)))))
        detail = "the same content in the groups " + spread.item_id.map(names) + ", which are in different splits"
        exclude(table, spread.index, "conflict", detail)
    else:
        others = spread[~stays[spread.index]]
        kept = spread[stays[spread.index]].groupby("item_id")[["path", "split"]].first().loc[others.item_id]
        detail = [f"the same content as {row.path}, which is in {row.split}" for row in kept.itertuples()]
        exclude(table, others.index, "duplicate", detail)

    good = good[table.reason[good.index] == ""]
    kept = good.groupby("item_id").path.transform("first")
    again = good.duplicated(["item_id", "label"])
    twice = again & (kept == good.path)
    exclude(table, good.index[again], "duplicate", "the same content as " + kept[again])
    exclude(table, good.index[twice], "duplicate", "named more than once")

    good = good[~again]
    stays = _in_first_split(good.split, copies[good.index], order)
    kept = good[stays].groupby(copies[good.index[stays]])[["path", "split"]].first()
    first = kept.loc[copies[good.index[~stays]]]
    detail = [f"a near copy of {row.path}, which is in {row.split}" for row in first.itertuples()]
    exclude(table, good.index[~stays], "near_duplicate", detail)


def _in_first_split(split: pd.Series, groups: pd.Series, order: Sequence[str]) -> pd.Series:
    """Whether each example is in the split of its group that comes first in `order`."""
    ranks = split.map({name: rank for rank, name in enumerate(order)})
    return ranks == ranks.groupby(groups).transform("min")


def exclude(table: pd.DataFrame, index: pd.Index, reason: str, detail: object) -> None:
    """Leave the examples of `index` out."""
    table.loc[index, "reason"] = reason
    table.loc[index, "detail"] = detail


def outliers(measures: dict[tuple[str, str | None], tuple[pd.Series, float]]) -> dict[str, pd.Index]:
    """Find examples that differ from most others, the most extreme first.

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
