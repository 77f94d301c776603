"""What a user asks predictions for: files, folders, patterns, addresses, boxes, texts, or a list on standard input."""

from __future__ import annotations

import glob
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headstart.data.boxes import Cut, Cutters, parse_name
from headstart.data.coco import list_boxes
from headstart.data.files import Folder
from headstart.data.recognition import sort_files
from headstart.data.remote import filesystem
from headstart.data.sources import image_place, is_coco, is_table, open_source
from headstart.errors import ItemError, UserError, one_line
from headstart.modalities import Modality
from headstart.paths import is_address
from headstart.serving.cells import InlineInput, check_options, read_lines, read_rows

STDIN = "-"
MAX_BYTES, TIMEOUT = 2**26, 30.0  # of a file at an address; seconds
_CHUNK = 2**20


class Inputs(NamedTuple):
    """What is meant. Each file that was looked at is in one of these.

    Attributes:
        names: of files and addresses to predict, each once.
        refused: name and reason of files in folders that are meant as examples and cannot be read.
        ignored: name and reason of files in folders that are not meant as examples.
    """

    names: list[str]
    refused: list[tuple[str, str]]
    ignored: list[tuple[str, str]]

    def add(self, other: Inputs) -> None:
        """Take over what another one has."""
        self.names.extend(other.names)
        self.refused.extend(other.refused)
        self.ignored.extend(other.ignored)


def find_inputs(
    given: Sequence[str], modality: Modality, texts: Sequence[str] = (), column: str | None = None
) -> Inputs:
    """Return all files that are meant, those of a folder or pattern sorted, and all texts.

    Args:
        given: paths of files; of folders, for the examples below them, which are found as in training; patterns, as
            `photos/**/*.jpg`; addresses of files; COCO annotations as .json, for their boxes; `-`: lines of standard
            input, each a path or an address. What is listed there but missing, or a folder without examples, is among
            the names, too: it is reported with the files that cannot be read, so that the rest is processed. If an
            example can be given as it is, as texts can, `-` stands for lines that are examples, and a table for its
            rows.
        modality: says which files are examples, by their suffixes or first bytes.
        texts: examples as they are.
        column: of tables, that holds the texts; None: found by its name.

    Raises:
        UserError: if a name does not exist, or a folder or pattern has no example.
    """
    check_options(modality, texts, column)
    found = Inputs([InlineInput(text if text.strip() else "--text", text) for text in texts], [], [])
    if not given and not texts:
        raise UserError(
            f"nothing to predict: give files of {modality.noun}s, folders, patterns in quotes, addresses, or -"
        )
    tables = [
        name for name in given if modality.inline and is_table(name) and (is_address(name) or os.path.isfile(name))
    ]
    if column is not None and not tables:
        raise UserError(f"--column {column}: no input is a table; give a .csv, .tsv, .parquet or .jsonl file")
    for name in given:
        if modality.inline and name == STDIN:
            found.names.extend(read_lines(sys.stdin.buffer.read()))
        elif name in tables:
            found.names.extend(_rows(name, column))
        elif is_coco(name) and not modality.inline and (is_address(name) or os.path.isfile(name)):
            found.names.extend(_boxes(name))
        elif name == STDIN:
            for line in _read_stdin():
                inside = _examples_below(line, modality) if os.path.isdir(line) else Inputs([], [], [])
                found.add(inside)
                found.names.extend([] if inside.names or inside.refused else [line])
        elif is_address(name) or os.path.isfile(name):
            found.names.append(name)
        elif os.path.isdir(name):
            found.add(_check(name, _examples_below(name, modality), _no_example(modality)))
        elif os.path.exists(name):
            raise UserError(f"{name} is neither a file nor a folder")
        elif glob.has_magic(name):
            matches = [match for match in sorted(glob.glob(name, recursive=True)) if not os.path.isdir(match)]
            nothing = f"no {modality.noun} matches this pattern ({', '.join(modality.suffixes)})"
            found.add(_check(name, _sort(matches, modality), nothing))
        else:
            raise UserError(f"{name} does not exist; give files, folders, patterns in quotes, or addresses")
    if not found.names and not found.refused:
        raise UserError("nothing to predict: standard input is empty")
    unique: dict[str | tuple[int, str], str] = {}
    for place, name in enumerate(found.names):
        path = name if is_address(name) else str(Path(name))  # `./a.png` is the `a.png` of a folder
        unique.setdefault((place, name) if isinstance(name, InlineInput) else path, name)
    return Inputs(list(unique.values()), list(dict.fromkeys(found.refused)), list(dict.fromkeys(found.ignored)))


def _check(name: str, inside: Inputs, nothing: str) -> Inputs:
    """Return what is in a folder or pattern if that is something to predict."""
    if inside.names:
        return inside
    reasons = Counter(reason for _, reason in inside.refused or inside.ignored).most_common(1)
    raise UserError(f"{name}: {nothing}" + "".join(f"; {count} files there: {reason}" for reason, count in reasons))


