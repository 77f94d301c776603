"""COCO annotations as a source: boxes or whole images, by files that the tests draw."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import COLOURS, ROOT, SHORT, SMALL, register_short, run_stages, write_params
from PIL import Image
from test_remote import serve

from headstart import paths
from headstart.config import Data, load_params
from headstart.data import boxes, layouts
from headstart.data.boxes import Box, box_name, parse_name
from headstart.data.files import file_hash
from headstart.data.inspection import fingerprint, inspect
from headstart.data.inspection_cache import InspectionCache
from headstart.data.listing import Listing
from headstart.errors import ItemError, UserError
from headstart.modalities import get_modality
from headstart.modalities.image import cutting, decode
from headstart.modalities.loading import read_batches
from headstart.report.data_page import render_data_page
from headstart.serving import inputs
from headstart.serving.predict import predict

IMAGE = get_modality("image")
LABELS = list(COLOURS)  # their category ids are 10, 20, 30
PLACES = [(5, 4, 24, 20), (45, 8, 26, 22), (10, 45, 22, 30), (50, 50.5, 24.25, 21)]


def draw(number: int, placed: list[tuple[int, tuple[float, ...]]]) -> Image.Image:
    """An image of 90 x 80 pixels: noise, and in each box plain red, or stripes of green or blue."""
    noise = np.random.default_rng(number).normal(40, 20, (80, 90, 3))
    y, x = np.mgrid[:80, :90][..., None]
    for label, (left, upper, width, height) in placed:
        stripes = [y // 4 % 2, x // 4 % 2, np.ones_like(x)][label]
        inside = (slice(int(upper), int(upper + height)), slice(int(left), int(left + width)))
        noise[inside] += (stripes * COLOURS[LABELS[label]])[inside]
    return Image.fromarray(np.uint8(np.clip(noise, 0, 255)))


def make_coco(folder: Path, count: int = 6, first: int = 0) -> dict[str, Any]:
    """Draw images into `folder`, four boxes in each; returns their annotations."""
    content: dict[str, Any] = {
        "info": {}, "images": [], "annotations": [],
        "categories": [{"id": 10 * (place + 1), "name": name} for place, name in enumerate(LABELS)],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        placed = [((number + place) % 3, box) for place, box in enumerate(PLACES)]
        name = f"{number:04}.png"
        draw(number, placed).save(folder / name)
        content["images"].append({"id": 100 + number, "file_name": name, "width": 90, "height": 80})
        for label, box in placed:
            add(content, 100 + number, box, 10 * (label + 1))
    return content


def add(content: dict[str, Any], image: Any, bbox: Any, category: Any = 10, **more: Any) -> None:
    row = {"id": len(content["annotations"]) + 1, "image_id": image, "category_id": category, "bbox": bbox}
    content["annotations"].append({**row, "segmentation": [[1, 2, 3, 4, 5, 6]], "iscrowd": 0, **more})


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


DATA = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["data"]


def settings(source: Path | str, **changes: Any) -> Data:
    return Data(**{**DATA, "source": str(source), **changes})


def list_items(source: Path | str, group_by: str | None = None, **changes: Any) -> Listing:
    data = settings(source, **changes)
    with layouts.open_examples(data, IMAGE) as opened:
        return layouts.list_items(opened, data.source, IMAGE, data.root, group_by, data.coco, data.splits)


def read(source: Path | str, name: str, **changes: Any) -> np.ndarray:
    """The pixels of an example."""
    with layouts.open_examples(settings(source, **changes), IMAGE) as opened:
        return np.asarray(decode.decode(opened.read(name)))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """An annotations file beside its folder of images."""
    return write(tmp_path / "set" / "instances.json", make_coco(tmp_path / "set" / "images"))


# --- listing


def test_each_box_is_an_example_with_its_category(coco):
    listing = list_items(coco)
    assert listing.classes == sorted(LABELS)
    assert len(listing.items) == 24
    first = listing.items[0]
    assert (first.path, first.split, first.group) == (
        "images/0000.png#xywh=10,45,22,30&size=90x80",
        None,
        "images/0000.png",
    )
    labels = {item.path: item.label for item in listing.items}
    assert labels["images/0001.png#xywh=5,4,24,20&size=90x80"] == LABELS[1]
    assert labels["images/0001.png#xywh=50,50.5,24.25,21&size=90x80"] == LABELS[1]
    assert (listing.refused, listing.ignored, list(listing.notes)) == ([], [], [])


@pytest.mark.parametrize(
    ("annotations", "images", "name"),
    [
        ("instances.json", "", "0000.png"),
        ("instances.json", "images", "images/0000.png"),
        ("labels.json", "data", "data/0000.png"),  # FiftyOne
        ("train2017.json", "train2017", "train2017/0000.png"),
        ("annotations/instances_default.json", "images", "images/0000.png"),  # CVAT
        ("annotations/instances_train2017.json", "train2017", "train2017/0000.png"),  # cocodataset.org
        ("annotations/instances_train2017.json", "images/train2017", "images/train2017/0000.png"),
        ("annotations/instances_train.json", "train", "train/0000.png"),
        ("annotations/instances.json", "annotations", "annotations/0000.png"),
        ("train/_annotations.coco.json", "train", "0000.png"),  # Roboflow
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path, monkeypatch, annotations, images, name):
    write(tmp_path / annotations, make_coco(tmp_path / images))
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / annotations, annotations):
        item = list_items(source).items[0]
        assert parse_name(item.path)[0] == name
        assert read(source, item.path).shape[2] == 3


def test_images_elsewhere_need_data_root(coco, tmp_path):
    (tmp_path / "set" / "images").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"instances\.json: its images, such as 0000\.png, are in none of the folders \., images, data, .*; set data\.root to"):  # fmt: skip # noqa: E501
        list_items(coco)
    with pytest.raises(UserError, match=r"data\.root 'nowhere' is not a folder; give the one that the paths of a"):
        list_items(coco, root="nowhere")
    root = str(tmp_path / "pictures")
    assert list_items(coco, root=root).items[0].path.startswith("0000.png#")
    assert read(coco, "0000.png#xywh=5,4,24,20&size=90x80", root=root).shape == (26, 30, 3)


@pytest.mark.parametrize(
    "place", ["annotations/instances_{}2017.json", "instances_{}.json", "{}/_annotations.coco.json"]
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_several_files_are_splits(tmp_path, place, kind):
    folder = tmp_path / "set"
    for number, split in enumerate(("train", "valid" if "_annotations" in place else "val", "test")):
        year = "2017" if "2017" in place else ""
        write(folder / place.format(split), make_coco(folder / (split + year), 2, 10 * number))
    write(folder / "annotations" / "captions_train2017.json", {"annotations": []})
    source = folder
    if kind == "zip":
        source = tmp_path / "set.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, "outer/" + file.relative_to(folder).as_posix())
    listing = list_items(source)
    assert Counter(item.split for item in listing.items) == {"train": 8, "val": 8, "test": 8}
    assert {item.split for item in listing.items if item.group.endswith("0010.png")} == {"val"}
    assert read(source, listing.items[0].path).ndim == 3


def test_data_splits_are_not_ignored(tmp_path):
    for number, split in enumerate(("train", "test")):
        write(tmp_path / f"instances_{split}.json", make_coco(tmp_path / split, 2, 10 * number))
    assert {item.split for item in list_items(tmp_path).items} == {"train", "test"}
    listing = list_items(tmp_path, splits="none")
    assert [item.split for item in listing.items] == [None] * 16
    assert listing.notes == ["the splits by annotations files are not used, since data.splits is none"]
    for source in (tmp_path, tmp_path / "instances_train.json"):
        with pytest.raises(UserError, match=r"data\.splits names folders or .*; set data\.splits to null, or to none"):
            list_items(source, splits={"train": "train", "val": "test"})


def test_one_file_in_a_folder_is_split_by_prepare(coco):
    assert {item.split for item in list_items(coco.parent).items} == {None}


def test_files_that_are_no_splits_are_refused(tmp_path):
    for name in ("instances_a.json", "instances_b.json"):
        write(tmp_path / name, make_coco(tmp_path / "images", 1))
    with pytest.raises(UserError, match=r"several COCO annotations files \(instances_a\.json, instances_b\.json\); keep one for each split, named instances_train"):  # fmt: skip # noqa: E501
        list_items(tmp_path)
    for name in ("instances_a.json", "instances_b.json"):
        (tmp_path / name).rename(tmp_path / name.replace("_b", "_train2014").replace("_a", "_train2017"))
    with pytest.raises(UserError, match="keep one for each split"):
        list_items(tmp_path)


def test_a_folder_around_annotations_is_no_folder_of_classes(coco, tmp_path):
    shutil.copytree(coco.parent, tmp_path / "around" / "set" / "deep")
    with pytest.raises(
        UserError, match=r"it holds COCO annotations \(set/deep/instances\.json\); give that file or its"
    ):
        list_items(tmp_path / "around")


@pytest.mark.parametrize("images", ["images", "data", "imgs", ""])
@pytest.mark.parametrize("name", ["annotations.json", "labels.json", "result.json", "my boxes.json"])
def test_annotations_of_any_name_beside_their_images_make_a_folder_coco(tmp_path, images, name):
    folder = tmp_path / "around/set"
    content = make_coco(folder / images, 4)
    write(folder / name, content)
    write(folder / "about.json", {"images": 4})
    write(folder / ".hidden.json", content)
    expected = [item.path for item in list_items(folder / name).items]
    assert len(expected) == 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path / "around").as_posix())
    assert [item.path for item in list_items(folder).items] == expected
    assert [item.path for item in list_items(tmp_path / "set.zip").items] == [f"set/{path}" for path in expected]
    with pytest.raises(UserError, match=r"it holds COCO annotations \(set/.*\); give that file or its folder"):
        list_items(tmp_path / "around")


def test_annotations_beside_class_folders_make_no_coco_of_them(tmp_path):
    """They may say where the objects are; the folders say which."""
    content = make_coco(tmp_path / "set/cat", 4)
    make_coco(tmp_path / "set/dog", 4, 10)
    write(tmp_path / "set/annotations.json", content)
    assert list_items(tmp_path / "set").classes == ["cat", "dog"]


def test_other_json_files_make_no_coco_of_a_folder_of_classes(tmp_path):
    for label in ("cat", "dog"):
        make_coco(tmp_path / "set" / label, 2)
        write(tmp_path / "set" / label / "annotations" / "0000.json", {})  # of another tool
    write(tmp_path / "set" / "annotations.json", {})
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in (tmp_path / "set").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path / "set").as_posix())
    for source in (tmp_path / "set", tmp_path / "set.zip"):
        assert list_items(source).classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("splits", "other"),
    [
        (True, "annotations/meta.json"),
        (True, "instances.json"),
        (True, "train/cat/instances.json"),
        (False, "cat/instances.json"),
        (False, "instances.json"),
        (False, "cat/_annotations.coco.json"),
    ],
)
@pytest.mark.parametrize("content", [{"images": 7}, {"images": ["a.png"], "annotations": []}, []])
def test_unrelated_json_makes_no_coco_of_classes_or_splits(tmp_path, splits, other, content):
    for label in ("cat", "dog"):
        for split in ("train", "val") if splits else ("",):
            make_coco(tmp_path / "set" / split / label, 1)
    write(tmp_path / "set" / other, content)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in (tmp_path / "set").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path).as_posix())
    for source in (tmp_path / "set", tmp_path / "set.zip"):
        listing = list_items(source)
        assert listing.classes == ["cat", "dog"]
        assert {item.split for item in listing.items} == ({"train", "val"} if splits else {None})


def test_annotations_within_a_class_folder_make_no_coco_of_the_classes(tmp_path):
    content = make_coco(tmp_path / "set" / "cat", 2)
    make_coco(tmp_path / "set" / "dog", 2)
    write(tmp_path / "set" / "cat" / "instances.json", content)
    assert list_items(tmp_path / "set").classes == ["cat", "dog"]


def test_a_damaged_split_is_not_left_out(tmp_path):
    write(tmp_path / "instances_train.json", make_coco(tmp_path / "images", 4))
    (tmp_path / "instances_val.json").write_text("{")
    with pytest.raises(UserError, match=r"instances_val\.json: not readable JSON"):
        list_items(tmp_path)


def test_annotations_that_are_too_large_are_reported(coco, monkeypatch):
    monkeypatch.setattr("headstart.data.files.MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"instances\.json: cannot be read \(larger than"):
        list_items(coco.parent)


def test_an_image_in_two_splits_stays_in_the_one_that_is_measured(tmp_path):
    train, test = make_coco(tmp_path / "images", 4), make_coco(tmp_path / "images", 2, first=2)
    write(tmp_path / "instances_train.json", train)
    write(tmp_path / "instances_test.json", test)
    listing = list_items(tmp_path)
    splits = {(item.group, item.split) for item in listing.items}
    assert splits == {(f"images/{number:04}.png", "test" if number > 1 else "train") for number in range(4)}
    assert len(listing.refused) == 8
    assert {row[2:] for row in listing.refused} == {("duplicate", "the image is also in instances_test.json")}


def test_boxes_that_cannot_be_used_are_left_out_with_a_reason(coco):
    content = json.loads(coco.read_text())
    add(content, 100, [1, 1, 30, 30], iscrowd=1)
    for bbox in ([1, 1, 0, 9], [1, 1, 9, -9], [1, 2, 3], None, "1,1,9,9", [1, 1, "9", 9], [1, 1, True, 9], [1, 1, float("nan"), 9], [1, 1, 1e999, 9], {}, [1, 1, 10**400, 9]):  # fmt: skip # noqa: E501
        add(content, 101, bbox)
    add(content, 999, [1, 1, 9, 9])
    add(content, [], [1, 1, 9, 9])
    add(content, 102, [1, 1, 9, 9], 77)
    add(content, 102, [1, 1, 9, 9], {})
    content["images"] += [{"id": 7, "file_name": "../evil.png"}, {"id": 8, "file_name": "/etc/evil.png"}]
    content["images"] += [{"id": 9, "file_name": "bare.png"}]
    content["categories"] += [{"id": 1, "name": "animals"}]
    add(content, 7, [1, 1, 9, 9])
    add(content, 8, [1, 1, 9, 9])
    write(coco, content)
    listing = list_items(coco)
    assert len(listing.items) == 24
    expected = {"crowd": 1, "bad_box": 11, "unknown_image": 2, "unknown_category": 2, "outside": 2}
    assert Counter(row[2] for row in listing.refused) == expected
    details = {detail for *_, detail in listing.refused}
    assert "annotation 25: iscrowd, around several objects" in details
    assert "annotation 26: bbox must be x, y, width and height, the latter two above 0, got [1, 1, 0, 9]" in details
    assert "annotation 37: no image has the id 999" in details
    assert "annotation 39: no category has the id 77" in details
    assert "annotation 41: leads out of the folder: its file_name '../evil.png'" in details
    assert listing.ignored == [("images/bare.png", "no annotation")]
    assert listing.notes == ["1 of 4 categories are no classes, since they have no usable boxes: animals"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[1, 2", r"not readable JSON \(Expecting"),
        ("\x00\xff", "not readable JSON"),
        ("", "not readable JSON"),
        ("[" * 200_000, "not readable JSON"),
        ("9" * 5000, "not readable JSON"),
        ("[]", "not COCO annotations, but a list; COCO annotations hold the lists images, categories and annotations"),
        ("{}", "not COCO annotations: the list 'images' is missing"),
        ({"annotations": None}, "the list 'annotations' is missing"),
        ({"categories": {"a": 1}}, "the list 'categories' is missing"),
        ({"images": [3]}, "the list 'images' is missing"),
        ({"images": [{"file_name": "a.png"}]}, r"images\[0\]: id must be a number or text, got None"),
        ({"images": [{"id": 1}]}, r"images\[0\]: file_name must be text, got None"),
        ({"images": [{"id": 1, "file_name": "a\0b"}]}, r"images\[0\]: file_name must be text, got 'a\\x00b'"),
        ({"images": [{"id": 1, "file_name": "\ud800"}]}, r"images\[0\]: file_name must be text, got '\\ud800'"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, r"images\[1\]: the id 1 is there twice; give each of"),
        ({"categories": [{"id": 1, "name": " "}]}, r"categories\[0\]: name must be text, got ' '"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 4, "name": "a"}]}, "the categories with the ids 1, 4 are all named a; rename"),  # noqa: E501
        ({"annotations": []}, r"at least two categories with usable boxes are needed, found 0 \(none\)"),
        ({"categories": [{"id": 10, "name": "only"}]}, r"found 1 \(only\); 16 are left out, such as images/0000\.png: annotation 2: no category has the id 20"),  # noqa: E501
    ],
)  # fmt: skip
def test_files_that_are_no_annotations_are_explained(coco, change, message):
    if isinstance(change, str):
        coco.write_bytes(change.encode("latin-1"))
    else:
        write(coco, {**json.loads(coco.read_text()), **change})
    with pytest.raises(UserError, match=message) as raised:
        list_items(coco)
    assert str(coco) in str(raised.value)


ODD = (None, True, -1, 0, 10**30, 1.5, 1e308, float("nan"), "", "..", "a/../..", "\ud800", "\0", [], [1], {}, {"id": 1})


def test_any_odd_value_anywhere_is_explained_or_left_out(coco):
    for file in (coco.parent / "images").iterdir():
        os.utime(file, (1e9, 1e9))
    content = json.loads(coco.read_text())
    content["images"], content["annotations"] = content["images"][:2], content["annotations"][:8]
    places = [(kind, row, key) for kind in ("images", "annotations", "categories") for row in (0, 1)
              for key in content[kind][row]]  # fmt: skip
    for kind, row, key in places:
        for value in ODD:
            changed = json.loads(json.dumps(content))
            changed[kind][row][key] = value
            write(coco, changed)
            for mode in ("boxes", "images"):
                try:
                    listing = list_items(coco, coco=mode)
                except UserError:
                    continue
                rows = [(item.path, item.label) for item in listing.items] + listing.refused
                "".join(text for row in rows for text in row).encode()  # tables can hold it
                with layouts.open_examples(settings(coco, coco=mode), IMAGE) as opened:
                    for item in listing.items:
                        opened.state(item.path)
                        with contextlib.suppress(ItemError):
                            opened.read(item.path)


def test_whole_images_have_the_label_of_their_only_category(coco):
    content = json.loads(coco.read_text())
    keep = {100: 10, 101: 20, 102: 20}
    content["annotations"] = [row for row in content["annotations"] if keep.get(row["image_id"], row["category_id"]) == row["category_id"]]  # fmt: skip # noqa: E501
    content["annotations"] = [{**row, "bbox": None} for row in content["annotations"] if row["image_id"] != 105]
    write(coco, content)
    listing = list_items(coco, coco="images")
    assert [(item.path, item.label, item.group) for item in listing.items] == [
        ("images/0000.png", "blue", None), ("images/0001.png", "green", None), ("images/0002.png", "green", None),
    ]  # fmt: skip
    assert listing.refused[0] == ("images/0003.png", "", "several_labels", "has the categories blue, green, red")
    assert [row[0] for row in listing.refused] == ["images/0003.png", "images/0004.png"]
    assert listing.ignored == [("images/0005.png", "no annotation")]
    assert read(coco, "images/0000.png", coco="images").shape == (80, 90, 3)


def test_groups_are_images_or_what_group_by_finds_in_their_names(coco):
    groups = {item.path: item.group for item in list_items(coco, r"/(000[01])").items}
    assert {group for path, group in groups.items() if "0000" in path or "0001" in path} == {"0000", "0001"}
    assert {group for path, group in groups.items() if "0002" in path} == {"images/0002.png"}
    with pytest.raises(UserError, match=r"matches no path, e\.g\. not 'images/0000\.png'"):
        list_items(coco, r"xywh")  # the box is no part of the path


# --- cutting


@pytest.mark.parametrize(
    ("box", "margin", "rows", "columns"),
    [
        (Box(10, 20, 30, 20), 0, (20, 40), (10, 40)),
        (Box(10, 20, 30, 20), 0.1, (17, 43), (7, 43)),
        (Box(10.5, 20.5, 29, 19), 0, (20, 40), (10, 40)),
        (Box(0, 0, 90, 80), 0.5, (0, 80), (0, 90)),
        (Box(-8, -5, 30, 20), 0, (0, 15), (0, 22)),  # sticks out a little
        (Box(70, 60, 26, 24), 0.1, (57, 80), (67, 90)),
        (Box(89.5, 79.5, 0.4, 0.4), 0, (79, 80), (89, 90)),
    ],
)
def test_a_box_is_cut_with_its_margin_and_clipped(box, margin, rows, columns):
    image = draw(0, [])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = np.asarray(decode.decode(IMAGE.cutter(buffer.getvalue())(box, margin)))
    assert np.array_equal(found, np.asarray(image)[slice(*rows), slice(*columns)])


@pytest.mark.parametrize(
    "box", [Box(80, 5, 30, 20), Box(100, 5, 9, 9), Box(-50, -50, 9, 9), Box(5, 5, 900, 900), Box(1e300, 1, 1e300, 5)]
)
def test_a_box_mostly_outside_of_the_image_is_refused(box):
    buffer = io.BytesIO()
    draw(0, []).save(buffer, "PNG")
    with pytest.raises(ItemError, match=r"most of the box is outside of the image of 90 x 80 pixels") as raised:
        IMAGE.cutter(buffer.getvalue())(box, 0.1)
    assert raised.value.reason == "box_outside"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn_on", ["stored", "upright", "unknown"])
def test_rotated_photographs(orientation, drawn_on):
    """Boxes are in stored pixels, as pycocotools takes them, unless the size that they were drawn on says upright."""
    exif = Image.Exif()
    exif[cutting.ORIENTATION] = orientation
    buffer = io.BytesIO()
    draw(0, [(2, (10, 20, 30, 16))]).save(buffer, "PNG", exif=exif)
    turned = orientation > 4
    upright = np.asarray(decode.decode(buffer.getvalue()))
    assert upright.shape == ((90, 80, 3) if turned else (80, 90, 3))
    size = {"stored": (90, 80), "upright": upright.shape[1::-1], "unknown": None}[drawn_on]
    box = Box(10, 20, 30, 16, size)
    found = np.asarray(decode.decode(IMAGE.cutter(buffer.getvalue())(box, 0)))
    if drawn_on == "upright" and turned:
        assert np.array_equal(found, upright[20:36, 10:40])
    else:
        assert found.shape[:2] == ((30, 16) if turned else (16, 30))
        assert found[..., 0].mean() > 150  # all of the red box, turned as the image is
        rotated = draw(0, [(2, (10, 20, 30, 16))]).crop((10, 20, 40, 36))
        rotated.getexif()[cutting.ORIENTATION] = orientation
        buffer = io.BytesIO()
        rotated.save(buffer, "PNG", exif=rotated.getexif())
        assert np.array_equal(found, np.asarray(decode.decode(buffer.getvalue())))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_boxes_of_images_with_more_than_8_bits_keep_them(dtype):
    values = np.random.default_rng(0).normal(2000, 500, (20, 30)).astype(dtype)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    found = decode.read(IMAGE.cutter(buffer.getvalue())(Box(3, 2, 10, 8), 0))
    assert np.array_equal(found.values, values[2:10, 3:13])


@pytest.mark.parametrize(
    ("dtype", "no_data"),
    [(np.uint16, 0), (np.int32, -9999), (np.float32, -9999.1), (np.float32, -3.4028234663852886e38), (np.int8, -128)],
)
def test_boxes_of_maps_keep_where_data_are_missing(dtype, no_data):
    values = np.random.default_rng(0).integers(50, 99, (20, 30)).astype(dtype)
    values[4:8, 2:9] = no_data
    buffer = io.BytesIO()
    sign = {339: 2} if dtype == np.int8 else {}
    stored = values.view(np.uint8) if dtype == np.int8 else values
    Image.fromarray(stored).save(buffer, "TIFF", tiffinfo={42113: str(no_data), **sign})
    whole = decode.read(buffer.getvalue())
    found = decode.read(IMAGE.cutter(buffer.getvalue())(Box(3, 2, 10, 8), 0))
    assert np.array_equal(found.values, values[2:10, 3:13])
    assert np.array_equal(found.missing, whole.missing[2:10, 3:13])
    assert found.extent()[0] >= 50


def test_boxes_of_colour_images_with_16_bits_keep_them():
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3))
    data = b"P6 30 20 65535\n" + values.astype(">u2").tobytes()
    found = decode.read(IMAGE.cutter(data)(Box(3, 2, 10, 8), 0))
    assert np.array_equal(found.values, values[2:10, 3:13])


def test_an_image_of_another_size_than_annotated_is_refused(coco):
    with Image.open(coco.parent / "images/0000.png") as image:
        image.resize((45, 40)).save(coco.parent / "images/0000.png")
    with pytest.raises(ItemError, match="annotated as an image of 90 x 80 pixels, the file has 45 x 40") as raised:
        read(coco, "images/0000.png#xywh=5,4,24,20&size=90x80")
    assert raised.value.reason == "wrong_size"


def test_names_of_boxes():
    box = Box(1.005, -2, 1234567.125, 3e-1, (640, 480))
    name = box_name("a#b/c d.jpg", box)
    assert name == "a#b/c d.jpg#xywh=1,-2,1234567.12,0.3&size=640x480"
    assert parse_name(name) == ("a#b/c d.jpg", Box(1, -2, 1234567.12, 0.3, (640, 480)))
    for name in ("a.jpg", "a.jpg#xywh=1,2,3", "a.jpg#xywh=1,2,3,0", "a.jpg#xywh=1,2,3..4,5", "a.jpg#xywh=1,2,3,1e999"):
        assert parse_name(name) == (name, None)


def test_a_tiny_box_has_a_name_that_can_be_read(coco):
    content = json.loads(coco.read_text())
    add(content, 100, [5, 4, 0.004, 20])
    add(content, 100, [5, 4, 20, 1e-9])
    write(coco, content)
    names = [item.path for item in list_items(coco).items]
    assert len(names) == 26
    assert all(map(boxes.is_box, names))
    assert read(coco, "images/0000.png#xywh=5,4,0.01,20&size=90x80", margin=0).shape == (20, 1, 3)
    assert read(coco, "images/0000.png#xywh=5,4,20,0.01&size=90x80", margin=0).shape == (1, 20, 3)


# --- reading


def test_boxes_next_to_each_other_are_cut_from_one_decoded_image(coco, monkeypatch):
    for file in (coco.parent / "images").iterdir():
        os.utime(file, (1e9, 1e9))
    decoded = []
    original = cutting.cutter
    monkeypatch.setattr(cutting, "cutter", lambda data: decoded.append(1) or original(data))
    names = [item.path for item in list_items(coco).items]
    with layouts.open_examples(settings(coco), IMAGE) as opened:
        for name in names:
            opened.read(name)
    assert len(decoded) == 6


def test_a_changed_image_margin_or_box_is_another_example(coco):
    name, image = "images/0000.png#xywh=5,4,24,20&size=90x80", coco.parent / "images/0000.png"
    os.utime(image, (1e9, 1e9))
    with layouts.open_examples(settings(coco), IMAGE) as opened:
        before, version = opened.read(name), opened.state(name)[1]
        assert opened.state("images/0000.png#xywh=5,4,24,21&size=90x80")[1] == version  # the name is another
        draw(99, []).save(image)
        os.utime(image, (2e9, 2e9))
        assert opened.read(name) != before
        assert opened.state(name)[1] != version
    os.utime(image, (1e9, 1e9))
    versions = set()
    for margin in (0, 0.1):
        with layouts.open_examples(settings(coco, margin=margin), IMAGE) as opened:
            versions.add(opened.state(name)[1])
    assert len(versions) == 2


@pytest.mark.parametrize("processes", [False, True])
def test_boxes_are_inspected_once(coco, tmp_path, processes, monkeypatch):
    for file in (coco.parent / "images").iterdir():
        os.utime(file, (1e9, 1e9))
    names = [item.path for item in list_items(coco).items]
    with layouts.open_examples(settings(coco), IMAGE) as opened, InspectionCache(tmp_path / "c.sqlite", "1") as cache:
        infos = list(inspect(names, opened, cache, IMAGE, processes))
        assert [info.measures["width"] for info in infos[:2]] == [28, 32]
        monkeypatch.setattr(boxes.Crops, "read", None)
        assert list(inspect(names, opened, cache, IMAGE, False)) == infos


def test_other_code_for_cutting_empties_the_inspection_cache(monkeypatch):
    before = fingerprint(IMAGE)
    monkeypatch.setattr(cutting, "_place", lambda box, margin, size: (0, 0, 5, 5))
    assert fingerprint(IMAGE) != before


def test_a_missing_or_damaged_image_is_reported_for_each_of_its_boxes(coco):
    (coco.parent / "images/0001.png").unlink()
    (coco.parent / "images/0002.png").write_bytes(b"no image")
    with layouts.open_examples(settings(coco), IMAGE) as opened:
        for name, reason in (("0001", "missing"), ("0002", "not_an_image")):
            with pytest.raises(ItemError) as raised:
                opened.read(f"images/{name}.png#xywh=5,4,24,20&size=90x80")
            assert raised.value.reason == reason


def test_annotations_at_an_address(coco, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with serve(coco.parent) as (address, _):
        source = f"{address}/instances.json"
        listing = list_items(source)
        assert read(source, listing.items[0].path).shape == (36, 28, 3)
        names = inputs.find_inputs([source], IMAGE).names
        assert names[0] == f"{address}/images/0000.png#xywh=5,4,24,20&size=90x80"
        assert inputs.InputReader(IMAGE, 0.1).read(names[0]).startswith(b"P6 30 26 255\n")


@pytest.mark.parametrize("name", ["instances.json", "annotations/instances_train.json"])
def test_a_folder_at_an_address_is_told_to_give_the_file(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write(tmp_path / "set" / name, make_coco(tmp_path / "set" / "images"))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/coco-bucket", recursive=True)
    try:
        with pytest.raises(UserError, match="at an address give the file itself: ") as raised:
            list_items("memory://coco-bucket")
        address = str(raised.value).rpartition(" ")[2]
        assert len(list_items(address).items) == 24
    finally:
        memory.rm("/coco-bucket", recursive=True)


# --- the pipeline


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """A folder after all five stages on boxes, some of which cannot be used; the current one."""
    folder = tmp_path_factory.mktemp("coco")
    register_short()
    content = make_coco(folder / "set" / "images", 24)
    add(content, 100, [1, 1, 60, 60], iscrowd=1)
    for image in range(101, 112):
        add(content, image, [80, 70, 4, 5 if image > 101 else 0.001])  # tiny
    add(content, 112, [200, 200, 30, 30])
    content["images"].append({"id": 1, "file_name": "gone.png"})
    write(folder / "set" / "instances.json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        changes = {"data.source": "set/instances.json", "prepare.max_bad_fraction": 0.01, "train_head.epochs": 30}
        write_params(Path("params.yaml"), **{**SMALL, **SHORT, **changes})
        run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")
        yield folder


def test_boxes_go_through_all_stages(finished):
    manifest = pd.read_parquet(paths.MANIFEST)
    assert len(manifest) == 96
    assert (manifest.groupby("group").split.nunique() == 1).all()  # the boxes of an image are in one split
    assert set(manifest.split) == {"train", "val", "test"}
    assert manifest.path[0] == "images/0000.png#xywh=10,45,22,30&size=90x80"
    assert manifest.loc[0, ["width", "height"]].tolist() == [28, 36]
    left_out = pd.read_csv(paths.QUARANTINE)
    assert Counter(left_out.reason) == {"too_small": 11, "crowd": 1, "box_outside": 1}
    tested = pd.read_csv(paths.PREDICTIONS)
    assert len(tested) == (manifest.split == "test").sum()
    assert json.loads(paths.metrics("evaluate").read_text())["accuracy"] > 0.6


def test_the_data_page_shows_boxes(finished):
    page = render_data_page(load_params(), [], "")
    assert page.count("<img ") > 20
    assert "images/0000.png#xywh=" in page
    assert "boxes around several objects (iscrowd)" in page
    assert "pictures" not in page  # there are no remarks


def test_predict_answers_each_box_as_evaluate_does(finished, capsys):
    expected = pd.read_csv(paths.PREDICTIONS).set_index("path")
    assert predict(["set/instances.json"], "json") == 1
    printed = capsys.readouterr()
    found = {row["path"]: row["probabilities"] for row in json.loads(printed.out)}
    assert len(found) == 96 + 1 + 11  # crowds and tiny boxes, too
    assert "set/images/0012.png#xywh=200,200,30,30&size=90x80: most of the box is outside" in printed.err
    for path, row in expected.iterrows():
        assert list(found[f"set/{path}"].values()) == pytest.approx([row[f"p_{name}"] for name in LABELS], abs=1e-4)


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """The files that boxes are cut out of, each time that one is decoded."""
    files: list[bytes] = []

    def cutter(data: bytes) -> boxes.Cut:
        files.append(data)
        time.sleep(0.01)  # so that other threads ask for the same file
        return decode_for_boxes(data)

    decode_for_boxes = cutting.cutter
    monkeypatch.setattr(cutting, "cutter", cutter)
    return files


def test_predict_decodes_an_image_once_for_all_of_its_boxes(finished, capsys, decoded):
    content = json.loads(Path("set/instances.json").read_text())
    images = sorted({row["image_id"] for row in content["annotations"]})
    boxes_of_all = [[10 + image, place, 20, 20] for place in range(0, 40, 2) for image in range(len(images))]
    rows = [{"image_id": images[row % len(images)], "bbox": box} for row, box in enumerate(boxes_of_all)]
    file = write(Path("set/mixed.json"), {"images": content["images"], "annotations": rows})
    predict([str(file)], "json")
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == len(rows) == 20 * len(images)
    assert len(decoded) <= len(images) + 2  # more only if a thread stops for as long as another decodes two images


def test_training_decodes_an_image_once_for_boxes_that_follow_each_other(coco, decoded):
    for file in (coco.parent / "images").iterdir():
        os.utime(file, (1e9, 1e9))
    with layouts.open_examples(settings(coco), IMAGE) as opened:
        names = [item.path for item in list_items(coco).items]
        hashes = [file_hash(opened.read(name)) for name in names]
        decoded.clear()
        opened.close()  # forget them
        list(read_batches(opened, IMAGE, names, hashes, 16, 2, workers=1))
    assert len(decoded) == 6


def test_threads_wait_for_each_other_rather_than_decoding_the_same_image():
    decoded: list[str] = []
    asked = threading.Barrier(3)

    def decode(path: str) -> boxes.Cut:
        decoded.append(path)
        asked.wait(10)  # the others have asked, or are about to
        time.sleep(0.05)
        return lambda box, margin: path.encode()

    cutters = boxes.Cutters(decode)

    def cut(path: str) -> bytes:
        if decoded:
            asked.wait(10)
        return cutters.get(path, "1")(Box(0, 0, 1, 1), 0)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(cut, "a")
        while not decoded:
            time.sleep(0.001)
        assert [future.result() for future in (first, pool.submit(cut, "a"), pool.submit(cut, "a"))] == [b"a"] * 3
    assert decoded == ["a"]


def test_an_image_that_cannot_be_decoded_is_tried_once(finished, decoded, capsys):
    first = json.loads(Path("set/instances.json").read_text())["images"][0]
    Path("set/images/broken.png").write_bytes(b"no image")
    rows = [{"image_id": 1, "bbox": [place, 4, 24, 20]} for place in range(3)]
    rows.append({"image_id": first["id"], "bbox": [5, 4, 24, 20]})
    images = [first, {"id": 1, "file_name": "broken.png"}]
    file = write(Path("set/some.json"), {"images": images, "annotations": rows})
    try:
        assert predict([str(file)], "json") == 1
    finally:
        os.remove("set/images/broken.png")
    assert capsys.readouterr().err.count("not an image") == 3
    assert decoded.count(b"no image") == 1


def test_predict_needs_no_categories_and_reports_bad_boxes(finished, capsys):
    content = json.loads(Path("set/instances.json").read_text())
    rows = [{"image_id": 100, "bbox": [5, 4, 24, 20], "score": 0.5}, {"image_id": 100, "bbox": [5, 4, 0, 20]}]
    file = write(Path("set/found.json"), {"images": content["images"], "annotations": rows})
    assert inputs.find_inputs([str(file)], IMAGE).names == ["set/images/0000.png#xywh=5,4,24,20&size=90x80"]
    assert "found.json: 1 of 2 boxes are left out, the first: annotations[1]: bbox must be" in capsys.readouterr().err
    write(file, {"images": content["images"], "annotations": rows[1:]})
    with pytest.raises(UserError, match=r"found\.json: it has no boxes to predict"):
        inputs.find_inputs([str(file)], IMAGE)


def test_too_many_missing_images_stop_the_stage(coco, tmp_path, monkeypatch):
    for number in (2, 3):
        (coco.parent / f"images/{number:04}.png").unlink()
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"), **{**SMALL, "data.source": str(coco)})
    with pytest.raises(UserError, match=r"8 of 24 files cannot be used:\n  images/0002\.png#xywh=.*: no such file"):
        run_stages("prepare")


def test_images_behind_a_link_are_not_overlooked(coco, tmp_path):
    """DVC does not look behind it, so prepare must know of it."""
    folder = coco.parent
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    with layouts.open_examples(settings(folder), get_modality("image")) as opened:
        listing = layouts.list_items(opened, str(folder), get_modality("image"))
        assert opened.linked == ["images"]
        assert opened.read(listing.items[0].path)
