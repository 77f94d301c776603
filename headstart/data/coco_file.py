"""Read one file of COCO annotations.

The format: https://cocodataset.org/#format-data. A file holds `images` (id, file_name, width, height), `categories`
(id, name) and `annotations` (image_id, category_id, bbox of x, y, width and height, iscrowd).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from headstart.data.archives import leads_out
from headstart.data.boxes import Box, box_name
from headstart.errors import UserError, one_line, readable

FORMAT = "COCO annotations hold the lists images, categories and annotations"
MAX_DETAIL = 200  # characters
# All that is used; segmentations are by far the largest part of most files.
_KEYS = frozenset(
    {"images", "annotations", "categories", "id", "image_id", "category_id", "bbox", "iscrowd", "file_name"}
    | {"width", "height", "name"}
)


class Annotation(NamedTuple):
    """An annotation, checked as far as it can be without its image.

    Attributes:
        path: the box by its name; if it has none, the image, or the annotations file.
        image: its path, or empty if it is unknown.
        label: its category, or empty if it is unknown.
        reason, detail: why it cannot be used, or empty.
    """

    path: str
    image: str
    label: str
    reason: str = ""
    detail: str = ""


class CocoFile:
    """The content of an annotations file.

    Args:
        file: what messages call it.
        labelled: whether categories are needed.

    Attributes:
        names: of the images, by their ids.
        categories: their names, by their ids.

    Raises:
        UserError: if it is damaged or something else, or ids or categories are not unique.
    """

    def __init__(self, data: bytes, file: str, labelled: bool = True) -> None:
        self._file, self._labelled = file, labelled
        self._rows = _parse(data, file)
        for name in ("images", "annotations", *(["categories"] if labelled else [])):
            rows = self._rows.get(name)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise UserError(f"{file}: not COCO annotations: the list {name!r} is missing; {FORMAT}")
        self.names = self._by_id("images", "file_name")
        self.categories = self._by_id("categories", "name") if labelled else {}
        repeated = [name for name, count in Counter(self.categories.values()).items() if count > 1]
        if repeated:
            ids = [str(key) for key, name in self.categories.items() if name == repeated[0]]
            raise UserError(
                f"{file}: the categories with the ids {', '.join(ids)} are all named {readable(repeated[0])}; rename "
                "them, or give all of their boxes the same category_id"
            )

    def _by_id(self, kind: str, key: str) -> dict[Any, str]:
        """The text under `key` of each row, by its id."""
        found: dict[Any, str] = {}
        for number, row in enumerate(self._rows[kind]):
            place = f"{self._file}: {kind}[{number}]"
            if not isinstance(row.get("id"), (int, float, str)):
                raise UserError(f"{place}: id must be a number or text, got {row.get('id')!r}; {FORMAT}")
            if not isinstance(row.get(key), str) or not row[key].strip() or not _is_clean(row[key]):
                raise UserError(f"{place}: {key} must be text, got {row.get(key)!r}; {FORMAT}")
            if row["id"] in found:
                raise UserError(f"{place}: the id {row['id']!r} is there twice; give each of the {kind} its own")
            found[row["id"]] = sys.intern(row[key])
        return found

    def annotations(self, folder: str, whole: bool = False) -> Iterator[Annotation]:
        """Yield all annotations in the file's order.

        Args:
            folder: what the names of the images start from.
            whole: annotations are of whole images, and need no box.
        """
        sizes = {row["id"]: _size(row) for row in self._rows["images"]}
        paths = {key: image_path(folder, name) for key, name in self.names.items()}
        for number, row in enumerate(self._rows["annotations"]):
            name = f"annotation {row['id']!r}" if isinstance(row.get("id"), (int, str)) else f"annotations[{number}]"
            image, category = row.get("image_id"), row.get("category_id")
            label = self.categories.get(category, "") if isinstance(category, (int, float, str)) else ""
            if not isinstance(image, (int, float, str)) or image not in paths:
                yield Annotation(self._file, "", label, "unknown_image", _detail(name, "no image has the id", image))
            elif not (path := paths[image]):
                detail = _detail(name, "leads out of the folder: its file_name", self.names[image])
                yield Annotation(self._file, "", label, "outside", detail)
            elif self._labelled and not label:
                detail = _detail(name, "no category has the id", category)
                yield Annotation(path, path, "", "unknown_category", detail)
            elif whole:
                yield Annotation(path, path, label)
            elif not (box := _box(row.get("bbox"), sizes[image])):
                problem = "bbox must be x, y, width and height, the latter two above 0, got"
                yield Annotation(path, path, label, "bad_box", _detail(name, problem, row.get("bbox")))
            elif row.get("iscrowd") and self._labelled:
                yield Annotation(box_name(path, box), path, label, "crowd", f"{name}: iscrowd, around several objects")
            else:
                yield Annotation(box_name(path, box), path, label)


def image_path(folder: str, name: str) -> str:
    """Return the path of an image by its file_name, or an empty text if that leads out of its folder."""
    plain = name if "/" in name else name.replace("\\", "/")  # as written on Windows
    return "" if leads_out(plain) else "/".join((PurePosixPath(folder) / plain).parts)


def _parse(data: bytes, file: str) -> dict[str, Any]:
    try:
        content = json.loads(data, object_hook=_shrink)
    except (ValueError, RecursionError) as error:  # the latter if it is nested too deeply
        raise UserError(f"{file}: not readable JSON ({one_line(error)}); create it again") from error
    if not isinstance(content, dict):
        advice = "; texts in JSON are read with an object a line, from a .jsonl" if isinstance(content, list) else ""
        raise UserError(f"{file}: not COCO annotations, but a {type(content).__name__}; {FORMAT}{advice}")
    return content


def _shrink(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in _KEYS}


def _is_clean(text: str) -> bool:
    """Whether files and tables can be written with it: no zero bytes, no halves of characters."""
    return "\0" not in text and text.encode("utf-8", "replace").decode("utf-8") == text


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    sides = [int(side) for side in (row.get("width"), row.get("height")) if _is_number(side) and 1 <= side < 2**31]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _box(value: Any, size: tuple[int, int] | None) -> Box | None:
    """The box in `bbox`, or None if it is none or has no area."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return None
    try:
        x, y, width, height = map(float, value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    box = Box(x, y, width, height, size)
    return box if box.is_valid else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _detail(name: str, problem: str, value: object) -> str:
    return f"{name}: {problem} {value!r}"[:MAX_DETAIL]
