"""Examples that are typed or stand in the cells of a table, where the model takes such, as texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from headstart.data.sources import is_table
from headstart.data.table_file import as_text, first_row, read_table
from headstart.data.tables import Columns, row_name
from headstart.errors import UserError
from headstart.modalities import Modality


def check_options(texts: Sequence[str], column: str | None, modality: Modality) -> None:
    """Raise UserError if texts or a column are given for a model that takes files alone."""
    option = "--text" if texts else "--column" if column is not None else ""
    if option and not modality.inline:
        raise UserError(
            f"{option}: this model takes {modality.noun}s, which are files; give files, folders or patterns"
        )


def is_table_of_cells(name: str, modality: Modality) -> bool:
    """Whether an input is a table whose rows are the examples."""
    return modality.inline and is_table(name) and os.path.isfile(name)


def read_cells(file: str, column: str | None) -> dict[str, str]:
    """Return the cells of a column of a table by the names of their rows, `reviews.csv#2`.

    Args:
        column: None: the only one, or found by the usual names.

    Raises:
        UserError: if it is no table, or has no such column.
    """
    table = read_table(Path(file).read_bytes(), file)
    names = list(map(str, table.columns))
    if not names or table.empty:
        raise UserError(f"{file}: the table is empty")
    wanted = names[0] if column is None and len(names) == 1 else column
    try:
        found = Columns(wanted, names[0]).find(names, file).text
    except UserError as error:
        raise UserError(str(error).replace("set data.text_column to one", "give --column with one")) from error
    cells = as_text(file, table[found])
    return {row_name(file, number): cell for number, cell in enumerate(cells, first_row(file))}
