"""Prepare on texts: what is left out, copies and leaks, what the screen and the page about the data say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from conftest import SMALL, run_stages, write_params
from test_remote import serve
from test_texts import sentence

from headstart import cli, paths
from headstart.config import load_params
from headstart.data.inspection import fingerprint
from headstart.errors import UserError
from headstart.modalities import get_modality
from headstart.modalities.detection import find_modality
from headstart.report.data_page import render_data_page


@pytest.fixture(autouse=True)
def here(empty_workspace) -> Path:
    return empty_workspace


def many(count: int = 30, first: int = 0) -> pd.DataFrame:
    """Texts that differ from each other."""
    rows = [(sentence(first + row), ("neg", "pos")[row % 2]) for row in range(count)]
    return pd.DataFrame(rows, columns=["text", "label"])


def prepare(source: str | pd.DataFrame, **changes: object) -> pd.DataFrame:
    """Run the stage on a source, or a table; returns the manifest."""
    if isinstance(source, pd.DataFrame):
        source.to_csv("t.csv", index=False)
        source = "t.csv"
    settings = {**SMALL, "prepare.split": "exact", "prepare.near_distance": 0.25, "prepare.max_bad_fraction": 0.5}
    write_params(Path("params.yaml"), **{**settings, "data.source": source, **changes})
    run_stages("prepare")
    return pd.read_parquet(paths.MANIFEST)


def left_out() -> dict[str, str]:
    """The reason by path of what the last run has left out."""
    table = pd.read_csv(paths.QUARANTINE)
    return dict(zip(table.path, table.reason, strict=True))


def plus(*texts: str) -> pd.DataFrame:
    """A table whose last rows hold these texts."""
    return pd.concat([many(), pd.DataFrame({"text": texts, "label": "neg"})], ignore_index=True)


def test_what_cannot_be_used_is_quarantined(capsys):
    manifest = prepare(
        plus("x", "", "   ", "9", "long " * 200_000, "a\0 zero byte", "ok", "好", "<p>fine text</p> &amp; more")
    )
    names = ["too_short", "empty", "empty", "too_short", "too_long", "not_text"]
    assert left_out() == {f"t.csv#{32 + row}": reason for row, reason in enumerate(names)} | {"t.csv#39": "too_short"}
    assert len(manifest) == 32
    printed = capsys.readouterr().out
    assert "7 left out (2 empty, 1 not_text, 1 too_long, 3 too_short)" in printed
    assert "1 of 32 texts hold HTML tags or entities, which stay as they are" in printed


def test_texts_longer_than_a_model_reads_are_counted(capsys):
    """Of a text in Chinese each character is a token, although there are no spaces."""
    prepare(
        plus(
            "card " * 126, "card " * 127, "\N{CJK UNIFIED IDEOGRAPH-5361}" * 126, "\N{CJK UNIFIED IDEOGRAPH-6B3E}" * 127
        )
    )
    assert "2 of 34 texts are so long that a model which reads 128 tokens sees" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["classes", "splits", "zip", "nosuffix"])
def test_class_folders(layout, capsys):
    suffix = "" if layout == "nosuffix" else ".txt"
    for row, (text, label) in many(48).iterrows():
        split = ("train/", "train/", "train/", "test/")[row // 2 % 4] if layout in ("splits", "zip") else ""
        file = Path(f"texts/{split}{label}/{row}{suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    Path("texts/README.txt").write_text("What these texts are.")
    Path("texts/about.pdf").write_bytes(b"%PDF")
    if layout == "zip":
        shutil.make_archive("texts", "zip", ".", "texts")
    manifest = prepare("texts.zip" if layout == "zip" else "texts")
    assert len(manifest) == 48
    assert set(manifest.split[manifest.path.str.contains("/test/")]) <= {"test"}
    printed = capsys.readouterr().out
    assert "prepare: the examples are texts, by the " in printed
    assert find_modality(load_params().data).name == "text"


def test_one_text_in_latin_1_is_read_and_said_so(capsys):
    for row, (text, label) in many(24).iterrows():
        file = Path(f"texts/{label}/{row}.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"{text} café".encode("latin-1" if row == 3 else "utf-8"))
    prepare("texts")
    assert "1 of 24 texts are not UTF-8, and were read as Windows-1252 (Latin-1)" in capsys.readouterr().out


def test_the_page_about_the_data_shows_texts_and_escapes_them():
    table = plus(sentence(7) + " <script>1</script>", "שלום עולם טוב")
    prepare(table)
    page = render_data_page(load_params(), [], "")
    assert "<script>" not in page
    assert page.count("<blockquote") >= 10
    assert f"{sentence(7)} &lt;script&gt;1&lt;/script&gt;</blockquote>" in page
    for shown in ("histogram of characters", "histogram of words", ">Hebrew</td>", "2 examples"):
        assert shown in page


@pytest.mark.parametrize("source", ["t.csv?key=1", "packed.tar.gz", "memory"])
def test_texts_at_addresses(source, capsys):
    Path("there/texts").mkdir(parents=True)
    many().to_csv("there/t.csv", index=False)
    many().to_csv("there/texts/all.csv", index=False)
    shutil.make_archive("there/packed", "gztar", "there/texts")
    with serve(Path("there")) as (address, _):
        if source == "memory":
            fsspec.filesystem("memory").put("there/texts", "/bucket/texts", recursive=True)
        manifest = prepare("memory://bucket/texts" if source == "memory" else f"{address}/{source}")
    table = "t.csv" if source.startswith("t") else "all.csv"
    assert set(manifest.path) == {f"{table}#{row}" for row in range(2, 32)}
    assert "the examples are texts, by the columns" in capsys.readouterr().out


def test_a_few_captions_beside_images_do_not_make_texts_of_them(photos):
    folder = photos(count=3)
    for number in range(20):
        (folder / "red" / f"{number}.txt").write_text("a caption")
    (folder / "labels.csv").write_text("text,label\na,b\n")
    write_params(Path("params.yaml"), **{**SMALL, "data.source": str(folder)})
    assert find_modality(load_params().data).name == "image"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_prepare_says_what_it_has_found(suffix, capsys):
    {".csv": many().to_csv, ".parquet": many().to_parquet}[suffix](f"reviews{suffix}", index=False)
    manifest = prepare(f"reviews{suffix}")
    assert len(manifest) == 30
    assert set(manifest.split) == {"train", "val", "test"}
    assert (manifest.words == 14).all()
    assert json.loads(paths.READING.read_text()) == {"kind": "text"}
    printed = capsys.readouterr().out
    assert f"prepare: the examples are texts, by the columns text and label of reviews{suffix}\n" in printed
    assert "DVC watches" not in printed


def test_a_second_run_inspects_nothing_again(monkeypatch):
    many().to_csv("reviews.csv", index=False)
    os.utime("reviews.csv", (1, 1))
    first, code = prepare("reviews.csv"), fingerprint(get_modality("text"))
    monkeypatch.setattr(type(get_modality("text")), "sketch", lambda *_: pytest.fail("inspected again"))
    monkeypatch.setattr("pipeline.prepare.fingerprint", lambda kind: code)  # which inspects known texts
    assert prepare("reviews.csv").equals(first)


@pytest.mark.parametrize("splits", [{"train": "train", "test": "tset"}, {"train": "train"}])
def test_split_names_that_are_no_tables_are_refused(splits):
    Path("source").mkdir()
    for first, name in ((0, "train"), (100, "test")):
        many(first=first).to_csv(f"source/{name}.csv", index=False)
    with pytest.raises(UserError, match=r"data\.splits must name all tables and no others, or words of a column split"):
        prepare("source", **{"data.splits": splits})


def test_check_takes_any_column_of_a_table_for_groups(capsys):
    many().assign(**{"author (": [f"a{row // 2}" for row in range(30)]}).to_json(
        "t.jsonl", orient="records", lines=True
    )
    manifest = prepare("t.jsonl", **{"prepare.group_by": "author ("})
    assert manifest.group.nunique() == 15
    assert cli.main(["check"]) == 0


def test_three_rows_end_in_one_message(capsys):
    with pytest.raises(UserError, match=r"2 of 2 classes are not in each of train, val and test") as caught:
        prepare(many(3))
    assert "Traceback" not in str(caught.value)


def test_too_many_bad_rows_end_in_one_message():
    table = many()
    table.loc[:9, "label"] = None
    with pytest.raises(UserError, match=r"t\.csv: 10 of 30 files cannot be used:\n  t\.csv#2: the label is missing"):
        prepare(table, **{"prepare.max_bad_fraction": 0.05})


@pytest.mark.parametrize("source", ["reviews.csv", "folder", "folder.zip"])
def test_the_watched_source_changes_with_its_texts(source):
    Path("folder").mkdir()

    def make(first: int) -> None:
        many(first=first).to_csv("reviews.csv", index=False)
        many(first=first).to_csv("folder/train.csv", index=False)
        shutil.make_archive("folder", "zip", "folder")

    def watched() -> str:
        write_params(Path("params.yaml"), **{**SMALL, "data.source": source, "data.watch": ["source"]})
        assert cli.main(["watch", "source"]) == 0
        return (paths.WATCHED / "source.json").read_text()

    make(0)
    first = watched()
    assert watched() == first
    make(100)
    assert watched() != first


def test_a_manifest_of_text_files_stays_a_manifest(capsys):
    table = many()
    for row, text in enumerate(table.text):
        Path("texts").mkdir(exist_ok=True)
        Path(f"texts/{row}.txt").write_text(text)
    manifest = table.assign(path=[f"texts/{row}.txt" for row in range(len(table))])[["path", "label"]]
    assert set(prepare(manifest).path) == set(manifest.path)
    assert "the examples are texts, by the suffixes of 30 of 30 files" in capsys.readouterr().out


def test_the_folders_of_imdb_are_splits_and_its_texts_without_labels_no_class(capsys):
    for place, label in [("train", "neg"), ("train", "pos"), ("train", "unsup"), ("test", "neg"), ("test", "pos")]:
        folder = Path("aclImdb", place, label)
        folder.mkdir(parents=True)
        Path("aclImdb", place, f"urls_{label}.txt").write_text("http://example.org/usercomments")
        for number in range(10):
            (folder / f"{number}_7.txt").write_text(
                sentence(1000 * len(place) + 100 * len(label) + ord(label[0]) + 10 * number)
            )
    for name in ("README", "imdb.vocab", "imdbEr.txt", "train/labeledBow.feat"):
        Path("aclImdb", name).write_text("0:9 1:1 of the film")
    manifest = prepare("aclImdb", **{"prepare.near_distance": 0.0})
    assert manifest.groupby(manifest.split == "test").label.value_counts().to_dict() == {
        (is_test, label): 10 for is_test in (False, True) for label in ("neg", "pos")
    }
    ignored = pd.read_csv(paths.IGNORED).set_index("path").reason.value_counts()
    assert ignored.to_dict() == {"without a label": 10, "in no class folder": 6, "in no split folder": 3}
    assert "unsup, which only train has, is left out: it has no labels" in capsys.readouterr().out
    shutil.rmtree("aclImdb/test")
    assert set(prepare("aclImdb", **{"prepare.near_distance": 0.0}).label) == {"neg", "pos", "unsup"}
