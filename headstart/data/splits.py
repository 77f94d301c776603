"""Assign examples to splits: by a hash that no other example changes, or stratified in exact fractions."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headstart.data.listing import similar_class_names
from headstart.errors import UserError, readable

if TYPE_CHECKING:
    from headstart.config import Prepare

SPLITS = ("train", "val", "test")
MAX_SHOWN = 5  # files or classes in a message


def and_more(lines: Iterable[str], total: int) -> str:
    """Return the lines of a message that shows the first MAX_SHOWN of `total` things."""
    more = [f"and {total - MAX_SHOWN} more"] if total > MAX_SHOWN else []
    return "".join(f"  {line}\n" for line in [*lines, *more])


def hash_positions(keys: pd.Series, seed: int) -> np.ndarray:
    """Return places in [0, 1) by a seeded hash: the rule of TensorFlow Hub's retrain.py, by content."""

    def position(key: str) -> float:
        digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    return keys.map({key: position(key) for key in keys.unique()}).to_numpy(np.float64)


def hash_split(keys: pd.Series, seed: int, val_fraction: float, test_fraction: float) -> pd.Series:
    """Return the split of each key. It depends on no other key, so that adding and removing keys moves none."""
    positions = hash_positions(keys, seed)
    conditions = [positions < test_fraction, positions < test_fraction + val_fraction]
    return pd.Series(np.select(conditions, ["test", "val"], "train"), index=keys.index, dtype=object)


def stratified_split(
    labels: pd.Series, units: pd.Series, keys: pd.Series, seed: int, val_fraction: float, test_fraction: float
) -> pd.Series:
    """Return the split of each example: in every class the fractions hold within one example if all units are single.

    A class is in all splits that have a fraction if it has as many units and shares none with other classes.

    Args:
        labels: the class of each example.
        units: examples of the same unit stay in one split. Units of several examples are assigned first, the largest
            ones first, each to the split that lacks most of its classes; single examples then fill up the rest.
        keys: a text for each example; within a class examples are taken in the order of its hash.
    """
    classes = pd.factorize(labels)[0]
    members = pd.factorize(units)[0]
    is_single = np.bincount(members)[members] == 1
    order = np.argsort(hash_positions(keys, seed), kind="stable")
    lacking = _targets(np.bincount(classes), val_fraction, test_fraction).tolist()
    # What follows keeps a unit for each split in which a class still has none.
    empty = np.tile([True, val_fraction > 0, test_fraction > 0], (len(lacking), 1))
    units_left = np.bincount(np.unique(np.stack([classes, members]), axis=1)[0])
    result = np.zeros(len(labels), np.int64)  # places in SPLITS

    large = defaultdict(list)  # in the order of their first examples
    for row in order[~is_single[order]]:
        large[members[row]].append(row)
    for rows in sorted(large.values(), key=len, reverse=True):
        counts = sorted(Counter(classes[rows].tolist()).items())
        gains = [
            sum(min(count, max(lacking[label][split], 0)) / count for label, count in counts)
            + 1e-6 * sum(lacking[label][split] for label, _ in counts)
            + sum(1e9 for label, _ in counts if empty[label, split] and units_left[label] <= empty[label].sum())
            for split in range(len(SPLITS))
        ]
        result[rows] = split = int(np.argmax(gains))
        for label, count in counts:
            lacking[label][split] -= count
            empty[label, split] = False
            units_left[label] -= 1

    rows = order[is_single[order]]
    rows = rows[np.argsort(classes[rows], kind="stable")]
    singles = np.bincount(classes[rows], minlength=len(lacking))
    ranks = np.arange(len(rows)) - (np.cumsum(singles) - singles)[classes[rows]]  # within the class
    _, val, test = np.maximum(np.round(lacking), 0).reshape(-1, len(SPLITS)).T
    test = np.minimum(test, np.maximum(singles - empty[:, 0] - empty[:, 1], empty[:, 2]))
    val = np.minimum(val, np.maximum(singles - test - empty[:, 0], empty[:, 1]))
    test, val = test[classes[rows]], val[classes[rows]]
    result[rows] = np.select([ranks < test, ranks < test + val], [SPLITS.index("test"), SPLITS.index("val")], 0)
    return pd.Series(np.array(SPLITS, object)[result], index=labels.index)


