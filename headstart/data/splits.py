"""Which split each image is in: by a hash that nothing moves, or in exact fractions; and what may not stand in two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from headstart.errors import UserError

SPLITS = ("train", "val", "test")
SHOWN = 5  # of many wrong things, in a message


def position(key: str, seed: int) -> float:
    """Where `key` lies in [0, 1), by a seeded hash: the rule of TensorFlow Hub's retrain.py, on content for names."""
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def by_hash(keys: pd.Series, seed: int, val_fraction: float, test_fraction: float) -> pd.Series:
    """The split of each key. It depends on no other key, so adding and removing keys moves none."""
    positions = keys.map({key: position(key, seed) for key in keys.unique()})
    return pd.Series(
        np.select([positions < test_fraction, positions < test_fraction + val_fraction], ["test", "val"], "train"),
        index=keys.index,
        dtype=object,
    )


def exactly(
    labels: pd.Series, units: pd.Series, keys: pd.Series, seed: int, val_fraction: float, test_fraction: float
) -> pd.Series:
    """The split of each image, so that in every class the fractions hold within one image where all units are single.

    Args:
        labels: the class of each image.
        units: images of one unit stay in one split. Larger units are dealt first, each to the split that lacks most of
            its classes; single images then fill up what is left.
        keys: a text for each image; within a class images are dealt in the order of their hash.
    """
    counts = labels.value_counts()
    targets = pd.DataFrame({"val": (counts * val_fraction).round(), "test": (counts * test_fraction).round()})
    for split, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction:  # else the source brings that split
            targets.loc[counts >= len(SPLITS), split] = targets[split].clip(lower=1)
    targets["train"] = counts - targets.val - targets.test
    lacking = {label: dict(row) for label, row in targets.to_dict("index").items()}
    order = keys.map({key: position(key, seed) for key in keys.unique()}).sort_values(kind="stable").index
    result = pd.Series("train", index=labels.index, dtype=object)

    sizes = units.map(units.value_counts())
    large = units[sizes > 1]
    members = {unit: list(index) for unit, index in large.groupby(large, sort=False).groups.items()}
    ranks = pd.Series(range(len(order)), index=order)
    first = {unit: ranks[index].min() for unit, index in members.items()}
    for unit in sorted(members, key=lambda unit: (-len(members[unit]), first[unit])):
        inside = labels[members[unit]].value_counts()
        gains = {
            split: sum(min(number, max(lacking[label][split], 0)) / number for label, number in inside.items())
            + 1e-6 * sum(lacking[label][split] for label in inside.index)
            for split in SPLITS
        }
        chosen = max(SPLITS, key=lambda split: gains[split])
        result[members[unit]] = chosen
        for label, number in inside.items():
            lacking[label][chosen] -= number

    single = order[~order.isin(large.index)]
    for label, index in labels[single].groupby(labels[single], sort=False).groups.items():
        want = {split: max(round(lacking[label][split]), 0) for split in ("test", "val")}
        test, val = want["test"], want["test"] + want["val"]
        result[index[:test]], result[index[test:val]] = "test", "val"
    return result


def strength(given: Sequence[str]) -> list[str]:
    """The splits, those first that keep their images where copies would stand in two.

    A val or test that the source brings stays whole. Of drawn ones train does: what any earlier, smaller version of the
    data has trained on is then never tested on.
    """
    brought = [split for split in ("test", "val") if split in given]
    return [*brought, *(split for split in SPLITS if split not in brought)]


def keep_strongest(splits: pd.Series, groups: pd.Series, order: Sequence[str]) -> pd.Series:
    """Whether each image may stay: none of its group is in a split that comes earlier in `order`."""
    ranks = splits.map({split: rank for rank, split in enumerate(order)})
    return ranks == ranks.groupby(groups).transform("min")


def check_classes(table: pd.DataFrame, classes: Sequence[str], exact: bool) -> None:
    """Every class must have an image in every split.

    Args:
        table: with the columns label, split, group and reason, the last empty for images that are used.

    Raises:
        UserError: naming the classes that have not, with what was left out of them and what to do.
    """
    good, left_out = table[table.reason == ""], table[table.reason != ""]
    counts = pd.crosstab(good.label, good.split).reindex(index=classes, columns=list(SPLITS), fill_value=0)
    small = counts[(counts == 0).any(axis=1)]
    if small.empty:
        return
    lines = []
    for name, row in small.head(SHOWN).iterrows():
        reasons = left_out.reason[left_out.label == name].value_counts()
        told = "; left out: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        lines.append(
            f"  {name}: {', '.join(f'{row[split]} {split}' for split in SPLITS)}{told if len(reasons) else ''}"
        )
    more = f"\n  and {len(small) - SHOWN} more" if len(small) > SHOWN else ""
    advice = "" if exact else " prepare.split=exact puts a class of three images into all splits."
    if (left_out.reason == "near_duplicate").any():
        advice += (
            " Near copies were left out because their splits differ: prepare.split=exact or prepare.group_by keeps "
            "them together, a smaller prepare.near_distance takes fewer images for copies."
        )
    if table.group.notna().any():
        advice += " The images of a group of prepare.group_by are in one split: a class needs several groups."
    raise UserError(
        f"{len(small)} of {len(classes)} classes are not in each of train, val and test:\n"
        + "\n".join(lines)
        + more
        + "\nAdd images to them, leave them out, or give splits of your own (folders train/, val/, test/, or a "
        f"manifest with a split column).{advice} Larger prepare.val_fraction and prepare.test_fraction help, too."
    )
