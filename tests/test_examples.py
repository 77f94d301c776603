from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from headstart import paths
from headstart.errors import UserError
from headstart.training import examples

ROWS = 6


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A manifest of six examples in train and three in val, with features."""
    monkeypatch.chdir(tmp_path)
    for folder in (paths.PREPARED, paths.FEATURES_META.parent):
        folder.mkdir(parents=True)
    labels = [*"abcabc", *"cba"]
    split = ["train"] * ROWS + ["val"] * 3
    manifest = pd.DataFrame({"label": labels, "split": split, "given": False, "group": None})
    manifest.assign(**dict.fromkeys(("item_id", "path", "connected", "file_hash"), "x")).to_parquet(paths.MANIFEST)
    paths.CLASSES.write_text(json.dumps(["a", "b", "c"]))
    np.save(paths.FEATURES["train"], np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4))
    np.save(paths.FEATURES["val"], np.zeros((3, 4), np.float16))
    np.save(paths.TRAIN_VIEWS, np.zeros((ROWS, 2, 4), np.float32))


def test_features_come_with_their_targets_mapped_into_memory(here):
    train_set, val_set = examples.load_features("train"), examples.load_features("val")
    assert isinstance(train_set.features, np.memmap)
    assert isinstance(train_set.views, np.memmap)
    assert list(train_set.targets) == [0, 1, 2, 0, 1, 2]
    assert list(val_set.targets) == [2, 1, 0]
    assert val_set.views.shape == (3, 0, 4)
    assert val_set.rows(np.arange(2)).dtype == np.float32


def test_features_of_another_manifest_are_refused(here):
    np.save(paths.TRAIN_VIEWS, np.zeros((ROWS + 1, 2, 4), np.float32))
    with pytest.raises(UserError, match=r"train_views\.npy has 7 rows, the manifest 6"):
        examples.load_features("train")


def test_blocks_cover_all_rows_and_are_bounded_by_features_and_classes():
    count = 50_000
    features = examples.FeatureSet(np.zeros((count, 8), np.float32), np.zeros(count, np.int32), np.zeros((count, 0, 8)))
    for n_classes, rows in ((0, count), (5, count), (20_000, 209)):
        blocks = list(features.blocks(n_classes))
        assert np.concatenate([np.arange(count)[block] for block in blocks]).tolist() == list(range(count))
        assert len(np.arange(count)[blocks[0]]) == rows


def test_val_examples_stand_in_for_their_views():
    views = np.arange(24, dtype=np.float16).reshape(3, 2, 4)
    train_set = examples.FeatureSet(views[:, 0], np.zeros(3, np.int32), views)
    val_set = examples.FeatureSet(np.ones((2, 4), np.float16), np.ones(2, np.int32), np.empty((2, 0, 4), np.float16))
    both = examples.concat(train_set, val_set)
    assert both.targets.tolist() == [0, 0, 0, 1, 1]
    assert (both.views[:3] == views).all()
    assert (both.rows(np.array([3, 4]), np.array([1, 2])) == 1).all()
