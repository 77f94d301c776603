"""Beginnings of tables, by which their columns are found; and odd ones."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from test_tables import frame, look, write

from headstart.data.files import Folder
from headstart.data.table_file import HEADER_BYTES, read_columns, read_table
from headstart.data.tables import Columns, Rows
from headstart.errors import UserError


@pytest.mark.parametrize("name", ["long.jsonl", "long.csv"])
def test_columns_are_found_behind_a_long_first_text(name, tmp_path):
    text = "word " * HEADER_BYTES
    content = json.dumps({"text": text, "label": "a"}) if name == "long.jsonl" else f"text,label\n{text},a"
    (tmp_path / name).write_text(content)
    rows = Rows(Folder(tmp_path), Columns())
    assert rows.column_names(name) == ["text", "label"]
    assert rows.load(name).text.tolist() == [text]


def test_only_the_beginning_of_other_tables_is_read(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("\ntext,label\n" + "good film,a\n" * HEADER_BYTES)
    counts, plain = [], Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, name, count=-1: counts.append(count) or plain(self, name, count))
    assert Rows(Folder(tmp_path), Columns()).column_names("t.csv") == ["text", "label"]
    assert counts == [HEADER_BYTES]


def test_separators_of_lines_in_unicode_may_stand_in_json():
    content = '{"text": "one\u2028two\x85", "label": "a"}\n'.encode()
    assert read_columns(content, "t.jsonl") == ["text", "label"]
    assert read_table(content, "t.jsonl").text.tolist() == ["one\u2028two\x85"]


def test_the_first_line_of_json_may_lack_a_column():
    content = b'{"text": "a"}\n\n{"text": "b", "label": "x"}\n{"more": "cut off'
    assert read_columns(content, "t.jsonl") == ["text", "label"]
    assert read_columns(b'\n{"text": "a"}', "t.jsonl") == ["text"]


def test_a_byte_order_mark_does_not_stand_in_a_name():
    for name, content in (("t.csv", "text,label\nx,a\n"), ("t.jsonl", '{"text": "x", "label": "a"}\n')):
        assert list(read_table(content.encode("utf-8-sig"), name)) == ["text", "label"]


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("t.csv", "text,label\na,x\n\n   \n,\nb,y\n\n", [2, 6]),
        ("t.csv", '\r\n \r\ntext,label\r\n"two\r\n\r\nlines",x\r\n\r\nb,y', [4, 6]),
        ("t.tsv", 'text\tlabel\n\na "quote\tx\n\nb\ty\n', [3, 5]),
        ("t.csv", "text\n\na\n\nb\n", [3, 5]),
        ("t.jsonl", '\n{"text": "a"}\n\n{"text": "b"}\n', [2, 4]),
    ],
)
def test_rows_are_numbered_as_they_are_shown_and_blank_ones_left_out(name, content, numbers):
    table = read_table(content.encode(), name)
    assert table.index.tolist() == numbers
    assert table.text.tolist()[1] == "b"


def test_halves_of_pairs_of_surrogates_in_labels_and_groups(empty_workspace):
    rows = [("one", "a", "\ud800"), ("two", "\ud800", "x"), ("three", "b", "x")]
    lines = [json.dumps({"text": text, "label": label, "user": user}) for text, label, user in rows]
    Path("t.jsonl").write_text("\n".join(lines))
    listing, _ = look("t.jsonl", group_by="user")
    assert [row[:3] for row in listing.refused] == [("t.jsonl#2", "", "encoding")]
    assert [item.group for item in listing.items] == [r"\ud800", "x"]


@pytest.mark.parametrize("name", ["t.json", "t.xlsx"])
def test_files_that_hold_tables_in_another_form_come_with_advice(name, empty_workspace):
    Path(name).write_text("[]")
    with pytest.raises(UserError, match=r"from a \.jsonl|save the sheet as a \.csv"):
        look(name)


def test_an_archive_whose_table_leads_out_of_it_says_so(empty_workspace):
    write("t.csv", frame())
    with tarfile.open("t.tar", "w") as archive:
        archive.add("t.csv", "../t.csv")
    with pytest.raises(UserError, match=r"found 0 .*; \.\./t\.csv leads out of the archive"):
        look("t.tar", kind="text")


def test_tsv_without_tabs_is_separated_as_its_header_is(empty_workspace):
    Path("t.tsv").write_text("text,label\ngood,a\nbad,b\n")
    assert [*look("t.tsv")[1].values()] == [b"good", b"bad"]
