from __future__ import annotations

import numpy as np
import pytest

from pipeline import dataset, paths
from pipeline.dataset import FeatureBatches
from pipeline.errors import UserError

ROWS = 50


@pytest.fixture
def features() -> np.ndarray:
    return np.arange(ROWS, dtype=np.float32)[:, None].repeat(4, 1)


@pytest.fixture
def views() -> np.ndarray:
    """View v of row n holds n + 100 v."""
    numbers = np.arange(ROWS)[:, None] + 100 * np.arange(1, 4)
    return numbers[..., None].repeat(4, 2).astype(np.float16)


def epoch(batches: FeatureBatches) -> tuple[np.ndarray, np.ndarray]:
    parts = [batches[number] for number in range(len(batches))]
    batches.on_epoch_end()
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def test_every_row_comes_once_an_epoch_with_its_target_in_another_order(features):
    batches = FeatureBatches(features, np.arange(ROWS, dtype=np.int32), 8, seed=1)
    assert len(batches) == 7
    first, second = epoch(batches), epoch(batches)
    for values, targets in (first, second):
        assert values.dtype == np.float32
        assert (values[:, 0] == targets).all()
        assert sorted(targets) == list(range(ROWS))
    assert (first[1] != second[1]).any()
    again = FeatureBatches(features, np.arange(ROWS, dtype=np.int32), 8, seed=1)
    assert (epoch(again)[1] == first[1]).all()


def test_without_a_seed_rows_stay_in_order(features):
    values, targets = epoch(FeatureBatches(features.astype(np.float16), np.arange(ROWS, dtype=np.int32), 7))
    assert values.dtype == np.float32
    assert list(targets) == list(values[:, 0]) == list(range(ROWS))


def test_each_epoch_draws_each_image_as_it_is_or_as_a_view(features, views):
    batches = FeatureBatches(features, np.arange(ROWS, dtype=np.int32), 8, views, seed=1)
    seen = {number: set() for number in range(ROWS)}
    for _ in range(60):
        values, targets = epoch(batches)
        assert (values[:, 0] % 100 == targets).all()
        for value, target in zip(values[:, 0], targets, strict=True):
            seen[target].add(int(value) // 100)
    assert all(drawn == {0, 1, 2, 3} for drawn in seen.values())
    none = FeatureBatches(features, np.arange(ROWS, dtype=np.int32), 8, views[:, :0], seed=1)
    assert epoch(none)[0].max() < ROWS


def test_features_are_mapped_not_loaded(features, views, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths.FEATURES_META.parent.mkdir()
    np.save(paths.FEATURES["train"], features)
    np.save(paths.TRAIN_VIEWS, views[:, :0])
    assert isinstance(dataset.load_features("train", ROWS), np.memmap)
    assert dataset.load_views(ROWS).shape == (ROWS, 0, 4)
    with pytest.raises(UserError, match=r"train_views\.npy holds 50 rows where the manifest has 49"):
        dataset.load_views(49)
