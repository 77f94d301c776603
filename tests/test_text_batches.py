"""Batches of texts for fine-tuning: about the same length in each, and words that are dropped at random."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from text_models import LONGEST, make_table, write_bert

from headstart.backbones import get_backbone
from headstart.modalities import get_modality
from headstart.modalities.text.augmentation import TextAugmentation
from headstart.training import batches
from headstart.training.batches import Batches

# --- batches


class Words:
    """Example n has n + 1 places."""

    workers, mixes, lengths = 1, False, np.arange(100)

    def read(self, rows: np.ndarray, view: int) -> dict[str, np.ndarray]:
        return {"tokens": np.where(np.arange(rows.max() + 1) <= rows[:, None], rows[:, None] + 1, 0)}


def make_batches(seed: int | None, size: int = 8) -> Batches:
    return Batches(Words(), np.arange(100) % 2, np.arange(100), np.ones(2, np.float32), size, 0, seed)


def test_a_batch_has_examples_of_about_the_same_length(monkeypatch):
    monkeypatch.setattr(batches, "GROUPED", 3)
    made, orders = make_batches(seed=1), []
    for epoch in (0, 1):
        made.set_epoch(epoch)
        texts = [batch[0]["tokens"] for batch in made]
        rows = np.concatenate([batch.max(axis=1) for batch in texts]) - 1
        assert sorted(rows) == list(range(100))
        assert [len(batch) for batch in texts] == [8] * 12 + [4]
        assert np.mean([np.ptp(batch.max(axis=1)) for batch in texts[:-1]]) < 50  # of at most 100
        orders.append(rows.tolist())
    assert orders[0] != orders[1]


def test_held_out_examples_come_by_length_and_go_back_to_their_order():
    made = make_batches(seed=None)
    outputs = np.concatenate([batch[0]["tokens"].max(axis=1) for batch in made])
    assert outputs[0] == 100
    assert (made.sort_back(outputs) == np.arange(1, 101)).all()


def test_keras_takes_batches_of_other_lengths_than_the_first_two():
    made = make_batches(seed=None, size=50)  # the first two have lengths of their own, those of other epochs differ
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    network = keras.Model({"tokens": tokens}, keras.ops.max(tokens, axis=1, keepdims=True))
    assert made.sort_back(network.predict(made.source(), verbose=0)).ravel().tolist() == list(range(1, 101))
    shuffled = make_batches(seed=1)
    for epoch in (0, 1):
        shuffled.set_epoch(epoch)
        expected = np.concatenate([batch[0]["tokens"].max(axis=1) for batch in shuffled])
        assert (network.predict(shuffled.source(), verbose=0).ravel() == expected).all()


# --- word dropout


@pytest.fixture(scope="module")
def reading(tmp_path_factory) -> dict[str, Any]:
    return get_backbone(str(write_bert(tmp_path_factory.mktemp("bert")))).reading()


def test_word_dropout_leaves_what_is_no_word_and_is_repeatable(reading):
    modality, augmentation, cls, sep = get_modality("text").with_reading(reading), TextAugmentation(0.5), 2, 3
    prefixed = get_modality("text").with_reading({**reading, "prefix": "the a! "})
    for text in make_table(6).text:
        plain, *views = modality.views(text.encode(), LONGEST, augmentation, "key", range(6))
        assert (plain == modality.load(text.encode(), LONGEST)).all()
        assert all(view[0] == cls and view[-1] == sep and len(view) >= 3 for view in views)
        assert len({view.tobytes() for view in views}) > 1 or len(plain) < 7
        (again,) = modality.views(text.encode(), LONGEST, augmentation, "key", [3])
        assert (again == views[2]).all()
        others = list(modality.views(text.encode(), LONGEST, augmentation, "another", range(1, 6)))
        assert len(plain) < 8 or any(len(a) != len(b) or (a != b).any() for a, b in zip(views, others, strict=True))
        beginning = prefixed.load(b"a", LONGEST)[:4]
        for view in prefixed.views(text.encode(), LONGEST, augmentation, "key", range(1, 6)):
            assert (view[:4] == beginning).all()
            assert len(view) > 5
    (cut,) = modality.views(b"card " * 100, LONGEST, TextAugmentation(0.2), "key", [1])
    assert LONGEST // 2 < len(cut) < LONGEST


def test_tokens_of_a_word_are_dropped_together(reading):
    modality = get_modality("text").with_reading(reading)
    whole = modality.load(b"abc card xyz", LONGEST)
    pieces = {(), tuple(whole[1:4]), tuple(whole[4:5]), tuple(whole[5:8])}
    for view in modality.views(b"abc card xyz", LONGEST, TextAugmentation(0.5), "key", range(1, 20)):
        assert tuple(view[1:-1]) in {a + b + c for a in pieces for b in pieces for c in pieces}