def _targets(counts: np.ndarray, val_fraction: float, test_fraction: float) -> np.ndarray:
    """Return how many examples of each class belong to each split, (n_classes, 3): at least one if it has enough."""
    val, test = np.round(counts * val_fraction), np.round(counts * test_fraction)
    enough = counts >= 1 + (val_fraction > 0) + (test_fraction > 0)
    for target, fraction in ((val, val_fraction), (test, test_fraction)):
        if fraction:  # else the source itself has that split
            target[enough] = np.maximum(target[enough], 1)
    return np.stack([counts - val - test, val, test], axis=1)


def check_classes(table: pd.DataFrame, classes: Sequence[str], copies: pd.Series, settings: Prepare) -> None:
    """Check that every class has an example in every split.

    Args:
        table: with the columns label, split, given (the split by the source), group, item_id and reason, the last empty
            for examples that are used.
        copies: a number for each example that might be used, shared by near copies.

    Raises:
        UserError: naming the classes that have not, with what was left out of them and what to do.
    """
    good = table[table.reason == ""]
    counts = pd.crosstab(good.label, good.split).reindex(index=classes, columns=list(SPLITS), fill_value=0)
    small = counts[(counts == 0).any(axis=1)]
    if small.empty:
        return
    drawn = [split for split in SPLITS[1:] if split not in set(table.given.dropna())]
    labels, needed = table.label[copies.index], 1 + len(drawn)
    contents = table.item_id[copies.index].groupby(labels).nunique().reindex(classes, fill_value=0)
    sets = copies.groupby(labels).nunique().reindex(classes, fill_value=0)  # of near copies, which stay in one split
    crowded = small.index[(sets < needed)[small.index] & (contents >= needed)[small.index]]
    can_be_drawn = (small[drawn] == 0).any(axis=1) & (sets >= needed)[small.index]
    lines = []
    for name, row in small.head(MAX_SHOWN).iterrows():
        line = f"{readable(name)}: " + ", ".join(f"{row[split]} {split}" for split in SPLITS)
        reasons = table.reason[(table.reason != "") & (table.label == name)].value_counts()
        left = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        line += f"; left out: {left}" if left else ""
        if name in crowded:
            near = "all near copies of each other" if sets[name] == 1 else f"{sets[name]} sets of near copies"
            line += f"; its {contents[name]} different examples are {near}"
        lines.append(line)
    advice = ["more examples of these classes, or none: leave them out"]
    advice += [
        f"one class, if one is meant: {' and '.join(map(repr, names))} differ only in case or spaces"
        for names in similar_class_names(classes)
        if set(names) & set(small.index)
    ]
    if settings.near_distance and (len(crowded) or (table.reason == "near_duplicate").any()):
        advice.append(
            f"prepare.near_distance below {settings.near_distance:g}: fewer examples are then taken for near copies, "
            "which are never in two splits; 0: none"
        )
    if settings.split == "hash" and can_be_drawn.any():
        advice.append(
            f"prepare.split=exact, which puts a class into all splits if it has {needed} examples that are no near "
            "copies of each other, and leaves no near copies out"
        )
        advice.append("a larger " + " or ".join(f"prepare.{split}_fraction" for split in drawn))
    if table.group.notna().any():
        advice.append(
            f"examples of {needed} groups or more (of prepare.group_by, or of images with boxes) in each class: those "
            "of a group are in one split"
        )
    advice.append("splits of your own: folders train/, val/ and test/, or a manifest with a column split")
    raise UserError(
        f"{len(small)} of {len(classes)} classes are not in each of train, val and test:\n"
        + and_more(lines, len(small))
        + "What can help:\n"
        + "\n".join(f"  - {line}" for line in advice)
    )
