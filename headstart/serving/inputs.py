"""What a user asks predictions for: files, folders, patterns, addresses, boxes, or a list on standard input."""

from __future__ import annotations

import glob
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from headstart.data.boxes import Cut, Cutters, parse_name
from headstart.data.coco import list_boxes
from headstart.data.files import Folder
from headstart.data.recognition import sort_files
from headstart.data.remote import filesystem
from headstart.data.sources import image_place, is_coco, open_source
from headstart.errors import ItemError, UserError, one_line
from headstart.modalities import Modality
from headstart.paths import is_address
from headstart.serving.cells import is_table_of_cells, read_cells

STDIN = "-"
MAX_BYTES, TIMEOUT = 2**26, 30.0  # of a file at an address; seconds
_CHUNK = 2**20


class Inputs(NamedTuple):
    """What is meant. Each file that was looked at is in one of these.

    Attributes:
        names: of files and addresses to predict, each once.
        refused: name and reason of files in folders that are meant as examples and cannot be read.
        ignored: name and reason of files in folders that are not meant as examples.
        cells: what is no file, by those of the names that are no names of files.
    """

    names: list[str]
    refused: list[tuple[str, str]]
    ignored: list[tuple[str, str]]
    cells: dict[str, str]

    @classmethod
    def none(cls) -> Inputs:
        """Return no inputs."""
        return cls([], [], [], {})

    def add(self, other: Inputs) -> None:
        """Take over what another one has."""
        self.names.extend(other.names)
        self.cells.update(other.cells)
        self.refused.extend(other.refused)
        self.ignored.extend(other.ignored)


def find_inputs(
    given: Sequence[str], modality: Modality, texts: Sequence[str] = (), column: str | None = None
) -> Inputs:
    """Return all files that are meant, those of a folder or pattern sorted.

    Args:
        given: paths of files; of folders, for the examples below them, which are found as in training; patterns, as
            `photos/**/*.jpg`; addresses of files; COCO annotations as .json, for their boxes; `-`: lines of standard
            input, each a path or an address. What is listed there but missing, or a folder without examples, is among
            the names, too: it is reported with the files that cannot be read, so that the rest is processed. If
            examples are texts, a line of standard input is one itself, and so is a row of a table.
        modality: says which files are examples, by their suffixes or first bytes.
        texts: examples themselves.
        column: of tables; None: found by its name.

    Raises:
        UserError: if a name does not exist, or a folder or pattern has no example.
    """
    found = Inputs.none()
    found.cells.update({text: text for text in texts})
    for name in given:
        if is_table_of_cells(name, modality):
            found.cells.update(read_cells(name, column))
        elif name == STDIN and modality.inline:
            found.cells.update({line: line for line in _read_stdin()})
        elif is_coco(name) and (is_address(name) or os.path.isfile(name)):
            found.names.extend(_boxes(name))
        elif name == STDIN:
            for line in _read_stdin():
                inside = _examples_below(line, modality) if os.path.isdir(line) else Inputs.none()
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
    if not found.names and not found.refused and not found.cells:
        problem = "standard input is empty" if given else f"give files of {modality.noun}s"
        raise UserError(f"nothing to predict: {problem}")
    unique: dict[str, str] = {}
    for name in found.names:
        unique.setdefault(name if is_address(name) else str(Path(name)), name)  # `./a.png` is the `a.png` of a folder
    names = [*found.cells, *(name for name in unique.values() if name not in found.cells)]
    return Inputs(names, list(dict.fromkeys(found.refused)), list(dict.fromkeys(found.ignored)), found.cells)


def _check(name: str, inside: Inputs, nothing: str) -> Inputs:
    """Return what is in a folder or pattern if that is something to predict."""
    if inside.names:
        return inside
    reasons = Counter(reason for _, reason in inside.refused or inside.ignored).most_common(1)
    raise UserError(f"{name}: {nothing}" + "".join(f"; {count} files there: {reason}" for reason, count in reasons))


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
    return Inputs(found.names, [(name, detail) for name, _, detail in found.refused], found.ignored, {})


def _read(name: str, count: int = -1) -> bytes:
    return Folder(Path(name).parent).read(Path(name).name, count)


def _no_example(modality: Modality) -> str:
    return f"no {modality.noun} in this folder ({', '.join(sorted(modality.suffixes))})"


class InputReader:
    """Reads inputs by the names that `find_inputs` returns; threads may call it at once.

    An image is read and decoded once for all of its boxes that are asked for in a row.

    Args:
        margin: what is added on each side of a box, as a share of its longer side.
        cells: examples that are no files, by their names.
    """

    def __init__(self, modality: Modality, margin: float = 0.0, cells: Mapping[str, str] | None = None) -> None:
        self._modality, self._margin, self._cells = modality, margin, cells or {}
        self._cutters = Cutters(self._decode)

    def read(self, name: str) -> bytes:
        """Return the content of a file or an address, or what a box cuts out of it.

        Raises:
            ItemError: if it cannot be read.
        """
        if name in self._cells:
            return self._cells[name].encode("utf-8", "surrogateescape")
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
