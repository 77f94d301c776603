"""Find out what the examples of a source are: images or texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from headstart.data.files import HEAD, Source
from headstart.data.sources import is_coco, is_manifest, is_table, open_source
from headstart.data_config import Data
from headstart.errors import ItemError, UserError, readable
from headstart.modalities import Modality, get_modality, modalities

if TYPE_CHECKING:
    from headstart.data.tables import Rows

# Files of texts also lie beside images, as captions and the like: images are meant if one file in so many is one.
SHARE = 10
PROBED = 16  # files without a known suffix that are looked into
MAX_SHOWN = 3  # tables in a message


def find_modality(data: Data) -> Modality:
    """Return the modality that `data.kind` names, or the one that the source is of; images if nothing is known.

    Raises:
        UserError: if there is no such modality, the source cannot be opened, or a table lacks a column.
    """
    if data.kind and not (get_modality(data.kind).inline and is_table(data.source)):
        return get_modality(data.kind)
    with open_source(data.source, data.root) as opened:
        return detect(opened, data)[0]


def detect(opened: Source, data: Data) -> tuple[Modality, str]:
    """Return the modality as `find_modality` does, and by what it was found; empty if a param says so.

    Args:
        opened: data.source.
    """
    kinds = sorted(modalities(), key=lambda kind: kind.inline)
    if not data.kind and not is_table(data.source) and not is_coco(data.source):
        found = _by_suffix(opened.scan().files, kinds)
        if found and not found[0].inline:
            return found
    from headstart.data.layouts import open_within  # these load pandas, which most sources do not need
    from headstart.data.source_manifest import file_names
    from headstart.data.source_tables import find_tables
    from headstart.data.tables import Rows

    if data.kind:
        kind = get_modality(data.kind)
        rows = open_within(opened, data, kind) if kind.inline and is_table(data.source) else None
        if isinstance(rows, Rows) and rows.inline:
            _columns(rows, rows.tables[0], data.source)
        return kind, ""
    if is_coco(data.source):
        return next(kind for kind in kinds if type(kind).cutter is not Modality.cutter), "boxes in annotations"
    inline = kinds[-1]
    rows = open_within(opened, data, inline)
    if isinstance(rows, Rows) and rows.single:
        if rows.inline:
            return inline, _columns(rows, rows.single, data.source)
        return _by_suffix(file_names(data.source), kinds) or (kinds[0], "the manifest, whose paths have no suffix")
    found = _by_suffix(opened.files, kinds)
    tables = [*find_tables(rows, inline).columns] if isinstance(rows, Rows) else []
    if tables:
        shown = ", ".join(map(readable, tables[:MAX_SHOWN])) + (" and more" if tables[MAX_SHOWN:] else "")
        return inline, f"the columns of {shown}"
    return found or _by_content(opened, kinds) or (kinds[0], "default: no file says what it is")


def _columns(rows: Rows, table: str, source: str) -> str:
    """Say which columns of a table are read; raises UserError if it is neither a table of texts nor a manifest."""
    names = rows.column_names(table)
    try:
        columns = rows.columns.find(names, table)
    except UserError as error:
        if is_manifest(source) and "path" in names:
            from headstart.data.source_manifest import file_names

            file_names(source)  # raises: it lacks the label
        raise UserError(f"{error}. A manifest of files has the columns path and label") from error
    return f"the columns {columns.text} and {columns.label} of {table}"


def _by_suffix(names: Sequence[str], kinds: Sequence[Modality]) -> tuple[Modality, str] | None:
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in names)
    counts = {kind.name: sum(suffixes[suffix] for suffix in {*kind.suffixes, *kind.unsupported}) for kind in kinds}
    total = sum(counts.values())
    for kind in kinds:
        if total and counts[kind.name] * SHARE >= total:
            return kind, f"the suffixes of {counts[kind.name]:,} of {len(names):,} files"
    return None


def _by_content(opened: Source, kinds: Sequence[Modality]) -> tuple[Modality, str] | None:
    """Look into some files, none of which has a suffix that is known."""
    votes: Counter[str] = Counter()
    for name in opened.files[:: max(1, len(opened.files) // PROBED)][:PROBED]:
        try:
            head = opened.read(name, HEAD)
        except ItemError:
            continue
        votes.update([kind.name for kind in kinds if kind.recognizes(head, PurePosixPath(name).suffix.lower())][:1])
    if not votes:
        return None
    name, count = votes.most_common(1)[0]
    return get_modality(name), f"the content of {count} of the files"
