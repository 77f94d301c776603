"""Tables of texts: how they are read, which columns, splits and rows are meant, and what ends in one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_params

from headstart import cli
from headstart.config import load_params
from headstart.data import layouts
from headstart.data.listing import Listing
from headstart.data.sources import open_source
from headstart.data.tables import parse_row
from headstart.errors import ItemError, UserError
from headstart.modalities.detection import detect

ROWS = [("good film", "pos"), ("a bad, long film", "neg"), ('he said "no"', "neg"), ("two\nlines", "pos")]


@pytest.fixture(autouse=True)
def here(empty_workspace) -> Path:
    return empty_workspace


def frame(rows: list[tuple[str, ...]] = ROWS, columns: str = "text label") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def write(file: str, table: pd.DataFrame, **options: object) -> str:
    """Write a table as its suffix says."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".parquet"):
        table.to_parquet(file, index=False)
    elif file.endswith(("jsonl", "ndjson")):
        table.to_json(file, orient="records", lines=True, force_ascii=False)
    else:
        table.to_csv(file, index=False, sep="\t" if file.endswith(".tsv") else ",", **options)
    return file


def look(source: str, **changes: object) -> tuple[Listing, dict[str, bytes | str]]:
    """The listing of a source, and the bytes of each row, or why it has none."""
    group_by = changes.pop("group_by", None)
    write_params(Path("params.yaml"), **{"data.source": source}, **{f"data.{key}": v for key, v in changes.items()})
    data, found = load_params().data, {}
    with open_source(data.source, data.root) as opened:
        kind, _ = detect(opened, data)
        rows = layouts.open_within(opened, data, kind)
        listing = layouts.list_items(rows, source, kind, data.root, group_by, splits=data.splits)
        for item in listing.items:
            try:
                found[item.path] = rows.read(item.path)
            except ItemError as error:
                found[item.path] = error.reason
    return listing, found


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"])
def test_a_row_is_a_file(suffix):
    listing, found = look(write(f"reviews{suffix}", frame()))
    first = 2 if suffix in (".csv", ".tsv") else 1
    assert found == {f"reviews{suffix}#{first + row}": text.encode() for row, (text, _) in enumerate(ROWS)}
    labels = {item.path: item.label for item in listing.items}
    assert labels == {f"reviews{suffix}#{first + row}": label for row, (_, label) in enumerate(ROWS)}
    assert listing.notes == ["texts are in the column text, labels in label"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("reviews.csv#17", ("reviews.csv", 17)),
        ("a/b#2.TSV#3", ("a/b#2.TSV", 3)),
        ("a.csv#", None),
        ("a.txt#3", None),
        ("a.csv", None),
    ],
)
def test_names_of_rows(name, row):
    assert parse_row(name) == row


@pytest.mark.parametrize(
    ("columns", "changes", "expected"),
    [
        ("sentence category", {}, ("sentence", "category")),
        ("id Review Intent", {}, ("Review", "Intent")),
        ("label text title", {}, ("text", "label")),
        ("a b", {"text_column": "b", "label_column": "a"}, ("b", "a")),
        ("text x label", {"label_column": "x"}, ("text", "x")),
    ],
)
def test_columns_are_found_by_their_names(columns, changes, expected):
    values = columns.split()
    table = pd.DataFrame([[f"{name} {row}" for name in values] for row in range(4)], columns=values)
    listing, found = look(write("t.csv", table), **changes)
    assert found["t.csv#2"].decode() == f"{expected[0]} 0"
    assert listing.items[0].label == f"{expected[1]} 0"


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ("a b", {}, r"t\.csv: no column is named as texts usually are \(text, .*\); its columns are 'a', 'b': "
         r"set data\.text_column to one of them\. A manifest of files has the columns path and label"),
        ("text b", {}, r"t\.csv: no column is named as labels usually are .* set data\.label_column"),
        ("text label", {"text_column": "txt"}, r"t\.csv: the column 'txt' is missing; its columns are 'text', 'label'"),
        ("path b", {}, r"t\.csv: the column 'label' is missing"),
        ("text label", {"kind": "image"}, r"t\.csv: the column 'path' is missing"),
        ("text label", {"text_column": "label"}, r"t\.csv: the column 'label' cannot hold both the texts and their"),
    ],
)  # fmt: skip
def test_a_table_without_the_column(columns, changes, message):
    with pytest.raises(UserError, match=message):
        look(write("t.csv", frame(columns=columns)), **changes)


