from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from headstart import paths
from headstart.errors import UserError
from headstart.features_meta import read_meta
from headstart.training import examples

ROWS = 6
META = (
    '{"kind": "image", "backbone": "tiny", "size": 32, "pooling": "avg", "engine": "openvino", "weights_sha256": "0", '
    '"reading": {}, "feature_dim": 4, '
    '"depths": %s}'
)


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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "must be a complete .npy file of numbers"),
        (b"no array at all", "must be a complete .npy file of numbers"),
        (b"PK\x03\x04 no archive", "must be a complete .npy file of numbers"),
        (np.zeros((ROWS, 4), object), "must be a complete .npy file of numbers"),
        (np.zeros((ROWS, 4), np.int64), "must hold float32 or float16, got int64"),
        (np.zeros((ROWS + 1, 4), np.float32), "must have the shape (6, any) for this manifest, got (7, 4)"),
        (np.zeros((ROWS, 1, 4), np.float32), "must have the shape (6, any) for this manifest, got (6, 1, 4)"),
        (np.zeros((ROWS, 5), np.float32), "must have the shape (6, any, 5) for this manifest, got (6, 2, 4)"),
        (np.full((ROWS, 4), np.nan, np.float16), "must hold finite numbers, got NaN or infinity"),
    ],
    ids=str,
)
def test_features_that_extract_did_not_write_are_refused(here, content, problem):
    file = paths.FEATURES["train"]
    file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    with pytest.raises(UserError) as refused:
        examples.load_features("train")
    wrong = paths.TRAIN_VIEWS if "any, 5" in problem else file
    assert (
        str(refused.value) == f"{wrong}: {problem}; delete it, then run `dvc checkout {wrong}`, or `dvc repro extract`"
    )


def test_truncated_features_and_those_of_another_length_are_refused(here):
    file = paths.FEATURES["val"]
    with pytest.raises(UserError, match=r"val\.npy: must have the shape \(3, 5\) for this manifest, got \(3, 4\)"):
        examples.load_features("val", 5)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"val\.npy: must be a complete \.npy file of numbers; delete it"):
        examples.load_features("val")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "Invalid JSON"),
        ("[1, 2]", "Input should be an object"),
        ("{}", "kind: Field required"),
        ((META % '{"last": [4]}').replace("32", '"large"'), "size: Input should be"),
        ((META % '{"last": [4]}').replace("avg", "mean"), "pooling: Input should be"),
        (META % '{"last": [3], "half": [2]}', "depths must begin with `last` and add up to 4, got "),
        (META % '{"half": [1], "last": [3]}', "depths must begin with `last` and add up to 4, got "),
        (META % "{}", "depths must begin with `last` and add up to 4, got "),
    ],
)
def test_a_description_of_features_that_extract_did_not_write_is_refused(here, content, problem):
    paths.FEATURES_META.write_text(content)
    with pytest.raises(UserError, match=rf"meta\.json: {problem}.*; delete it, then run `dvc checkout"):
        read_meta()


def test_the_depths_of_features_add_up(here):
    paths.FEATURES_META.write_text(META % '{"last": [1], "half": [1, 2]}')
    meta = read_meta()
    assert [meta.dim("last"), meta.dim("half"), meta.depth_of(4), meta.depth_of(1)] == [1, 4, "half", "last"]
    with pytest.raises(UserError, match=r"meta\.json: has no depth with the 2 features that the head takes"):
        meta.depth_of(2)


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
