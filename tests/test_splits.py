"""Splits of any data: no example and no copy of it is in two splits, and none moves."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.data import decisions, splits
from headstart.errors import UserError

LABELS = st.sampled_from(["a", "b", "ß"])
DIM = 64
IMAGES = st.integers(0, 40)  # few, so that many files have the same content
GROUPS = st.sampled_from([None, "p", "q", "r"])
ROWS = st.lists(st.tuples(IMAGES, LABELS, GROUPS), min_size=1, max_size=60)
GIVEN = st.lists(st.tuples(IMAGES, LABELS, st.sampled_from(["train", "val", "test"])), min_size=1, max_size=60)
FRACTIONS = st.floats(0.05, 0.4)
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def decide(
    images: list[int], labels: list[str], groups: list[str | None], given: list[str | None] | None = None,
    split: str = "hash", names: list[str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The table after all decisions about files of those images; images 4k to 4k + 3 are near copies of each other."""
    n = len(images)
    table = pd.DataFrame(
        {
            "path": names or [f"{row:04}" for row in range(n)],
            "label": labels,
            "split": pd.Series(given or [None] * n, dtype=object),
            "group": pd.Series(groups, dtype=object),
            "reason": "",
            "detail": "",
            "item_id": [f"{image:032x}" for image in images],
        }
    ).sort_values("path", ignore_index=True)
    descriptors = np.zeros((n, DIM), np.float16)
    for row, image in enumerate(table.item_id.map(lambda text: int(text, 16))):
        scene = np.random.default_rng(image // 4).normal(size=DIM)
        scene += 0.02 * np.random.default_rng(1000 + image).normal(size=DIM)
        descriptors[row] = scene / np.linalg.norm(scene)
    decisions.exclude_conflicts(table, "quarantine")
    copies = decisions.find_copies(table, descriptors, 0.25)
    table["given"] = table.split
    table["split"] = decisions.assign_splits(table, copies, split, 42, 0.25, 0.25)
    decisions.exclude_copies(table, copies)
    return table


def accepted(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.reason == ""]


def check_no_leak(table: pd.DataFrame) -> None:
    good = accepted(table)
    assert good.item_id.is_unique
    scenes = good.item_id.map(lambda text: int(text, 16) // 4)
    assert (good.split.groupby(scenes).nunique() == 1).all()
    assert set(good.split) <= {"train", "val", "test"}


@many
@given(ROWS, st.sampled_from(["hash", "exact"]))
def test_no_image_near_copy_or_group_is_in_two_splits(rows, split):
    table = decide(*map(list, zip(*rows, strict=True)), split=split)
    check_no_leak(table)
    good = accepted(table)
    assert (good.split.groupby(good.group).nunique() == 1).all()
    if split == "exact":  # copies are kept together, not left out
        assert set(table.reason) <= {"", "conflict", "duplicate"}


@many
@given(ROWS, ROWS, st.randoms())
def test_adding_renaming_and_reordering_files_move_no_image(rows, more, random):
    before = accepted(decide(*map(list, zip(*rows, strict=True)))).set_index("item_id").split
    both = [*rows, *more]
    names = [f"{random.random()}" for _ in both]
    random.shuffle(both)
    after = accepted(decide(*map(list, zip(*both, strict=True)), names=names)).set_index("item_id").split
    common = before.index.intersection(after.index)
    assert (after[common] == before[common]).all()


@many
@given(st.lists(IMAGES, min_size=1, max_size=40), st.lists(IMAGES, min_size=1, max_size=40))
def test_what_a_smaller_version_trained_on_is_never_tested_on(images, more):
    def scenes(shown: list[int], tested: bool) -> set[int]:
        table = accepted(decide(shown, ["a"] * len(shown), [None] * len(shown)))
        return {int(text, 16) // 4 for text in table[(table.split != "train") == tested].item_id}

    assert not scenes(images, tested=False) & scenes([*images, *more], tested=True)


@pytest.mark.parametrize("given_split", ["val", "test"])
@pytest.mark.parametrize("split", ["hash", "exact"])
def test_nothing_is_added_to_a_given_split(given_split, split):
    table = decide([4 * row for row in range(20)], ["a"] * 20, [None] * 20, [given_split] * 4 + ["train"] * 16, split)
    assert set(table.reason) == {""}
    assert (table.split == given_split).sum() == 4
    assert set(table.split) == {"train", "val", "test"}


@many
@given(GIVEN, st.sampled_from(["hash", "exact"]))
def test_given_splits_stay_and_copies_are_left_out_of_the_others(rows, split):
    images, labels, given_splits = map(list, zip(*rows, strict=True))
    table = decide(images, labels, [None] * len(rows), given_splits, split)
    check_no_leak(table)
    for name in {"val", "test"} & set(table.given):
        assert set(accepted(table)[accepted(table).split == name].given) <= {name}  # none is added
    held = accepted(table)[accepted(table).given.isin(["val", "test"])]
    assert (held.split == held.given).all()
    tests = table[(table.given == "test") & (table.reason == "near_duplicate")]
    assert tests.empty  # a given test split stays whole


@many
@given(st.lists(st.integers(3, 60), min_size=1, max_size=6), FRACTIONS, FRACTIONS)
def test_exact_fractions_hold_within_one_image_a_class(sizes, val_fraction, test_fraction):
    labels = pd.Series([f"class {number}" for number, size in enumerate(sizes) for _ in range(size)])
    keys = pd.Series([f"{row}" for row in range(len(labels))])
    found = splits.stratified_split(labels, pd.Series(range(len(labels))), keys, 1, val_fraction, test_fraction)
    for number, size in enumerate(sizes):
        counts = found[labels == f"class {number}"].value_counts()
        assert abs(counts["val"] - max(1, val_fraction * size)) <= 1
        assert abs(counts["test"] - max(1, test_fraction * size)) <= 1


def test_exact_fractions_count_an_image_once():
    images = [4 * row for row in range(20)] + [0] * 60  # the first one sixty times more
    table = accepted(decide(images, ["a"] * 80, [None] * 80, split="exact"))
    assert table.split.value_counts().to_dict() == {"train": 10, "val": 5, "test": 5}


@many
@given(st.lists(st.lists(st.integers(1, 30), min_size=3, max_size=8), min_size=1, max_size=3), FRACTIONS, FRACTIONS)
def test_exact_fractions_put_a_class_of_three_groups_into_all_splits(classes, val_fraction, test_fraction):
    sizes = [
        (f"{label}", f"{label} {unit}", size) for label, units in enumerate(classes) for unit, size in enumerate(units)
    ]
    labels, units = (pd.Series([row[column] for row in sizes for _ in range(row[2])]) for column in (0, 1))
    found = splits.stratified_split(labels, units, units, 1, val_fraction, test_fraction)
    assert (found.groupby(units).nunique() == 1).all()
    assert (found.groupby(labels).nunique() == 3).all()


def test_exact_fractions_with_groups_come_near():
    generator = np.random.default_rng(0)
    labels = pd.Series(np.repeat(["a", "b"], 600))
    units = pd.Series(generator.integers(0, 150, 1200))
    found = splits.stratified_split(labels, units, units.astype(str), 1, 0.15, 0.15)
    assert (found.groupby(units).nunique() == 1).all()
    shares = pd.crosstab(labels, found, normalize="index")
    assert (abs(shares[["val", "test"]] - 0.15) < 0.02).all(axis=None)


def test_the_hash_is_the_same_on_every_machine():
    """Fixed values: another rule would move everyone's examples."""
    keys = pd.Series(["a", "b", "c", "ß", "00ff"])
    assert splits.hash_split(keys, 42, 0.3, 0.3).tolist() == ["val", "train", "val", "train", "val"]


def test_a_group_in_several_given_splits_is_named():
    with pytest.raises(UserError, match="the group 'p' is in several of the splits"):
        decide([1, 9, 17], ["a", "a", "b"], ["p", "p", "q"], ["train", "test", "train"])


def test_exact_fractions_of_thousands_of_classes():
    """Time is linear in the number of examples: no step is done class by class in pandas."""
    labels = pd.Series(np.arange(60_000) // 3).astype(str)
    keys = pd.Series(np.arange(60_000)).astype(str)
    start = time.perf_counter()
    found = splits.stratified_split(labels, pd.Series(range(60_000)), keys, 1, 0.15, 0.15)
    assert time.perf_counter() - start < 5
    assert (found.groupby(labels).nunique() == 3).all()
