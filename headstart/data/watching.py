"""What DVC does not see by itself: the files behind links to folders, those that a manifest names, a weights file.

DVC hashes `data.source`, but it does not look behind links to folders, and of a manifest it sees the table alone. What
`data.watch` names, the stages of the group `watch` in dvc.yaml look at before each run: they write a fingerprint into
data/watched/, a folder that prepare and extract depend on.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from headstart import paths
from headstart.config import Params, check_weights
from headstart.data.boxes import parse_name
from headstart.data.checks import check_linked, watch_option
from headstart.data.files import Source, file_hash
from headstart.data.inspection_cache import InspectionCache, ItemInfo
from headstart.data.layouts import list_items, open_within
from headstart.data.listing import Kind
from headstart.data.sources import is_archive, local_file, names_files, open_source
from headstart.data_config import Data
from headstart.errors import ItemError
from headstart.machine import cores
from headstart.outputs import Outputs

CHUNK_FILES, CHUNK_BYTES = 256, 2**20
PRETRAINED = ("pretrained", "none")  # what `weights` says if it names no file


def watch(item: str, params: Params, find_kind: Callable[[Data], Kind]) -> None:
    """Write data/watched/ITEM.json, which is the same on every machine if what DVC does not see is the same.

    Args:
        item: source or weights.
        find_kind: returns what the examples of the source are.

    Raises:
        UserError: if it is not there.
    """
    content = fingerprint_source(params, find_kind(params.data)) if item == "source" else fingerprint_weights(params)
    outputs = Outputs(through_links=False)
    try:
        outputs.json(paths.WATCHED / f"{item}.json", content)
        outputs.commit()
    finally:
        outputs.discard()


def fingerprint_source(params: Params, kind: Kind) -> dict[str, Any]:
    """Return the number of files that prepare would list, and a hash of their names and contents.

    A file at an address counts by its version there; it is downloaded only if the storage has no versions.
    """
    source, root = params.data.source, params.data.root
    folders: list[str] = []
    opened = None if is_archive(source) else open_source(source, root)
    if opened and kind.inline:
        opened = open_within(opened, params.data, kind)
    if not opened or opened.inline:  # DVC sees all of it
        file = local_file(source)
        opened, names = open_source(str(file.parent)), [file.name]
    else:
        if names_files(source):
            listing = list_items(opened, source, kind, root, coco=params.data.coco, splits=params.data.splits)
            names = sorted({parse_name(item.path)[0] for item in listing.items})
        else:
            opened.scan()
            names, folders = sorted(opened.files), sorted(opened.folders)
    digest = blake3("\0".join(folders).encode("utf-8", "surrogateescape"))
    with opened, InspectionCache(paths.cache_path("contents.sqlite"), "contents") as cache:
        for name, content in _contents(names, opened, cache):
            digest.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return {"files": len(names), "blake3": digest.hexdigest()}


def fingerprint_weights(params: Params) -> dict[str, Any]:
    """Return the SHA-256 of the weights file, or of the folder that is the backbone; None if there is neither."""
    files: list[str] = []
    if params.weights not in PRETRAINED:
        check_weights(params)
        files = [params.weights]
    digest = hashlib.sha256()
    if folder := _backbone_folder(params):
        found = {file.relative_to(folder).as_posix(): file for file in Path(folder).rglob("*") if file.is_file()}
        digest.update("\0".join(sorted(found)).encode("utf-8", "surrogateescape"))
        files += [str(found[name]) for name in sorted(found)]
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(CHUNK_BYTES):
                digest.update(block)
    return {"sha256": digest.hexdigest() if files else None}


def _backbone_folder(params: Params) -> str | None:
    """Return the folder that `backbone` names; None if it is the name of a backbone."""
    return params.backbone if params.backbone and os.path.isdir(params.backbone) else None


def _contents(names: Sequence[str], source: Source, cache: InspectionCache) -> Iterator[tuple[str, str]]:
    """Yield each name, and what tells its content from others: a hash, a version at an address, or what is wrong."""
    parts = (names[start : start + CHUNK_FILES] for start in itertools.count(0, CHUNK_FILES))
    chunks = itertools.takewhile(bool, parts)
    with ThreadPoolExecutor(cores()) as executor:
        yield from itertools.chain.from_iterable(executor.map(partial(_contents_of, source, cache), chunks))


def _contents_of(source: Source, cache: InspectionCache, names: Sequence[str]) -> list[tuple[str, str]]:
    versions = {name: source.state(name)[1] for name in names}
    known = cache.by_version(versions)
    new = {}
    for name in names:
        if name not in known:
            try:
                new[name] = ItemInfo(file_hash=source.origin_version(name) or file_hash(source.read(name)))
            except ItemError as error:
                new[name] = ItemInfo(error.reason)
    cache.put([(name, versions[name], info) for name, info in new.items()])
    known |= new
    return [(name, known[name].file_hash or known[name].reason) for name in names]


def check_links(source: Source, params: Params) -> None:
    """Check that DVC sees every file of an opened folder, or that they are watched.

    Raises:
        UserError: naming a link to a folder, with the ways out.
    """
    if source.inline or not names_files(params.data.source):
        check_linked(source.linked, params)


def unwatched(item: str, params: Params, source: Source | None = None) -> Iterator[str]:
    """Yield a line if DVC does not see the files of a manifest (`item` source), or the weights file or the folder of
    the backbone (weights).

    Args:
        source: as `open_examples` returns it.
    """
    if item in params.data.watch:
        return
    option = watch_option(params, item)
    if item == "source" and names_files(params.data.source) and not (source and source.inline):
        yield (
            f"DVC watches {params.data.source}, but not the files that it names; if those change, run `dvc "
            f"repro --force prepare`, or have them watched: dvc exp run {option}"
        )
    folder = _backbone_folder(params)
    if item == "weights" and (folder or params.weights not in PRETRAINED):
        what = f"the folder {folder}, the backbone" if folder else f"the weights file {params.weights}"
        yield (
            f"DVC does not watch {what}; if it changes, run `dvc repro --force extract`, or have it watched: dvc exp "
            f"run {option}"
        )


def remove_stale(params: Params) -> None:
    """Remove what stages of the group `watch` wrote that are not there any more: DVC leaves it."""
    for file in paths.WATCHED.glob("*.json"):
        if file.stem not in params.data.watch:
            file.unlink()
