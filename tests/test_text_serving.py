"""What becomes of a shipped text model: predictions, the server, MLflow, exports, and the page of its results."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from text_models import EVIL, LONGEST, WORDS, make_table

from headstart import paths
from headstart.errors import UserError
from headstart.modalities.lengths import map_batches, map_groups
from headstart.report.pages import make_pages
from headstart.serving import export, ood, predict
from headstart.training import networks
from headstart.training.networks import Classifier

LONG = "the bank is cold and " * 20
REMARK = f"texts like this one have more than {LONGEST} tokens, as many as the model reads; the rest is left out."
SLOW_FORMATS = ("litert", "openvino", "saved_model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finished_texts) -> Iterator[Path]:
    """The current folder: a copy of `finished_texts`."""
    folder = tmp_path_factory.mktemp("texts") / "here"
    shutil.copytree(finished_texts, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        yield folder


@pytest.fixture(scope="module")
def classifier(finished) -> Classifier:
    return networks.load_classifier(paths.MODEL)


def load(classifier: Classifier, *texts: str) -> list[np.ndarray]:
    return [classifier.modality.load(text.encode(), classifier.size) for text in texts]


def alone(classifier: Classifier, *texts: str) -> np.ndarray:
    """The probabilities of texts, each computed by itself."""
    arrays = load(classifier, *texts)
    return np.concatenate([classifier.predict(classifier.modality.batch([array])) for array in arrays])


def rows(capsys, *inputs: str, code: int = 0, **options: object) -> list[dict]:
    assert predict.predict(inputs, "json", **options) == code
    return json.loads(capsys.readouterr().out)


def give_stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# --- predict


def test_each_line_is_answered_in_its_order_however_long(classifier, capsys, monkeypatch):
    """Also one that comes twice, and in batches that are sorted by length."""
    texts = ["bank card", LONG.strip(), "soup", "bank card", *make_table(20, seed=1).text]
    give_stdin(monkeypatch, "\r\n".join([*texts[:2], "", *texts[2:]]).encode("utf-16"))
    found = rows(capsys, "-")
    assert [row["path"] for row in found] == texts
    for row, expected in zip(found, alone(classifier, *texts), strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(expected, abs=1e-5)


def test_rows_of_tables_are_named_as_a_spreadsheet_counts(finished, capsys, monkeypatch):
    table = pd.DataFrame({"id": [1, 2, 3], "message": ["bank card", None, "soup"]})
    table.to_csv("new.csv", index=False)
    table.to_json("new.jsonl", orient="records", lines=True)
    table.to_parquet("new.parquet")
    for name, first in (("new.csv", 2), ("new.jsonl", 1), ("new.parquet", 1)):
        assert predict.predict([name], "json") == 1
        printed = capsys.readouterr()
        assert [row["path"] for row in json.loads(printed.out)] == [f"{name}#{first}", f"{name}#{first + 2}"]
        assert f"{name}#{first + 1}: there is no text" in printed.err
    with pytest.raises(UserError, match=r"the column 'review' is missing; its columns are 'id', 'message': give --col"):
        predict.predict(["new.csv"], column="review")
    with pytest.raises(UserError, match=r"--column message: no input is a table; give a \.csv"):
        predict.predict([], text=["bank"], column="message")
    Path("none.csv").write_text("text\n")
    with pytest.raises(UserError, match=r"none.csv: the table has no rows"):
        predict.predict(["none.csv"])
    Path("twice.csv").write_text("text,text\nbank,soup\n")
    with pytest.raises(UserError, match=r"twice\.csv: several columns are named 'text'"):
        predict.predict(["twice.csv"])
    assert predict.predict([], text=["bank" * 70_000]) == 1
    assert len(capsys.readouterr().err) < 10_000
    give_stdin(monkeypatch, b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"standard input: .* save it as UTF-8"):
        predict.predict(["-"])


def test_texts_for_a_model_of_images_are_refused(shipped, capsys):
    for options, option in (({"text": ["bank"]}, "--text"), ({"column": "text"}, "--column")):
        with pytest.raises(UserError, match=f"{option}: this model takes images"):
            predict.predict([], model=shipped, **options)


def test_texts_unlike_the_training_texts_are_flagged(finished, capsys):
    ood.fit_ood(0.1)
    assert "test examples are flagged" in capsys.readouterr().out
    try:
        *known, foreign = rows(capsys, text=[*make_table().text, "中文 " * 9])
        assert np.mean([row["unlike"] for row in known]) < 0.2
        assert foreign["unlike"]
        assert foreign["distance"] > max(row["distance"] for row in known)
    finally:
        ood.detector_file(paths.MODEL).unlink()


# --- lengths


@pytest.mark.parametrize("run_all", [map_groups, lambda *arguments: map_batches(*arguments, 4)])
def test_texts_of_like_length_share_a_batch(run_all, classifier):
    lengths = [30, 200, 5, 90, 31, 6, 7, 110, 201]
    shapes = []

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        shapes.append(batch["tokens"].shape)
        return (batch["tokens"] == 9).sum(axis=1)

    found = run_all(run, classifier.modality, [np.full(length, 9, np.int32) for length in lengths])
    assert found.tolist() == lengths
    assert len(shapes) == 3
    assert sum(rows * length for rows, length in shapes) < 0.7 * len(lengths) * max(lengths)


# --- exports


@pytest.mark.slow
def test_an_export_that_knows_one_length_alone_is_refused(finished, monkeypatch):
    """As of a converter that takes the length of its example for the only one."""
    form = export.FORMATS["openvino"]

    def run(file: Path, tokens: np.ndarray) -> np.ndarray:
        answer = form.run(file, tokens)
        return answer if len(tokens) > 1 else answer[:, ::-1]

    monkeypatch.setitem(export.FORMATS, "openvino", form._replace(run=run))
    with pytest.raises(UserError, match=r"allowed, and in the class of [12] examples; nothing was written"):
        export.export("openvino", Path("refused"))
    assert not Path("refused").exists()


# --- the page


def test_the_page_quotes_errors_and_marks_words(finished, shown: Callable):
    make_pages()
    page = paths.RESULTS_PAGE.read_text(encoding="utf-8")
    assert '<h1 class="name">./bert on words.csv</h1>' in page
    assert "Called with whole texts" in page
    assert "<img src=x" not in page
    tab, requests, errors = shown(paths.RESULTS_PAGE)
    assert errors == []
    assert len(requests) == 1
    assert tab.locator("#errors ~ .shots blockquote", has_text=EVIL).count() > 0
    assert tab.locator(".look mark").count() > 5
    wide = tab.locator("#errors ~ .shots figure").first.bounding_box()
    assert wide["width"] > 200
    for width in (1200, 420):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- MLflow's description of the data


def test_the_data_set_has_a_column_of_strings(finished):
    from headstart.config import load_params
    from headstart.lockfile import Workspace
    from headstart.tracking import describe
    from headstart.tracking.snapshot import Snapshot

    found = describe.dataset(Snapshot(Workspace(), load_params(), dict))
    columns = json.loads(found["schema"])["mlflow_colspec"]
    assert columns == [{"name": "text", "type": "string"}, {"name": "label", "type": "string"}]
    assert json.loads(found["profile"])["classes"] == len(WORDS)
