"""What prepare has written, damaged or edited by hand: refused with the file, the problem and the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_stages

from headstart import cli, paths
from headstart.data import prepared
from headstart.errors import UserError


@pytest.fixture
def here(extracted, tmp_path, monkeypatch) -> Path:
    shutil.copytree(extracted, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def change(file: Path, **columns: object) -> None:
    pd.read_parquet(file).assign(**columns).to_parquet(file)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda file: file.write_bytes(b"path,label"), r"not a readable \.parquet table \(.*\)"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), r"not a readable \.parquet table \(.*\)"),
        (lambda file: pd.read_parquet(file).drop(columns="label").to_parquet(file), "the column 'label' is missing"),
        (lambda file: change(file, label=1), "the column 'label' must hold text in every row"),
        (lambda file: change(file, path=None), "the column 'path' must hold text in every row"),
        (lambda file: pd.read_parquet(file)[:0].to_parquet(file), "has no rows"),
    ],
)
@pytest.mark.parametrize("file", [paths.MANIFEST, paths.FILES], ids=["manifest", "files"])
def test_a_damaged_table_is_refused(here, file, spoil, problem):
    spoil(file)
    load = prepared.load_manifest if file == paths.MANIFEST else prepared.load_files
    remedy = f"; delete it, then run `dvc checkout {file}`, or `dvc repro prepare`$"
    with pytest.raises(UserError, match=f"^{file}: {problem}{remedy}"):
        load()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[", r"not readable JSON \(.*\)"),
        ("\udcff", r"not readable JSON \(.*\)"),
        ('{"blue": 0}', "must be a list of class names"),
        ('["blue", 1]', "must be a list of class names"),
        ('["blue", "blue"]', "must name two classes or more, each once"),
        ('["blue", "green"]', f"lacks the label red, which {paths.MANIFEST} has"),
    ],
)
def test_wrong_classes_are_refused(here, content, problem):
    paths.CLASSES.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"^{paths.CLASSES}: {problem}; delete it, then run `dvc checkout"):
        prepared.load_split("train")
    if "lacks" in problem:
        with pytest.raises(UserError, match=f"lacks the label red, which {paths.FILES} has"):
            prepared.load_files()


def test_an_unknown_split_is_refused(here):
    change(paths.MANIFEST, split="hold")
    with pytest.raises(UserError, match="split must be train, val, test, got 'hold'; delete it"):
        prepared.load_split("train")
    change(paths.MANIFEST, split="val")
    with pytest.raises(UserError, match="has no row of the split train; delete it"):
        prepared.load_split("train")


def test_stages_and_pages_end_in_that_message(here, capsys):
    paths.FILES.write_bytes(b"x")
    assert cli.main(["report"]) == 1
    assert f"{paths.FILES}: not a readable .parquet table" in capsys.readouterr().err
    paths.MANIFEST.write_bytes(b"x")
    for stage in ("extract", "train_head"):
        with pytest.raises(UserError, match=f"{paths.MANIFEST}: not a readable"):
            run_stages(stage)


def test_rows_come_with_the_index_of_their_label(here):
    rows = prepared.load_split("val")
    assert set(rows.split) == {"val"}
    assert rows.label.tolist() == [json.loads(paths.CLASSES.read_text())[target] for target in rows.target]
    assert rows.target.dtype == "int32"
