"""What fine_tune reads of the head: damage is reported, and where nothing is to gain it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from headstart import paths
from headstart.config import load_params
from headstart.errors import UserError
from headstart.training.head_report import HeadReport, read_head_report
from headstart.training.head_settings import resolve_head

SETTINGS = resolve_head(load_params(ROOT / "params.yaml").train_head.choice(hidden=[]), 3)
TARGETS = (np.arange(60) % 3).astype(np.int32)
LAST_BEST = {"losses": {"last": 0.1, "half": 0.2, "average": 0.15}, "decays": {"last": 0.1, "half": 0.1}}
HALF_BEST = {"losses": {"last": 0.2, "half": 0.1, "average": 0.15}, "decays": {"last": 0.1, "half": 0.1}}
ALONE = {"losses": {"last": 0.1}, "decays": {"last": 0.1}}


def logits(n_wrong: int) -> np.ndarray:
    predicted = np.where(np.arange(60) < n_wrong, (TARGETS + 1) % 3, TARGETS)
    return 5 * np.eye(3, dtype=np.float32)[predicted]


def reason(n_wrong: int, choice: dict[str, Any]) -> str:
    return HeadReport(SETTINGS, choice, logits(n_wrong)).nothing_to_gain(TARGETS)


@pytest.mark.parametrize("n_wrong", [0, 2])
def test_few_wrong_answers_in_cross_validation_leave_nothing_to_gain(n_wrong):
    expected = f"the head classifies {60 - n_wrong} of 60 correctly in cross-validation"
    assert reason(n_wrong, HALF_BEST) == reason(n_wrong, ALONE) == expected


def test_fine_tuning_is_tried_where_the_head_is_wrong_and_early_layers_help():
    assert reason(20, HALF_BEST) == ""
    assert reason(5, HALF_BEST) == ""
    assert reason(20, ALONE) == ""  # no other depth was tried


def test_a_last_layer_that_nothing_betters_suits_the_classes():
    expected = "features below the last layer do not help, and the accuracy is 0.917 without them"
    assert reason(5, LAST_BEST) == expected
    assert reason(20, LAST_BEST) == ""  # they do not, but it is not good either


def test_nothing_is_forecast_of_a_head_that_params_ask_for_or_that_val_alone_scored():
    assert reason(0, {}) == ""
    unknown = logits(0)
    unknown[:40] = np.nan
    assert HeadReport(SETTINGS, ALONE, unknown).nothing_to_gain(TARGETS) == ""


# --- files


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in (paths.HELD_OUT, paths.report("train_head")):
        file.parent.mkdir(parents=True, exist_ok=True)
    report = {"settings": SETTINGS.model_dump(), "choice": {"head": "half", **HALF_BEST}}
    paths.report("train_head").write_text(json.dumps(report))
    np.save(paths.HELD_OUT, logits(3))
    return tmp_path


def test_what_train_head_wrote_is_read(here):
    found = read_head_report(60, 3)
    assert found.settings == SETTINGS
    assert found.choice == HALF_BEST
    assert (found.logits == logits(3)).all()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"settings": {}}', '{"settings": {}, "choice": {"head": "last"}}'],
)
def test_a_report_that_does_not_say_how_heads_are_trained_is_refused(here, content):
    paths.report("train_head").write_text(content)
    with pytest.raises(UserError, match=r"does not say how the head was trained; run `dvc repro --force train_head`"):
        read_head_report(60, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, r"head\.npy: must be a complete \.npy file of numbers"),
        (np.zeros((59, 3), np.float32), r"must be float32 of the shape \(60, 3\), got \(59, 3\)"),
        (np.zeros((60, 3), np.float64), r"must be float32 of the shape \(60, 3\), got"),
    ],
    ids=["damaged", "other examples", "other type"],
)
def test_held_out_logits_that_do_not_fit_are_refused(here, array, message):
    if array is None:
        paths.HELD_OUT.write_bytes(b"\x93NUMPY")
    else:
        np.save(paths.HELD_OUT, array)
    with pytest.raises(UserError, match=message):
        read_head_report(60, 3)
