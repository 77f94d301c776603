"""What a data source holds: which files are examples, with which label, split and group."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from headstart.data.boxes import Cut


@dataclass(frozen=True, slots=True)
class Item:
    """A file that may be an example: its path inside the source, its label, and its split and group if it has them."""

    path: str
    label: str
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """Each file, or row of a manifest, is in one of items, refused and ignored.

    Attributes:
        items: sorted by path.
        classes: the labels, sorted: the order of a model's outputs.
        refused: path, label, reason and detail of what is not even read.
        ignored: path and reason of what is not meant as an example.
        notes: what else to say about it, in sentences.
    """

    items: list[Item]
    classes: list[str]
    refused: list[tuple[str, str, str, str]]
    ignored: list[tuple[str, str]]
    notes: Sequence[str] = ()


class Kind(Protocol):
    """What this folder needs of a modality, see `headstart.modalities.base.Modality`."""

    name: str
    noun: str
    suffixes: Sequence[str]
    unsupported: dict[str, str]
    inline: bool
    column: str

    def recognizes(self, head: bytes, suffix: str) -> bool: ...
    def decode(self, data: bytes) -> Any: ...
    def cutter(self, data: bytes) -> Cut: ...
    def item_id(self, item: Any) -> str: ...
    def measures(self, item: Any) -> dict[str, float]: ...
    def sketch(self, item: Any) -> np.ndarray: ...
    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...
    def probes(self, size: int) -> list[bytes]: ...


def printable(name: str) -> str:
    """Return `name` with bytes that are not UTF-8, and halves of pairs of surrogates, spelled out."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # JSON may hold such halves
        return name.encode("utf-8", "backslashreplace").decode()


def similar_class_names(classes: Iterable[str]) -> list[list[str]]:
    """Return groups of classes whose names differ only in upper and lower case or in spaces around them."""
    similar = defaultdict(list)
    for name in classes:
        similar[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    return [sorted(names) for names in similar.values() if len(names) > 1]
