"""What results cost, also where the files that tell it were damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstart import costs, paths
from headstart.outputs import Outputs

DAMAGED = [
    b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n", b"[]", b"null", b"5", b"", b"\xff\xfe", b'{"a": NaN}',
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """A workspace whose results were made here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    outputs = Outputs()
    for stage, file in costs.RESULTS.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(stage)
        if stage == "extract":
            costs.write(outputs, {"images_per_second": 9.5}, file)
            outputs.commit()
        costs.note(stage, 2.0, {"latency_ms": 7.5} if stage == "evaluate" else {})
    costs.follow()
    return tmp_path


def test_figures_of_this_machine_come_before_those_that_came_with_git(here):
    before = texts()
    paths.COST.write_text('{"latency_ms": 1.5}')
    costs.follow()
    assert texts() == before


def test_each_experiment_has_a_ledger_of_its_own(here):
    """Where another one of the same features was the last to leave its own."""
    outputs = Outputs()
    costs.write(outputs, {"computed": 0}, paths.FEATURES_META)
    outputs.commit()
    costs.METRICS.write_text('{"computed": 48}')
    costs.follow()
    assert json.loads(costs.METRICS.read_text()) == {"computed": 48}


def test_figures_that_came_with_git_stay_for_as_long_as_the_results_do(here):
    for file in (here / ".dvc").rglob("*.json"):
        file.unlink()
    before = texts()
    costs.follow()
    assert texts() == before
    for file in (paths.MODEL, paths.FEATURES_META):
        file.write_text("others")
    costs.follow()
    assert not paths.COST.exists()
    assert not costs.METRICS.exists()


def texts() -> tuple[str, str]:
    return paths.COST.read_text(), costs.METRICS.read_text()


@pytest.mark.parametrize("content", DAMAGED)
def test_what_was_damaged_is_written_anew(here, content):
    before = texts()
    for file in (paths.COST, costs.METRICS):
        file.write_bytes(content)
    assert costs.of("evaluate") == {"evaluate_seconds": 2.0, "latency_ms": 7.5}
    costs.follow()
    assert texts() == before


@pytest.mark.parametrize("content", DAMAGED)
def test_what_was_damaged_and_cannot_be_made_again_is_removed(here, content):
    for file in (here / ".dvc").rglob("*.json"):
        file.write_bytes(content)
    assert costs.of("evaluate") == {"evaluate_seconds": 2.0, "latency_ms": 7.5}  # as told by the other file
    for file in (paths.COST, costs.METRICS):
        file.write_bytes(content)
    assert costs.of("evaluate") == {}
    costs.follow()
    assert not paths.COST.exists()
    assert not costs.METRICS.exists()


def test_words_are_no_figures(here):
    for file in (here / ".dvc").rglob("*.json"):
        file.unlink()
    told = json.loads(paths.COST.read_text())
    paths.COST.write_text(json.dumps({**told, "evaluate_seconds": "2 s", "prepare_seconds": None, "latency_ms": True}))
    assert costs.of("evaluate") == costs.of("prepare") == {}
    costs.follow()
    assert "evaluate_seconds" not in json.loads(paths.COST.read_text())
    assert costs.of("fine_tune") == {"fine_tune_seconds": 2.0}
