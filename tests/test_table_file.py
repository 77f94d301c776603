"""Beginnings of tables, by which their columns are found."""

from __future__ import annotations

import json

import pytest

from headstart.data.files import Folder
from headstart.data.table_file import HEADER_BYTES, read_columns, read_table
from headstart.data.tables import Columns, Rows


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
