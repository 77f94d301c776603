"""Texts go through all stages with a small BERT, and the shipped model answers as the pipeline does."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, run_stages, write_params
from text_models import make_table
from tokenizers import Tokenizer

from headstart import paths
from headstart.errors import UserError
from headstart.features import encoding, extraction
from headstart.model_archive import read_texts
from headstart.serving.predict import predict
from headstart.training import networks


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finished_texts) -> Iterator[Path]:
    """The current folder: a copy of `finished_texts`."""
    folder = tmp_path_factory.mktemp("texts") / "here"
    shutil.copytree(finished_texts, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        yield folder


def test_the_longest_texts_come_first_and_order_changes_no_feature(finished, monkeypatch, tmp_path):
    before = {split: np.load(file) for split, file in paths.FEATURES.items()}
    sizes: list[int] = []
    plain = extraction.ViewIndex.sort

    def sort(index, chosen):
        found = plain(index, chosen)
        sizes.extend(index.lengths[index.rows[found]])
        return found

    monkeypatch.setattr(extraction.ViewIndex, "sort", sort)
    monkeypatch.setattr(paths, "cache_path", lambda name: tmp_path / name)  # an empty store
    run_stages("extract")
    assert sizes == sorted(sizes, reverse=True)
    monkeypatch.setattr(extraction.ViewIndex, "sort", lambda self, chosen: chosen)
    monkeypatch.setattr(paths, "cache_path", lambda name: tmp_path / "other" / name)
    run_stages("extract")
    assert all((np.load(file) == before[split]).all() for split, file in paths.FEATURES.items())


def test_the_model_holds_its_tokenizer(finished):
    """For those who have none of our code; tests/test_export.py loads such a model."""
    model = networks.load_classifier(paths.MODEL)
    tokenizer = Tokenizer.from_str(read_texts(paths.MODEL)["headstart.json"]["reading"]["tokenizer"])
    tokenizer.no_padding()
    assert tokenizer.encode("soup").ids == model.modality.load(b"soup", model.size).tolist()
    assert [str(tensor.dtype) for tensor in model.network.inputs] == ["int32"]


def lines(printed: str) -> list[list[str]]:
    return [line.split(None, 2) for line in printed.splitlines()]


def test_predict_takes_texts_tables_and_files(finished, capsys):
    assert predict([], text=["bread soup rice", "bank card cash"]) == 0
    typed = lines(capsys.readouterr().out)
    assert [(row[0], row[2]) for row in typed] == [("food", "bread soup rice"), ("money", "bank card cash")]

    pd.DataFrame({"number": [1, 2], "said": ["bread soup rice", "bank card cash"]}).to_csv("new.csv", index=False)
    assert predict(["new.csv"], column="said") == 0
    assert [row[:2] for row in lines(capsys.readouterr().out)] == [row[:2] for row in typed]
    with pytest.raises(UserError, match=r"new\.csv: no column is named as texts usually are .*give --column with one"):
        predict(["new.csv"])

    Path("letter.txt").write_text("bank card cash")
    assert predict(["letter.txt"]) == 0
    assert lines(capsys.readouterr().out)[0][:2] == typed[1][:2]


def test_extract_says_how_many_texts_are_cut(finished, capsys, monkeypatch, tmp_path):
    table = make_table()
    shutil.copytree("bert", tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    table.to_csv("words.csv", index=False)
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "words.csv", "backbone": "./bert", "extract.size": 10})
    run_stages("prepare", "extract")
    cut = sum(len(text.split()) > 8 for text in table.text)
    assert 0 < cut < len(table)
    printed = capsys.readouterr().out
    assert f"extract: {cut} of {len(table)} texts have more than 10 tokens, as many as the model reads; the" in printed
    monkeypatch.setattr(encoding, "LOOKED_AT", 20)
    run_stages("extract")  # all from the store
    assert f" of 20 texts drawn from {len(table)} have more than 10 tokens" in capsys.readouterr().out


def test_predict_says_which_texts_are_cut(finished, capsys):
    assert predict([], text=["bank " * 50]) == 0
    assert "1 of 1 texts have more than 24 tokens, as many as the model reads" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing to predict: give files of texts"):
        predict([])


def test_a_model_without_its_library_says_so(finished, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(UserError, match="layers of KerasHub, which is not installed; install the extra `hub`"):
        networks.load(paths.MODEL)


def test_layers_that_read_files_are_refused_in_a_model(finished, tmp_path):
    with zipfile.ZipFile(paths.MODEL) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    hub = "keras_hub.src.models.bert.bert_tokenizer"
    members["config.json"] = members["config.json"].replace(
        b"keras_hub.src.layers.modeling.position_embedding", hub.encode()
    )
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=f"the custom object {hub}.PositionEmbedding"):
        read_texts(tmp_path / "model.keras")