def test_check_finds_a_missing_column_too(capsys):
    for kind in (None, "text"):
        write_params(Path("params.yaml"), **{"data.source": write("t.csv", frame(columns="a b")), "data.kind": kind})
        assert cli.main(["check"]) == 1
        assert "t.csv: no column is named as texts usually are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "schön, だね"),
        ("utf-8-sig", "schön, だね"),
        ("utf-16", "schön, だね"),
        ("cp1252", "Spaß für 5 €"),
        ("latin-1", "crème brûlée"),
    ],
)
def test_encodings_of_tables(encoding, text):
    table = frame([(text, "é"), ("plain", "b")])
    Path("t.csv").write_bytes(table.to_csv(index=False).encode(encoding))
    listing, found = look("t.csv")
    assert [*found.values()] == [text.encode(), b"plain"]
    assert listing.classes == ["b", "é"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_rows_in_another_encoding_than_the_rest(mark):
    rows = [f"schön {row},a".encode() for row in range(20)] + ["größer,b".encode("latin-1"), b"plain,b", b"x,\xe9"]
    Path("t.csv").write_bytes(mark + b"\n".join([b"text,label", *rows]))
    listing, found = look("t.csv")
    assert found["t.csv#22"] == "encoding"
    assert found["t.csv#23"] == b"plain"
    assert [row[0] for row in listing.refused] == ["t.csv#24"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"t\.csv: not a readable table \(it is empty\)"),
        (b"text,label,text\nx,a,y\n", r"t\.csv: several columns are named 'text'; rename or remove all but one"),
        (b"PK\3\4 a workbook", r"it is a ZIP archive or a file of an office program; save its text"),
        (b"text,label\n", r"rows with at least two labels are needed, found 0 \(none\) in 0 rows"),
        (b"text,label\nx,a\ny,a\n", r"found 1 \(a\) in 2 rows; is data\.label_column the right one"),
        (b"text,label\nx,a\nno, never,b\n", r"line 3 has 3 values, the header has 2; put quotes around texts"),
        (b"text,label\nno, never,b\nx,a\n", r"rows have more values than the header; put quotes"),
        (b'text,label\n"x,a\ny,b\n', r"EOF inside string starting at row 1: a quote is not closed"),
        ("text,label\n日本語テキスト,a\n".encode("shift-jis"), r"neither UTF-8 nor UTF-16 nor Windows-1252"),
        ("text,label\nx,a\n".encode("utf-16-le"), r"it looks like UTF-16, but has no byte order mark"),
        (b"text,label,split\nx,a,train\ny,b,later\n", r"row 3: split must be train, val or test, got 'later'"),
        (b"text,label,split\nx,a,test\ny,b,test\n", r"no row has the split train"),
        (b"text,label\nx,\"['a', 'b']\"\n", r"a label is a list, \['a', 'b'\]: several labels are not supported"),
        ("text,label\n" + "".join(f"text {row},{row / 7}\n" for row in range(50)), r"50 different values in 50 rows"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_texts_with_labels(content, message):
    Path("t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        look("t.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x", "label": 1}\n{"text": ', r"t\.jsonl: not a readable table \(line 2 is not JSON"),
        ("[1, 2]\n", r"t\.jsonl: not a readable table \(line 1 must be an object such as"),
        ('{"text": {"a": 1}, "label": 1}\n', r"t\.jsonl: the column 'text' must hold text or numbers"),
    ],
)
def test_what_is_no_json_lines(content, message):
    Path("t.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        look("t.jsonl")


@pytest.mark.parametrize(
    ("labels", "classes", "missing"),
    [
        ([1, 0, None, 1], ["0", "1"], 1),
        ([1.0, 0.0, float("nan"), 2.0], ["0", "1", "2"], 1),
        (["a", "NaN", "", " b "], ["a", "b"], 2),
        (["None", "a", "NULL", "a"], ["NULL", "None", "a"], 0),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_labels_that_are_numbers_or_missing(labels, classes, missing, suffix):
    table = pd.DataFrame({"text": [f"text {row}" for row in range(4)], "label": labels})
    listing, _ = look(write(f"t{suffix}", table))
    assert listing.classes == classes
    assert [row[2] for row in listing.refused] == ["no_label"] * missing


@pytest.mark.parametrize("noted", [True, False])
def test_names_of_classes_in_parquet_of_hugging_face(noted):
    table = pa.Table.from_pandas(pd.DataFrame({"text": ["a1", "b2", "c3"], "label": [1, 0, -1]}), preserve_index=False)
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
    }
    note = json.dumps({"info": {"features": features}} if noted else {"info": []})
    pq.write_table(table.replace_schema_metadata({"huggingface": note}), "t.parquet")
    listing, _ = look("t.parquet")
    assert listing.classes == (["neg", "pos"] if noted else ["-1", "0", "1"])
    assert [row[2] for row in listing.refused] == (["no_label"] if noted else [])


def test_quotes_in_tsv_belong_to_the_text_if_rows_are_lines():
    Path("t.tsv").write_text('text\tlabel\n"so it begins\ta\nan inch is 1"\tb\n"a ""b"" c"\ta\n')
    assert [*look("t.tsv")[1].values()] == [b'"so it begins', b'an inch is 1"', b'a "b" c']
    Path("t.tsv").write_text('text\tlabel\n"a\ttab"\ta\nno tab\tb\n')
    assert [*look("t.tsv")[1].values()] == [b"a\ttab", b"no tab"]


def test_semicolons_as_european_spreadsheets_write_them():
    Path("t.csv").write_text("text;label\ngood, or not;a\nbad;b\n")
    assert [*look("t.csv")[1].values()] == [b"good, or not", b"bad"]


@pytest.mark.parametrize(
    ("names", "changes", "splits"),
    [
        (("train.csv", "test.csv"), {}, {"train.csv": "train", "test.csv": "test"}),
        (("d/train.tsv", "d/dev.tsv", "d/test.tsv"), {},
         {"d/train.tsv": "train", "d/dev.tsv": "val", "d/test.tsv": "test"}),
        (("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
         {}, {"data/train-00000-of-00002.parquet": "train", "data/train-00001-of-00002.parquet": "train",
              "data/test-00000-of-00001.parquet": "test"}),
        (("2019.csv", "2020.csv"), {}, {"2019.csv": None, "2020.csv": None}),
        (("train.csv", "test.csv"), {"splits": "none"}, {"train.csv": None, "test.csv": None}),
        (("a.jsonl", "b.jsonl"), {"splits": {"train": "a", "test": "b.jsonl"}},
         {"a.jsonl": "train", "b.jsonl": "test"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_tables_that_are_splits(names, changes, splits, packed):
    for name in names:
        write(f"source/{name}", frame([(f"{text} {name}", label) for text, label in ROWS]))
    Path("source/README.md").write_text("about")
    if packed:
        shutil.make_archive("packed", "zip", "source")
    listing, found = look("packed.zip" if packed else "source", **changes)
    assert len(found) == 4 * len(names)
    assert {parse_row(item.path)[0]: item.split for item in listing.items} == splits
    assert listing.ignored == [("README.md", "not a table of texts")]


def test_a_split_beside_another_table_is_asked_about():
    for name in ("train", "more", "test"):
        write(f"source/{name}.csv", frame())
    with pytest.raises(UserError, match=r"test\.csv is named as a split, but more\.csv not; name each table"):
        look("source")


def test_tables_without_labels_are_left_out_and_said_so():
    write("source/train.csv", frame())
    write("source/test.csv", frame()[["text"]])
    listing, found = look("source")
    assert {parse_row(name)[0] for name in found} == {"train.csv"}
    assert listing.ignored == [("test.csv", "a table without these columns")]
    assert any("test.csv: no column is named as labels usually are" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("words", "changes"),
    [(("train", "dev", "test"), {}), (("a", "b", "c"), {"splits": {"train": "a", "val": "b", "test": "c"}})],
)
def test_a_column_of_splits_and_one_of_groups(words, changes):
    rows = [(*row, word, f"user {place // 2}") for place, row in enumerate(ROWS * 3) for word in words[place % 3 :][:1]]
    listing, _ = look(write("t.csv", frame(rows, "text label split user")), group_by="user", **changes)
    found = {item.path: (item.split, item.group) for item in listing.items}
    assert found["t.csv#2"] == ("train", "user 0")
    assert found["t.csv#3"] == ("val", "user 0")
    assert found["t.csv#4"] == ("test", "user 1")


def test_a_single_table_is_no_split_whatever_its_name():
    write("source/test.csv", frame())
    assert [item.split for item in look(write("source/train.csv", frame()))[0].items] == [None] * 4
