"""Read tables: .csv, .tsv, .parquet and JSON Lines, with their values as text."""

from __future__ import annotations

import ast
import codecs
import contextlib
import csv
import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.data.encodings import find_encoding
from headstart.data.prepared import read_parquet
from headstart.errors import ItemError, UserError, one_line

HEADER_BYTES = 2**16  # of the beginning of a table, to find the names of its columns
_SEPARATORS = (",", ";", "\t", "|")
_WHOLE = re.compile(r"[+-]?\d+(\.0)?")
_BLANK_LINES = re.compile(rb"(?:[ \t]*\r?\n)*")
_LINE = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


def read_table(data: bytes, name: str) -> pd.DataFrame:
    """Read a table of texts from the bytes of a file.

    Text in no known encoding keeps its bytes as surrogates, as `errors="surrogateescape"` has it, if most of the file
    is UTF-8: whoever reads those rows refuses them.

    Args:
        name: of the file, whose suffix says how it is written.

    Returns:
        A row each, under the number that a spreadsheet (of JSON Lines: an editor) shows beside it: below a header the
        first one is 2, and blank rows count, but are left out.

    Raises:
        UserError: if it is not such a table.
    """
    try:
        table = _read(data, name)
    except pd.errors.ParserWarning as error:
        raise UserError(
            f"{name}: rows have more values than the header; put quotes around texts that hold commas"
        ) from error
    except (ItemError, ValueError, OSError) as error:
        raise UserError(f"{name}: not a readable table ({_explain(error)})") from error
    blank = np.arange(len(table))
    for column in range(table.shape[1]):
        blank = blank[[_is_blank(cell) for cell in table.iloc[blank, column]]]
    return table.drop(index=table.index[blank])


def _is_blank(cell: object) -> bool:
    return not cell.strip() if isinstance(cell, str) else cell is None or cell is pd.NA or cell != cell


def _read(data: bytes, name: str) -> pd.DataFrame:
    """As `read_table`, with blank rows."""
    if _suffix(name) == ".parquet":
        table = _name_labels(read_parquet(pa.BufferReader(data)), data)
        return table.set_axis(range(1, len(table) + 1))
    content = _as_utf8(data)
    return _read_lines(content) if _suffix(name) in (".jsonl", ".ndjson") else _read_separated(content, name)


def _name_labels(table: pd.DataFrame, data: bytes) -> pd.DataFrame:
    """Put names in place of the numbers of classes, as Hugging Face's `datasets` keeps them in the schema of a file."""
    noted = (pq.read_schema(pa.BufferReader(data)).metadata or {}).get(b"huggingface", b"{}")
    with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):  # notes of another form
        for column, feature in json.loads(noted)["info"]["features"].items():
            if column in table and isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                names = dict(enumerate(map(str, feature["names"])))
                table[column] = table[column].map(names).astype(object)  # -1 and others are missing
    return table


