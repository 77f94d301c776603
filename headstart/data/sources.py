"""Open what `data.source` names: a folder, an archive or the files of a manifest, on this disk or at an address."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from headstart.data.archives import Tar, Zip
from headstart.data.files import Folder, Source
from headstart.data.remote import Remote, check_address, fetch
from headstart.errors import UserError, write_home
from headstart.paths import is_address

MANIFESTS = (".csv", ".parquet")
TABLES = (*MANIFESTS, ".tsv", ".jsonl", ".ndjson")  # of texts, or manifests
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "json")  # beside the folders of the images
SUPPORTED = (
    "a folder, a .zip, a .tar (also .gz, .bz2, .xz), a .csv or .parquet manifest, a table of texts (.csv, .tsv, "
    ".parquet, .jsonl), or COCO annotations (.json)"
)
SHEETS = (".xlsx", ".xls", ".ods")


def open_source(source: str, root: str | None = None) -> Source:
    """Open `source`; the files of a manifest or of annotations are read below `root`.

    By default that is the folder of the manifest or of the annotations, or the one around it if it holds annotations
    alone by its name.

    Raises:
        UserError: if it does not exist, is damaged or of an unsupported kind.
    """
    check_source(source, root)
    if is_archive(source):
        file = local_file(source)
        try:
            return Zip(file) if file.name.lower().endswith(".zip") else Tar(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), source)) from error
    place = source
    if is_table(source):
        place = root or manifest_folder(source)
    elif is_coco(source):
        place = root or image_place(source)
    return Remote(place) if is_address(place) else Folder(Path(place))


def check_source(source: str, root: str | None = None) -> None:
    """Check what can be said of `source` and `root` without reading them and without the network.

    Raises:
        UserError: naming the key, the rule and the value.
    """
    for key, place in (("source", source), ("root", root)):
        if place and place.startswith("~") and not os.path.exists(place):
            raise UserError(f"params.yaml: data.{key} {place!r}: {write_home(place)}")
        if place and is_address(place):
            try:
                check_address(place)
            except UserError as error:
                raise UserError(f"params.yaml: data.{key} {error}") from error
    if root and not is_address(root) and not os.path.isdir(root):
        raise UserError(
            f"params.yaml: data.root {root!r} is not a folder; give the one that the paths of a manifest or of COCO "
            "annotations start from, or null"
        )
    if is_address(source) or os.path.isdir(source):
        return
    if not os.path.exists(source):
        problem = "does not exist"
    elif not os.path.isfile(source):
        problem = "is neither a regular file nor a folder"
    elif not is_table(source) and not is_archive(source) and not is_coco(source):
        problem = "is of an unsupported kind"
        if _name(source).endswith(SHEETS):
            problem += " (save the sheet as a .csv, in UTF-8)"
    else:
        return
    raise UserError(f"params.yaml: data.source {source!r} {problem}; give the path of {SUPPORTED}")


def is_manifest(source: str) -> bool:
    """Whether `source` can be a manifest, by its name."""
    return _name(source).endswith(MANIFESTS) and not os.path.isdir(source)


def is_table(source: str) -> bool:
    """Whether `source` is a table, by its name: of texts, or a manifest."""
    return _name(source).endswith(TABLES) and not os.path.isdir(source)


def names_files(source: str) -> bool:
    """Whether `source` is a file that names those of the examples: DVC hashes it, but not them."""
    return is_manifest(source) or is_coco(source)


def is_csv(source: str) -> bool:
    """Whether the manifest `source` is a CSV file, by its name."""
    return _name(source).endswith(".csv")


def is_coco(source: str) -> bool:
    """Whether `source` is a file of COCO annotations, by its name."""
    return _name(source).endswith(".json") and not os.path.isdir(source)


def is_archive(source: str) -> bool:
    """Whether `source` is an archive, by its name."""
    name = _name(source)
    known = name.endswith((".zip", ".tgz")) or ".tar" in PurePosixPath(name).suffixes
    return known and not os.path.isdir(source)


def manifest_folder(source: str) -> str:
    """Return the folder of a manifest, or its address."""
    return source.split("?")[0].rpartition("/")[0] if is_address(source) else str(Path(source).parent)


def image_place(source: str) -> str:
    """Return what the names of the images of COCO annotations start below, a folder or an address."""
    folder = manifest_folder(source)
    if Path(folder).name not in ANNOTATION_FOLDERS:
        return folder
    return folder.rpartition("/")[0] if is_address(source) else str(Path(folder).parent)


def local_file(source: str) -> Path:
    """Return the file `source`, or the local copy of it if it is an address; raises UserError as `fetch`."""
    return fetch(source) if is_address(source) else Path(source)


def _name(source: str) -> str:
    return (source.split("?")[0] if is_address(source) else source).rstrip("/").lower()
