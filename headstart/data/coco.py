"""List the examples of COCO annotations: `instances_*.json` beside its images, as annotation tools export it, too."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from headstart.data.coco_file import Annotation, CocoFile, image_path
from headstart.data.files import Source, is_hidden
from headstart.data.listing import Item, Listing
from headstart.data.sources import ANNOTATION_FOLDERS, is_coco, local_file
from headstart.data.split_folders import recognize
from headstart.errors import ItemError, UserError, one_line, readable

ROBOFLOW = "_annotations.coco.json"
# Which files are annotations: those of the first pattern that any file matches and is written as COCO annotations are.
PATTERNS = ("annotations/instances*.json", "instances*.json", f"*/{ROBOFLOW}", ROBOFLOW)
AT_THE_TOP = "annotations/*.json"  # deeper in a folder of classes these can be anything
IMAGE_FOLDERS = ("", "images", "data", "imgs")
PROBED = 3  # images that are looked for to find their folder
MAX_SHOWN = 5  # names in a message
_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*[{\]]')
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')


def annotation_files(source: str, opened: Source) -> dict[str, str | None]:
    """Return the annotations files of a source with their splits; empty if it is no COCO data set.

    Several files are the splits that they are named after; a single one is split by prepare.

    Raises:
        UserError: if there are several, and not each is named after another split.
    """
    if is_coco(source):
        return {source: None}
    if os.path.isdir(source):  # not scanned yet
        patterns = (*PATTERNS, AT_THE_TOP)
        files = [file.relative_to(source).as_posix() for pattern in patterns for file in Path(source).glob(pattern)]
        names = _find_usual(opened, [file for file in files if not is_hidden(file)], patterns)
        if not names:
            at_top = (entry.name + "/" * entry.is_dir() for entry in os.scandir(source) if not is_hidden(entry.name))
            names = _find_beside_images(opened, list(at_top), "")
    else:
        names = find_annotations(opened, opened.files)
    if len(names) < 2:
        return dict.fromkeys(names)
    known = recognize(_words(name)[-1] for name in names)
    splits = {name: known.get(_words(name)[-1]) for name in names}
    if None in splits.values() or len(set(splits.values())) < len(names) or "train" not in splits.values():
        shown = ", ".join(names[:MAX_SHOWN]) + (" and more" if len(names) > MAX_SHOWN else "")
        raise UserError(
            f"{source}: several COCO annotations files ({shown}); keep one for each split, named instances_train.json, "
            "instances_val.json and instances_test.json (the first is needed), or give one file as data.source"
        )
    return splits


def find_annotations(opened: Source, files: Sequence[str]) -> list[str]:
    """Return those of all files of a source that are COCO annotations, sorted."""
    outer = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    names = _find_usual(opened, files, PATTERNS)
    return names or _find_beside_images(opened, [file[len(outer) :].lstrip("/") for file in files], outer)


def _find_usual(opened: Source, files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return those that match one of the patterns, which start below the folders around all files.

    If one of those that match a pattern is written as COCO annotations are, all are returned: another may be damaged.
    """
    json_files = sorted({file for file in files if file.endswith(".json")})
    if not json_files:
        return []
    outer = os.path.commonpath([os.path.dirname(file) for file in files])
    for pattern in patterns:
        found = [file for file in json_files if _matches(file, pattern) or _matches(file[len(outer) + 1 :], pattern)]
        if any(_looks_like_coco(opened, file) for file in found):
            return found
    return []


def _find_beside_images(opened: Source, names: Sequence[str], outer: str) -> list[str]:
    """Return those of any name at the top, beside a folder of images or the images alone.

    Beside other folders they say something about classes or splits.

    Args:
        names: relative to the folder `outer`; those of folders, if they are given, end in a `/`.
    """
    folders = {name.split("/")[0] for name in names if "/" in name}
    if folders and not folders & set(IMAGE_FOLDERS):
        return []
    found = [str(PurePosixPath(outer, name)) for name in sorted(names) if "/" not in name and name.endswith(".json")]
    return [file for file in found if _looks_like_coco(opened, file)]


def _matches(file: str, pattern: str) -> bool:
    """Whether all of a path matches, not only its end."""
    return file.count("/") == pattern.count("/") and PurePosixPath(file).match(pattern)


def _looks_like_coco(opened: Source, file: str) -> bool:
    """Whether a file holds lists of images and of annotations, without parsing it: it can be large, or cut off."""
    try:
        data = opened.read(file)
    except ItemError as error:
        return error.reason == "too_large"  # which listing it reports
    return bool(_IMAGES.search(data) and _ANNOTATIONS.search(data))


