"""Folders that are splits are told from classes: by their names, by what they hold, or by data.splits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import paint
from test_sources import list_items, pack

from headstart.data.listing import Listing
from headstart.errors import UserError


def tree(root: Path, **folders: str) -> Path:
    """Write an image into each of the folders, given as words, below each of the folders that are the keys."""
    number = 0
    for top, labels in folders.items():
        for label in labels.split():
            number += 1
            paint(root / top.replace("__", "/") / ("" if label == "." else label) / "1.png", (0, 0, 9), number)
    return root


def splits_of(listing: Listing) -> dict[str, str]:
    return {item.path: item.split for item in listing.items}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train eval", "train test"),
        ("train dev eval", "train val test"),
        ("train eval test", "train val test"),
        ("trainset testset", "train test"),
        ("seg_train seg_test", "train test"),
        ("training_set test_set", "train test"),
        ("Training-Images Valid", "train val"),
        ("TRAIN validation HoldOut", "train val test"),
        ("train hold-out", "train test"),
        ("train_images val_images test_images", "train val test"),
        ("images__train images__test", "train test"),
        ("train__images test__images", "train test"),
        ("seg_train__seg_train seg_test__seg_test", "train test"),
        ("train2017 val2017", "train val"),
        ("trainval test", "train test"),
        ("my photos train__imgs my photos test", "train test"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_usual_names_of_splits_are_recognized(tmp_path, names, expected, kind):
    names = re.split(r" (?=my)", names) if names.startswith("my") else names.split()
    folder = tree(tmp_path / "set", **dict.fromkeys(names, "cat dog"))
    listing = list_items(folder if kind == "folder" else pack("zip", folder, "set/"))
    assert listing.classes == ["cat", "dog"]
    found = {path.removeprefix("set/").rsplit("/", 2)[0]: split for path, split in splits_of(listing).items()}
    assert found == {name.replace("__", "/"): split for name, split in zip(names, expected.split(), strict=True)}
    assert not listing.ignored
    text = " ".join(listing.notes)
    for name, split in found.items():
        assert f"{name} is the split {split}" in text or name.split("/")[-1] == split


def test_plain_names_need_no_remark(tmp_path):
    assert list_items(tree(tmp_path, train="cat dog", val="cat dog", test="cat")).notes == []


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_unlabelled_folders_beside_splits_are_ignored_and_told(tmp_path, kind):
    folder = tree(tmp_path / "set", seg_train="cat dog", seg_test="cat dog", seg_pred__seg_pred=".", test2=".")
    listing = list_items(folder if kind == "folder" else pack(kind, folder))
    assert listing.classes == ["cat", "dog"]
    ignored = {path.removeprefix("./"): reason for path, reason in listing.ignored}
    assert ignored == dict.fromkeys(["seg_pred/seg_pred/1.png", "test2/1.png"], "in no split folder")


def test_a_test_split_without_labels_is_no_class(tmp_path):
    listing = list_items(tree(tmp_path, train="cat dog", test="."))
    assert splits_of(listing) == {"train/cat/1.png": "train", "train/dog/1.png": "train"}
    assert listing.ignored == [("test/1.png", "in no split folder")]


@pytest.mark.parametrize(
    "folders",
    [
        {"train": ".", "bus": "."},  # vehicles
        {"train": "front side", "bus": "top bottom"},
        {"train": ".", "bus": ".", "test": "."},
        {"bullet train": "a b", "steam train": "c d"},
        {"train": "ice steam", "bus": ". old"},
        {"cat": "2019 2020", "dog": ".", "fox": "."},
        {"cat": "x y", "dog": "z", "fox": "2 3"},
        {"0": ".", "1": "."},
        {"set": ".", "images": "."},
    ],
)
def test_classes_stay_classes(tmp_path, folders):
    listing = list_items(tree(tmp_path, **folders))
    assert listing.classes == sorted(folders)
    assert set(splits_of(listing).values()) == {None}
    assert listing.notes == []


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"lernen": "cat dog fox", "pruefen": "cat dog"}, "-S 'data.splits={train:lernen,test:pruefen}'"),
        ({"train": "cat dog", "probe": "cat dog"}, "-S 'data.splits={train:train,test:probe}'"),
        ({"train": "cat dog", "seg_test": "cat dog"}, "-S 'data.splits={train:train,test:seg_test}'"),
        (
            {"train": "cat dog", "test": "cat dog", "extra": "cat dog"},
            "'extra', 'test', 'train' hold folders of",
        ),
        ({"clinic A": "good bad", "clinic B": "good bad"}, "If they are the classes: dvc exp run -S data.splits=none"),
        ({"cat": "2019 2020", "dog": "2019 2020"}, "'cat', 'dog' hold folders of the same names ('2019', '2020')"),
        ({"cat": "train test", "dog": "train test"}, "('test', 'train'), which are named as splits; give one of the"),
        ({"images": "train test", "masks": "train test"}, "give one of the folders as data.source"),
        ({"train": ".", "test": "."}, "'test', 'train' are named as splits, but hold no class folders"),
        ({"train__images": ".", "test__images": "."}, "are named as splits, but hold no class folders"),
        ({"train": "cat dog", "unlabelled": "."}, "'train' holds folders ('cat', 'dog') as a split does, 'unlabelled'"),
        ({"val": "cat dog", "test": "cat dog"}, "split folders ('test', 'val') beside no train folder"),
    ],
)
def test_what_may_be_splits_stops_with_the_way_out(tmp_path, folders, message):
    with pytest.raises(UserError) as error:
        list_items(tree(tmp_path, **folders))
    assert message in str(error.value)
    if "val" not in folders:
        assert "dvc exp run -S data.splits=none" in str(error.value)
        assert list_items(tmp_path, splits="none").classes == sorted(name.split("__")[0] for name in folders)


def test_the_splits_can_be_named(tmp_path):
    folder = tree(tmp_path / "set", lernen="cat dog", pruefen="cat dog", more="cat", deep__er="cat dog", test="fox")
    named = {"train": "lernen", "test": "pruefen/", "val": "deep/er"}
    for source in (folder, pack("zip", folder, "set/"), pack("tar", folder, "set/")):
        listing = list_items(source, splits=named)
        assert listing.classes == ["cat", "dog"]
        found = {path.removeprefix("set/").rsplit("/", 2)[0]: split for path, split in splits_of(listing).items()}
        assert found == {"lernen": "train", "pruefen": "test", "deep/er": "val"}
        assert {path.removeprefix("set/") for path, _ in listing.ignored} == {"more/cat/1.png", "test/fox/1.png"}
    for splits, message in (
        ({"train": "nowhere"}, "data.splits.train: there are no files in the folder 'nowhere'"),
        ({"train": "deep", "test": "deep/er"}, "data.splits: 'deep/er' lies in another of these folders"),
    ):
        with pytest.raises(UserError, match=message):
            list_items(folder, splits=splits)


def test_the_column_split_of_a_manifest_is_read_alike(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,label,split\na.png,x,Training\nb.png,y,eval\nc.png,y,dev\n")
    assert [item.split for item in list_items(table).items] == ["train", "test", "val"]
    table.write_text("path,label,split\na.png,x,A\nb.png,y,B\nc.png,y,B\n")
    with pytest.raises(UserError, match="row 2: split must be train, val or test, got 'A'"):
        list_items(table)
    assert [item.split for item in list_items(table, splits={"train": "B", "test": "A"}).items] == [
        "test",
        "train",
        "train",
    ]
    assert {item.split for item in list_items(table, splits="none").items} == {None}
    with pytest.raises(UserError, match="row 3: split must be A or C, got 'B'"):
        list_items(table, splits={"train": "A", "test": "C"})


def test_splits_of_a_manifest_without_the_column_are_not_ignored(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,label\na.png,x\nb.png,y\n")
    with pytest.raises(
        UserError, match=r"data\.splits names words of the column split, which is missing; add it, or set"
    ):
        list_items(table, splits={"train": "A", "test": "B"})
    assert len(list_items(table, splits="none").items) == 2
