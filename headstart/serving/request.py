"""What is in a request to the model server: MLflow's forms of JSON."""

from __future__ import annotations

import json
from email.message import Message
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.errors import ItemError, one_line
from headstart.serving.limits import MAX_EXAMPLES, RequestError

if TYPE_CHECKING:
    from headstart.modalities import Modality

FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")  # in which MLflow takes rows
_MISSING = object()


class Example(NamedTuple):
    """An example in a request.

    Attributes:
        data: its file.
        memory: how many bytes loading it takes at most.
    """

    data: bytes
    memory: int


def check_content_type(header: str | None) -> None:
    """Check that a request is JSON in UTF-8.

    Raises:
        RequestError: 415.
    """
    kind = Message()
    kind["Content-Type"] = header or ""
    if not header or kind.get_content_type() != "application/json":
        raise RequestError(415, f"Content-Type must be application/json, got {header or 'none'}")
    if kind.get_content_charset("utf-8") not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(415, f"the server only supports UTF-8, got {header}")


def read_examples(body: bytearray, modality: Modality, size: int) -> list[Example | ItemError]:
    """Return the examples of a request in their order, or what is wrong with them.

    Args:
        size: of an example, as `extract.size` counts it.

    Raises:
        RequestError: 400 if it is not of one of the FORMS, 413 if it has too many examples.
    """
    values = read_values(body, modality.column)
    body.clear()
    if len(values) > MAX_EXAMPLES:
        raise RequestError(413, f"{len(values)} {modality.noun}s; send at most {MAX_EXAMPLES} in a request")
    examples: list[Example | ItemError] = []
    for value in values:
        try:
            if value is _MISSING:
                raise ItemError("missing", "missing")
            data = modality.parse_request(value)
            examples.append(Example(data, modality.memory(data, size)))
        except ItemError as error:
            examples.append(error)
    return examples


def read_values(body: bytes | bytearray, column: str) -> list[Any]:
    """Return the value of `column` in each row of a request.

    Raises:
        RequestError: 400.
    """
    try:
        content = json.loads(body)
    except RecursionError:
        raise RequestError(400, "the JSON is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"not JSON: {one_line(error)}") from error
    except ValueError:  # Python's limit for integers
        raise RequestError(400, "the JSON has a number of too many digits") from None
    forms = [name for name in FORMS if name in content] if isinstance(content, dict) else []
    example = f'{{"{FORMS[0]}": [{{"{column}": "..."}}]}}'
    if len(forms) != 1:
        raise RequestError(400, f"give a JSON object with one of {', '.join(FORMS)}, as {example}")
    form, rows = forms[0], content[forms[0]]
    if form == "dataframe_split" and isinstance(rows, dict):
        names, rows = rows.get("columns"), rows.get("data")
        place = names.index(column) if isinstance(names, list) and column in names else None
        if isinstance(rows, list):
            return [row[place] if _has(row, place) else _MISSING for row in rows]
    elif form == "dataframe_records" and isinstance(rows, list):
        return [row.get(column, _MISSING) if isinstance(row, dict) else _MISSING for row in rows]
    elif form in ("instances", "inputs"):
        rows = rows.get(column) if isinstance(rows, dict) else rows  # one of columns
        if isinstance(rows, list):
            return [row.get(column, _MISSING) if isinstance(row, dict) else row for row in rows]
    raise RequestError(400, f"{form} must hold a list of {column}s, as {example}")


def _has(row: Any, place: int | None) -> bool:
    return isinstance(row, list) and place is not None and place < len(row)
