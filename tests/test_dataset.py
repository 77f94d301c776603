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
    """A manifest of six images in train and three in val, with features."""
    monkeypatch.chdir(tmp_path)
    for folder in (paths.PREPARED, paths.FEATURES_META.parent):
        folder.mkdir(parents=True)
    labels = [*"abcabc", *"cba"]
    split = ["train"] * ROWS + ["val"] * 3
    pd.DataFrame({"label": labels, "split": split}).to_parquet(paths.MANIFEST)
    paths.CLASSES.write_text(json.dumps(["a", "b", "c"]))
    np.save(paths.FEATURES["train"], np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4))
    np.save(paths.FEATURES["val"], np.zeros((3, 4), np.float16))
    np.save(paths.TRAIN_VIEWS, np.zeros((ROWS, 2, 4), np.float32))


def test_features_come_with_their_targets_mapped_not_loaded(here):
    train_set, val_set = examples.load_features("train"), examples.load_features("val")
    assert isinstance(train_set.features, np.memmap)
    assert isinstance(train_set.views, np.memmap)
    assert list(train_set.targets) == [0, 1, 2, 0, 1, 2]
    assert list(val_set.targets) == [2, 1, 0]
    assert val_set.views.shape == (3, 0, 4)
    assert val_set.rows(np.arange(2)).dtype == np.float32


def test_features_of_other_images_are_refused(here):
    np.save(paths.TRAIN_VIEWS, np.zeros((ROWS + 1, 2, 4), np.float32))
    with pytest.raises(UserError, match=r"train_views\.npy holds 7 rows where the manifest has 6"):
        examples.load_features("train")