def _rows(table: str, column: str | None) -> list[InlineInput]:
    try:
        return read_rows(fetch(table) if is_address(table) else _read(table), table, column)
    except ItemError as error:
        raise UserError(f"{table}: {error}") from error


def _boxes(file: str) -> list[str]:
    """The names of the boxes in COCO annotations, image by image; those that cannot be used are reported."""
    with open_source(file) as opened:
        rows = sorted(list_boxes(opened, file), key=lambda row: row.image)  # many files mix the boxes of all images
    good = [row.path for row in rows if not row.reason]
    bad = [row.detail for row in rows if row.reason]
    if bad:
        print(f"predict: {file}: {len(bad)} of {len(rows)} boxes are left out, the first: {bad[0]}", file=sys.stderr)
    if not good:
        raise UserError(f"{file}: it has no boxes to predict")
    place = image_place(file)
    return [name if place == "." else f"{place}/{name}" for name in good]


def _read_stdin() -> list[str]:
    """The lines of standard input that are not blank."""
    text = os.fsdecode(sys.stdin.buffer.read())
    if "\0" in text:
        raise UserError(
            "standard input: NUL between names; give one name per line: find without -print0, git without -z"
        )
    # Split at line feeds only: other characters that str.splitlines() splits at can be part of a name.
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip()]


def _examples_below(folder: str, modality: Modality) -> Inputs:
    opened = Folder(Path(folder)).scan()
    inside = _sort(sorted(str(Path(folder, name)) for name in opened.files), modality)
    inside.ignored.extend((str(Path(folder, name)), reason) for name, reason in opened.ignored)
    return inside


def _sort(names: list[str], modality: Modality) -> Inputs:
    """Find the examples among files by the rule of training."""
    found = sort_files(names, _read, modality)
    return Inputs(found.names, [(name, detail) for name, _, detail in found.refused], found.ignored)


def _read(name: str, count: int = -1) -> bytes:
    return Folder(Path(name).parent).read(Path(name).name, count)


def _no_example(modality: Modality) -> str:
    return f"no {modality.noun} in this folder ({', '.join(sorted(modality.suffixes))})"


class InputReader:
    """Reads inputs by the names that `find_inputs` returns; threads may call it at once.

    An image is read and decoded once for all of its boxes that are asked for in a row.

    Args:
        margin: what is added on each side of a box, as a share of its longer side.
    """

    def __init__(self, modality: Modality, margin: float = 0.0) -> None:
        self._modality, self._margin = modality, margin
        self._cutters = Cutters(self._decode)

    def read(self, name: str) -> bytes:
        """Return the content of a file or an address, or what a box cuts out of it.

        Raises:
            ItemError: if it cannot be read.
        """
        if isinstance(name, InlineInput):
            return self._modality.parse_request(name.content)
        path, box = parse_name(name)
        if box and not os.path.exists(name):
            return self._cutters.get(path, "")(box, self._margin)
        return self._read_file(name)

    def _decode(self, path: str) -> Cut:
        return self._modality.cutter(self._read_file(path))

    def _read_file(self, name: str) -> bytes:
        if is_address(name):
            return fetch(name)
        if os.path.isdir(name):
            raise ItemError("missing", _no_example(self._modality))
        return _read(name)


def fetch(address: str) -> bytes:
    """Return the file at an address, of at most MAX_BYTES, within TIMEOUT seconds.

    Raises:
        ItemError: missing, unreadable or too_large.
    """
    answers: queue.SimpleQueue[bytes | ItemError] = queue.SimpleQueue()
    # In a thread that is abandoned if it hangs: not every driver has a timeout of its own.
    threading.Thread(target=lambda: answers.put(_fetch(address)), daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    except queue.Empty:
        raise ItemError("unreadable", f"no answer within {TIMEOUT:g} s") from None
    if isinstance(answer, ItemError):
        raise answer
    return answer


def _fetch(address: str) -> bytes | ItemError:
    try:
        fs, path = filesystem(address)
        # Over HTTP in one piece: not every server can send parts of a file.
        with fs.open(path, "rb", **({"block_size": 0} if address.startswith("http") else {})) as stream:
            data = bytearray()
            while len(data) <= MAX_BYTES and (chunk := stream.read(_CHUNK)):
                data += chunk
    except FileNotFoundError as error:  # over HTTP also if a server refuses, or none answers
        status = getattr(error.__cause__, "status", None)
        if status not in (None, 404):
            return ItemError("unreadable", f"the server answers with status {status}")
        said = "" if status else " ".join(str(error.__cause__ or "").split())[:200]
        return ItemError("missing", f"no such file, or no answer ({said})" if said else "no such file")
    except Exception as error:  # each driver has errors of its own
        return ItemError("unreadable", one_line(error))
    return bytes(data) if len(data) <= MAX_BYTES else ItemError("too_large", f"larger than {MAX_BYTES >> 20} MiB")
