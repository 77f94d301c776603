"""Tables whose cells are examples, such as texts: which columns are meant, and a source that reads the rows.

`reviews.csv#17` is a row of `reviews.csv`, numbered as in a spreadsheet, see `table_file.read_table`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd

from headstart.data.files import Folder, Source
from headstart.data.sources import TABLES, is_table, local_file
from headstart.data.table_file import HEADER_BYTES, as_text, read_columns, read_table
from headstart.errors import ItemError, UserError

TEXT_NAMES = (
    *("text", "sentence", "review", "content", "message", "utterance", "query", "question", "tweet", "comment", "body"),
    *("document", "sms", "texts", "sentences", "review_text", "comment_text", "description", "headline", "abstract"),
    *("docstring", "title"),
)
LABEL_NAMES = (
    *("label", "category", "class", "intent", "target", "labels", "class_name", "sentiment", "emotion", "topic"),
    *("genre", "rating", "stars"),
)
_ROW = re.compile(rf"(.+(?:{'|'.join(map(re.escape, TABLES))}))#(\d+)", re.DOTALL | re.IGNORECASE)
_MAX_SHOWN = 12  # columns in a message


class Columns(NamedTuple):
    """The columns that hold texts and labels; None: found by their names."""

    text: str | None = None
    label: str | None = None

    def find(self, names: Sequence[str], table: str) -> Columns:
        """Return the names of both columns in a table that has the columns `names`.

        Raises:
            UserError: if one is missing, comes twice, or both are the same.
        """
        text = _find(names, self.text, TEXT_NAMES, "text", table, "set data.text_column to")
        label = _find(names, self.label, LABEL_NAMES, "label", table, "set data.label_column to")
        if text == label:
            raise UserError(
                f"{table}: the column {text!r} cannot hold both the texts and their labels; set data.text_column and "
                "data.label_column to two columns"
            )
        for column in (text, label):
            _check_once(names, column, table)
        return Columns(text, label)


def read_texts(data: bytes, table: str, column: str | None) -> dict[int, str]:
    """Return the texts of a table by the numbers of their rows.

    Args:
        data: the bytes of its file.
        column: that holds the texts; None: the only one, or found by its name.

    Raises:
        UserError: if it is no table, has no rows, or lacks the column.
    """
    frame = read_table(data, table)
    if frame.empty:
        raise UserError(f"{table}: the table has no rows")
    column = frame.columns[0] if column is None and len(frame.columns) == 1 else column
    column = _find(list(frame.columns), column, TEXT_NAMES, "text", table, "give --column with")
    if f"{column}.1" in frame:  # as pandas names another one
        _check_once(read_columns(data, table), column, table)
    return _numbered(table, frame, column)


def _check_once(names: Sequence[str], column: str, table: str) -> None:
    if list(names).count(column) > 1:
        raise UserError(f"{table}: several columns are named {column!r}; rename or remove all but one of them")


def _numbered(table: str, frame: pd.DataFrame, column: str) -> dict[int, str]:
    return dict(zip(frame.index, as_text(table, frame[column]), strict=True))


def _find(names: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, table: str, advice: str) -> str:
    shown = ", ".join(map(repr, names[:_MAX_SHOWN])) + (" and more" if len(names) > _MAX_SHOWN else "")
    if wanted is not None:
        if wanted in names:
            return wanted
        problem = f"the column {wanted!r} is missing"
    else:
        plain = {re.sub(r"\W+", "_", name.strip().casefold()): name for name in reversed(list(map(str, names)))}
        if found := next((plain[name] for name in usual if name in plain), None):
            return found
        problem = f"no column is named as {what}s usually are ({', '.join(usual[:6])} and the like)"
    raise UserError(f"{table}: {problem}; its columns are {shown}: {advice} one of them")


def row_name(table: str, number: int) -> str:
    """Return the name of a row."""
    return f"{table}#{number}"


def parse_row(name: str) -> tuple[str, int] | None:
    """Return the table and the number of the row that `name` means; None if it is the name of a file."""
    match = _ROW.fullmatch(name) if "#" in name else None
    return (match[1], int(match[2])) if match else None


class Rows(Source):
    """Reads the rows of tables, each as a file of its own, as UTF-8; other names as another source does.

    A table is read once, when the first of its rows is.

    Args:
        source: closed with this one.
        columns: those that hold texts and labels.
        single: the table that `data.source` itself is, None if it is something else.

    Attributes:
        tables: names of the tables; of a folder or an archive after `scan`.
    """

    def __init__(self, source: Source, columns: Columns, single: str | None = None) -> None:
        super().__init__()
        self._source, self.columns, self._address = source, columns, single
        self.single = (single.split("?")[0] if "://" in single else single).rsplit("/", 1)[-1] if single else None
        self._texts: dict[str, dict[int, str]] = {}
        self._lock = threading.Lock()
        self.files, self.folders = self._source.files, self._source.folders
        self.linked, self.refused, self.ignored = self._source.linked, self._source.refused, self._source.ignored

    @property
    def inline(self) -> bool:  # type: ignore[override]
        return self.single is not None and not self.is_manifest(self.single)

    @property
    def tables(self) -> list[str]:
        return [self.single] if self.single else [name for name in self.files if is_table(name)]

    def scan(self) -> Rows:
        self._source.scan()  # fills the lists that this one shares
        return self

    def names_in(self, folder: str) -> Iterable[str]:
        return self._source.names_in(folder)

    def _place(self, table: str) -> tuple[Source, str]:
        """Return the source that has a table, and its name there."""
        if table != self.single or not self._address:
            return self._source, table
        file = local_file(self._address)
        return Folder(file.parent), file.name

    def column_names(self, table: str) -> list[str]:
        """Return the names of the columns of a table, by its beginning; raises as `load`."""
        source, name = self._place(table)
        head = b"" if name.lower().endswith(".parquet") else _read(source, name, table, HEADER_BYTES)
        whole = b"\n" in head.strip()  # a line of JSON is as long as its texts
        return read_columns(head if whole else _read(source, name, table), table)

    def is_manifest(self, table: str) -> bool:
        """Whether a table names files: it has the columns path and label, and no column of texts is set."""
        return self.columns.text is None and {"path", "label"} <= set(self.column_names(table))

    def load(self, table: str) -> pd.DataFrame:
        """Read a table, and keep its texts.

        Raises:
            UserError: if it cannot be read, is no table, or lacks a column.
        """
        source, name = self._place(table)
        frame = read_table(_read(source, name, table), table)
        columns = self.columns.find(list(frame.columns), table)
        self._texts[table] = _numbered(table, frame, columns.text or "")
        return frame

    def _cell(self, table: str, number: int) -> str | None:
        """Return the text in a row, None if there is no such row."""
        with self._lock:
            if table not in self._texts:
                self.load(table)
            return self._texts[table].get(number)

    def read(self, name: str, count: int = -1) -> bytes:
        row = parse_row(name)
        if not row:
            return self._source.read(name, count)
        cell = self._cell(*row)
        if cell is None:
            raise ItemError("missing", "no such row")
        try:
            return cell.encode()[: count if count >= 0 else None]
        except UnicodeEncodeError as error:
            raise ItemError("encoding", "not UTF-8, other rows of the table are; save it as UTF-8") from error

    def state(self, name: str) -> tuple[int, str | None]:
        """Return what `Source.state` does; a row has no version: hashing it is cheaper than looking that up."""
        row = parse_row(name)
        return (len(self._cell(*row) or ""), None) if row else self._source.state(name)

    def origin_version(self, name: str) -> str | None:
        return self._source.origin_version(name)

    def watch(self) -> None:
        self._source.watch()

    def opener(self) -> Callable[[], Source] | None:
        """Return what opens the files; not the rows, which each process would have to read anew."""
        opener = None if self._texts else self._source.opener()
        return opener and partial(_reopen, opener, self.columns)

    def close(self) -> None:
        self._texts.clear()
        self._source.close()


def _reopen(opener: Callable[[], Source], columns: Columns) -> Rows:
    return Rows(opener(), columns)


def _read(source: Source, name: str, table: str, count: int = -1) -> bytes:
    try:
        return source.read(name, count)
    except ItemError as error:
        raise UserError(f"{table}: {error}") from error