def read_columns(head: bytes, name: str) -> list[str]:
    """Return the names of the columns of a table as they are written, by the beginning of a file (of Parquet: by all).

    Raises:
        UserError: if it is not such a table.
    """
    try:
        if _suffix(name) == ".parquet":
            return list(pq.read_schema(pa.BufferReader(head)).names)
        codec = find_encoding(head[: head.rfind(b"\n") + 1 or None])  # not in the middle of a character
        lines = re.split(r"\r\n?|\n", codecs.getincrementaldecoder(codec)("replace").decode(head))
        known = [line for line in lines[:-1] if line.strip()] or [line for line in lines[-1:] if line.strip()]
        if not known:
            raise ValueError("it is empty")
        if _suffix(name) in (".jsonl", ".ndjson"):  # a line may lack what others have
            rows = [_parse_line(line, number) for number, line in enumerate(known, 1)]
            return list(dict.fromkeys(column for row in rows for column in row))
        options: dict[str, Any] = {"sep": _separator(known[0], name), "nrows": 1, "index_col": False}
        columns = pd.read_csv(io.StringIO(known[0]), **options).columns
        written = pd.read_csv(io.StringIO(known[0]), header=None, dtype=str, keep_default_na=False, **options).iloc[0]
        # pandas numbers columns of the same name.
        return list(columns.where(~written.duplicated(keep=False) | (written == ""), written))
    except (ItemError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{name}: not a readable table ({_explain(error)})") from error


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _explain(error: Exception) -> str:
    if ragged := _LINE.search(str(error)):
        wanted, line, found = ragged.groups()
        return f"line {line} has {found} values, the header has {wanted}; put quotes around texts that hold separators"
    if "EOF inside string" in str(error):
        return f"{one_line(error)}: a quote is not closed; write a quote inside of a text twice"
    return one_line(error)


def _as_utf8(data: bytes) -> bytes:
    """Return the bytes of a text file as UTF-8, without a byte order mark; raises ItemError as `find_encoding`."""
    codec = find_encoding(data)
    if codec in ("utf-8", "utf-8-sig"):  # perhaps but for some rows
        return data.removeprefix(codecs.BOM_UTF8)
    return data.decode(codec).encode()


def _separator(header: str, name: str) -> str:
    """Return what separates the values of a header: a tab in a .tsv if it has one, else what is there most often."""
    counts = {separator: re.sub(r'"[^"]*"', "", header).count(separator) for separator in _SEPARATORS}
    if _suffix(name) == ".tsv" and (counts["\t"] or not any(counts.values())):
        return "\t"
    return max(counts, key=lambda separator: counts[separator])


def _read_separated(content: bytes, name: str) -> pd.DataFrame:
    above = _BLANK_LINES.match(content)[0]  # type: ignore[index]  # it may be empty
    content = content[len(above) :]
    header = content.split(b"\n", 1)[0].decode("utf-8", "replace")
    separator = _separator(header, name)
    options: dict[str, Any] = {"sep": separator, "encoding_errors": "surrogateescape", "dtype": object}
    lines = list(filter(bytes.strip, content.splitlines())) if separator == "\t" and '"' not in header else []
    # If a row is a line, quotes are a part of the texts.
    plain = len({line.count(b"\t") for line in lines}) == 1
    table = read_csv(
        io.BytesIO(content), skip_blank_lines=False, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, **options
    )
    if plain:
        table = pd.DataFrame(
            {name: [_unquote(cell) for cell in column] for name, column in table.items()}, dtype=object
        )
    first = 2 + above.count(b"\n")
    return table.set_axis(range(first, first + len(table)))


def _unquote(cell: Any) -> Any:
    """Return a cell without quotes that are there only because of others inside, which are doubled."""
    if not isinstance(cell, str):  # of a blank line
        return cell
    inner = cell[1:-1]
    quoted = cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def read_csv(file: Path | IO[bytes], **options: Any) -> pd.DataFrame:
    """Read a table of text. Of values beyond the header, pandas only warns, and only in the first row."""
    options = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "index_col": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(file, **options)
        except pd.errors.ParserWarning:
            _rewind(file)
            header = pd.read_csv(file, nrows=0, **options).columns
            _rewind(file)
            table = pd.read_csv(file, **options, names=[*header, None], skiprows=1)
            if table[None].any():
                raise
            return table[header]  # each row ends in a comma


def _rewind(file: Path | IO[bytes]) -> None:
    if not isinstance(file, Path):
        file.seek(0)


def _read_lines(content: bytes) -> pd.DataFrame:
    """Read JSON Lines: an object in each line."""
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    rows = {number: _parse_line(line, number) for number, line in enumerate(lines, 1) if line.strip()}
    return pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)


def _parse_line(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON: {one_line(error)}") from error
    if not isinstance(row, dict):
        raise ValueError(f'line {number} must be an object such as {{"text": "...", "label": "..."}}')
    return row


def as_text(source: str, column: pd.Series, whole: bool = False) -> list[str]:
    """Return text and numbers as text, a missing value as empty text.

    Args:
        whole: whether whole numbers are written without `.0`, as pandas stores them if some are missing.

    Raises:
        UserError: naming the column, if it holds something else.
    """
    if whole and pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    if pd.api.types.infer_dtype(column) in ("bytes", "mixed"):
        raise UserError(f"{source}: the column {column.name!r} must hold text or numbers; write it so")
    return list(map(str, column.astype(object).where(column.notna(), "")))


def read_labels(source: str, column: pd.Series) -> list[str]:
    """Return labels as text, raises UserError as `as_text`, or if one is a list."""
    if (row := _first_list(column)) is not None:
        raise UserError(
            f"{source}: a label is a list, {' '.join(str(row).split())[:80]}: several labels are not supported; "
            "give each example its most important label, or train a classifier for each"
        )
    return as_text(source, column, whole=True)


def _first_list(column: pd.Series) -> object | None:
    """Return the first value of a column that is a list, or the text of one, such as "['cat', 'dog']"."""
    if column.dtype != object and not pd.api.types.is_string_dtype(column):
        return None
    for value in column:
        if isinstance(value, (list, tuple, set, np.ndarray)):
            return value
        if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                if isinstance(ast.literal_eval(value), list):
                    return value
    return None


def whole_numbers(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return labels without their `.0` if all of them are whole numbers and some have it, and a sentence about that."""
    if not any(label.endswith(".0") for label in labels) or not all(map(_WHOLE.fullmatch, labels)):
        return list(labels), []
    whole = [label.removesuffix(".0") for label in labels]
    row = next(row for row, label in enumerate(labels) if label != whole[row])
    return whole, [f"labels such as {labels[row]} are read as whole numbers, e.g. {whole[row]}"]