def list_annotations(opened: Source, source: str, files: dict[str, str | None], whole: bool) -> Listing:
    """List the boxes in annotations, or the images if `whole`, without reading the images.

    An image that two splits name stays in the later one of train, val and test. The boxes of an image are a group.

    Raises:
        UserError: if a file is no COCO annotations file, or its images are nowhere.
    """
    items: list[Item] = []
    refused: list[tuple[str, str, str, str]] = []
    images: set[str] = set()
    taken: dict[str, str] = {}  # the file that an image with annotations is in
    named: set[str] = set()  # categories
    for file in sorted(files, key=lambda name: ["test", "val", "train", None].index(files[name])):
        content = CocoFile(_read(opened, source, file), file)
        folder = find_images(opened, source, file, list(content.names.values()))
        named |= set(content.categories.values())
        images |= {image_path(folder, name) for name in content.names.values()} - {""}
        labels: dict[str, set[str]] = defaultdict(set)  # of whole images
        for row in content.annotations(folder, whole):
            other = taken.setdefault(row.image, file) if row.image else file
            if row.reason:
                refused.append((row.path, row.label, row.reason, row.detail))
            elif other != file:
                refused.append((row.path, "" if whole else row.label, "duplicate", f"the image is also in {other}"))
            elif whole:
                labels[row.image].add(row.label)
            else:
                items.append(Item(row.path, row.label, files[file], row.image))
        for path, among in labels.items():
            if len(among) == 1:
                items.append(Item(path, among.pop(), files[file]))
            else:
                refused.append((path, "", "several_labels", f"has the categories {', '.join(sorted(among))}"))
    classes = sorted({item.label for item in items})
    noun = "images of one category" if whole else "usable boxes"
    if len(classes) < 2:
        why = ""
        for reason, count in Counter(row[2] for row in refused).most_common(1):
            path, _, _, detail = next(row for row in refused if row[2] == reason)
            why = f"; {count} are left out, such as {path}: {detail}"
        raise UserError(
            f"{source}: at least two categories with {noun} are needed, found {len(classes)} "
            f"({', '.join(map(readable, classes)) or 'none'}){why}"
        )
    notes: list[str] = []
    if empty := sorted(named - set(classes)):
        shown = ", ".join(map(readable, empty[:MAX_SHOWN])) + (" and more" if len(empty) > MAX_SHOWN else "")
        notes.append(f"{len(empty)} of {len(named)} categories are no classes, since they have no {noun}: {shown}")
    ignored = [(path, "no annotation") for path in sorted(images - taken.keys())]
    items.sort(key=lambda item: item.path)
    return Listing(items, classes, list(dict.fromkeys(refused)), ignored, notes)


def list_boxes(opened: Source, file: str) -> list[Annotation]:
    """List all boxes of an annotations file, whatever their categories; raises as `list_annotations`."""
    content = CocoFile(_read(opened, file, file), file, labelled=False)
    return list(content.annotations(find_images(opened, file, file, list(content.names.values()))))


def find_images(opened: Source, source: str, file: str, names: Sequence[str]) -> str:
    """Return the folder, below what is opened, that the names of the images start from.

    Raises:
        UserError: if the first images are in none of the usual places.
    """
    words = _words(file)
    beside = PurePosixPath(file.split("?")[0]).parent
    parents = [PurePosixPath(".")] if file == source else [beside]
    if beside.name in ANNOTATION_FOLDERS:
        parents.append(PurePosixPath(beside.name) if file == source else beside.parent)
    below = [*IMAGE_FOLDERS, *words, *(f"images/{word}" for word in words)]
    folders = [(parent / folder).as_posix() for parent in parents for folder in below]
    for folder in dict.fromkeys(folders):
        for path in filter(None, (image_path(folder, name) for name in names[:PROBED])):
            try:
                opened.read(path, 1)
                return folder
            except ItemError:
                continue
    if not names:
        return ""
    advice = "set data.root to the folder that they start from" if file == source else "put them into images/"
    raise UserError(
        f"{file}: its images, such as {readable(names[0])}, are in none of the folders "
        f"{', '.join(dict.fromkeys(folders))}; {advice}"
    )


def _words(file: str) -> list[str]:
    """What folders of images may be named after: of instances_train2017.json train2017 and train, its split last."""
    path = PurePosixPath(file.split("?")[0])
    stem = path.parent.name if path.name == ROBOFLOW else path.stem.removeprefix("instances_")
    return list(dict.fromkeys([stem, re.sub(r"[-_ ]?\d+$", "", stem).lower()]))


def _read(opened: Source, source: str, file: str) -> bytes:
    try:
        return local_file(source).read_bytes() if file == source else opened.read(file)
    except (ItemError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)}); create it again") from error
