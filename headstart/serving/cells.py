"""Examples that are given as they are, and not as files: on the command line, as lines of standard input, as cells."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.data.encodings import decode_text
from headstart.data.tables import read_texts, row_name
from headstart.errors import ItemError, UserError
from headstart.modalities import Modality


class InlineInput(str):
    """The name of such an example, and its content; the text itself is the name of one that has no other."""

    content: str

    def __new__(cls, name: str, content: str | None = None) -> InlineInput:
        given = super().__new__(cls, name)
        given.content = name if content is None else content
        return given


def check_options(modality: Modality, texts: Sequence[str], column: str | None) -> None:
    """Check that a model takes examples that are given as they are.

    Raises:
        UserError: naming the option.
    """
    option = "--text" if texts else "--column" if column is not None else ""
    if option and not modality.inline:
        raise UserError(f"{option}: this model takes {modality.noun}s, not texts; give files, folders or addresses")


def read_lines(data: bytes) -> list[InlineInput]:
    """Return the texts in standard input, a line each; blank lines are left out.

    Raises:
        UserError: if they are in no known encoding.
    """
    try:
        content, _ = decode_text(data)
    except ItemError as error:
        raise UserError(f"standard input: {error}") from error
    lines = (line.removesuffix("\r") for line in content.split("\n"))
    return [InlineInput(line) for line in lines if line.strip()]


def read_rows(data: bytes, table: str, column: str | None) -> list[InlineInput]:
    """Return the texts of a table under names such as `reviews.csv#17`; arguments and errors as of `read_texts`."""
    rows = read_texts(data, table, column)
    return [InlineInput(row_name(table, number), text) for number, text in rows.items()]
