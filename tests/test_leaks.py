"""In no modality anything leaks: no copy and no group is in two splits, and labels that are given away are said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL, run_stages, write_params
from modality_cases import CASES, Case, each_case

from headstart import paths

DISTANCE = {"prepare.near_distance": 0.25, "prepare.test_fraction": 0.35}


@pytest.fixture(autouse=True)
def here(empty_workspace) -> Path:
    return empty_workspace


def put(case: Case, path: str, data: bytes) -> None:
    file = Path("set", path + case.suffix)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def prepare(**changes: object) -> pd.DataFrame:
    """Run the stage; return the manifest, without the suffixes of files."""
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "set", **changes})
    run_stages("prepare")
    manifest = pd.read_parquet(paths.MANIFEST)
    return manifest.assign(path=manifest.path.str.rsplit(".", n=1).str[0])


def left_out() -> pd.DataFrame:
    table = pd.read_csv(paths.QUARANTINE)
    return table.assign(path=table.path.str.rsplit(".", n=1).str[0]).set_index("path")


@each_case
def test_copies_of_what_is_in_test_are_left_out_of_train_and_contradictions_of_both(case, capsys):
    for number in range(30):
        put(case, f"{('train', 'test')[number >= 20]}/{('neg', 'pos')[number % 2]}/{number:02}", case.make(number))
    put(case, "train/neg/same", case.rewrite(case.make(20)))
    put(case, "train/neg/near", case.alter(case.make(22)))
    put(case, "test/pos/wrong", case.rewrite(case.make(0)))
    put(case, "train/pos/doubtful", case.alter(case.make(2)))
    put(case, "train/pos/broken", case.spoil[0](case.make(31)))
    manifest = prepare(**DISTANCE, **{"prepare.split": "exact", "prepare.max_bad_fraction": 0.1}).set_index("path")
    found = left_out()
    assert found.reason.to_dict() == {
        "train/neg/same": "duplicate",
        "train/neg/near": "near_duplicate",
        "test/pos/wrong": "conflict",
        "train/neg/00": "conflict",
        "train/pos/broken": case.spoil[1],
    }
    assert found.detail["train/neg/same"] == f"the same content as test/neg/20{case.suffix}, which is in test"
    assert set(found[found.reason == "conflict"].detail) == {"the same content under the labels neg, pos"}
    assert manifest.item_id.is_unique
    assert (manifest.split[manifest.index.str.startswith("test/")] == "test").all()
    assert manifest.connected[["train/neg/02", "train/pos/doubtful"]].nunique() == 1
    assert "2 near copies have different labels; is one wrong?" in capsys.readouterr().out


@each_case
def test_near_copies_are_left_out_or_kept_together(case, capsys):
    for number in range(40):
        put(case, f"class {number % 2}/{number:02}", case.make(number))
        put(case, f"class {number % 2}/{number:02}-copy", case.alter(case.make(number)))
    for split, some in (("hash", True), ("exact", False)):
        manifest = prepare(**DISTANCE, **{"prepare.split": split})
        scene = manifest.path.str.extract(r"/(\d+)")[0]
        assert (manifest.split.groupby(scene).nunique() == 1).all()
        assert (manifest.connected.groupby(scene).nunique() == 1).all()
        assert manifest.connected.nunique() == scene.nunique()
        found = left_out()
        assert (len(found) > 0) == some
        assert set(found.reason) <= {"near_duplicate"}
        assert found.detail.str.fullmatch(r"a near copy of class \d/\d+(-copy)?\.\w+, which is in (train|val)").all()
        assert len(manifest) + len(found) == 80
    assert "left out (" in capsys.readouterr().out
    leaking = prepare()
    assert (leaking.split.groupby(leaking.path.str.extract(r"/(\d+)")[0]).nunique() > 1).any()


@each_case
@pytest.mark.parametrize("split", ["hash", "exact"])
def test_groups_stay_in_one_split(case, split):
    for number in range(60):
        put(case, f"{('neg', 'pos')[number % 2]}/speaker{number // 2 % 10}-{number}", case.make(number))
    manifest = prepare(**{"prepare.group_by": r"(speaker\d)", "prepare.split": split})
    assert set(manifest.split) == {"train", "val", "test"}
    for column in (manifest.split, manifest.connected):
        assert (column.groupby(manifest.path.str.extract(r"(speaker\d)")[0]).nunique() == 1).all()


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.reveal], ids=lambda case: case.name)
def test_labels_that_examples_give_away_are_said(case, capsys):
    def fill(make: Callable[[int], bytes]) -> None:
        for number in range(40):
            put(case, f"{('neg', 'pos')[number % 2]}/{number}", (case.make, make)[number % 2](number))
        prepare()

    fill(case.make)
    assert case.revealed[:20] not in capsys.readouterr().out
    fill(case.reveal)
    assert f"prepare: {case.revealed}" in capsys.readouterr().out
