from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, paint

from pipeline.errors import UserError
from pipeline.images import ImageError
from pipeline.layouts import list_items
from pipeline.sources import open_source


def pack(kind: str, folder: Path, prefix: str = "") -> Path:
    """An archive of `folder` beside it."""
    file = folder.with_name(f"{folder.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    else:
        with tarfile.open(file, "w:" + kind.partition(".")[2]) as archive:
            archive.add(folder, prefix or "./")
    return file


def split_folders(root: Path) -> Path:
    for split in ("train", "valid", "test"):
        for label in ("cat", "dog"):
            paint(root / split / label / "1.png", (0, 0, 9), len(split + label))
    return root


def test_class_folders(photos):
    folder = photos(count=2)
    paint(folder / "red" / "deep" / "er" / "9.JPG", (1, 1, 1), 1)
    (folder / ".DS_Store").write_text("x")
    (folder / "red" / "notes.txt").write_text("x")
    paint(folder / "loose.png", (1, 1, 1), 2)
    listing = list_items(folder)
    assert listing.classes == ["blue", "green", "red"]
    assert [item.path for item in listing.items if item.label == "red"] == [
        "red/000.png", "red/001.png", "red/deep/er/9.JPG",
    ]  # fmt: skip
    assert sorted(listing.ignored) == [
        ("loose.png", "in no class folder"),
        ("red/notes.txt", "not an image by its name (.txt)"),
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("prefix", ["", "outer/"])
def test_archives_list_and_read_as_folders_do(photos, kind, prefix):
    folder = photos(count=2)
    file = pack(kind, folder, prefix)
    listing = list_items(file)
    expected = [(prefix + item.path, item.label) for item in list_items(folder).items]
    assert [(item.path, item.label) for item in listing.items] == expected
    with open_source(file) as source:
        for item in listing.items:
            assert source.read(item.path) == (folder / item.path.removeprefix(prefix)).read_bytes()
        with pytest.raises(ImageError, match="not in the archive"):
            source.read("red/missing.png")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_split_folders_are_kept(tmp_path, kind):
    folder = split_folders(tmp_path / "set")
    listing = list_items(folder if kind == "folder" else pack(kind, folder, "set/"))
    assert listing.classes == ["cat", "dog"]
    assert sorted({item.split for item in listing.items}) == ["test", "train", "val"]


def test_splits_beside_other_folders_are_refused(tmp_path):
    folder = split_folders(tmp_path / "set")
    paint(folder / "unlabelled" / "1.png", (0, 0, 0), 1)
    with pytest.raises(UserError, match=r"folders of splits .* beside 'unlabelled'"):
        list_items(folder)


def test_a_class_may_be_called_train(tmp_path):
    for label in ("bus", "train"):
        paint(tmp_path / label / "1.png", (0, 0, 0), 1)
    assert list_items(tmp_path).classes == ["bus", "train"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_manifests(photos, suffix):
    folder = photos(count=1)
    rows = {"path": ["red/000.png", "blue/000.png"], "label": [7, 3], "split": ["Train", "validation"], "more": [0, 1]}
    file = folder / f"list{suffix}"
    pd.DataFrame(rows).to_csv(file, index=False) if suffix == ".csv" else pd.DataFrame(rows).to_parquet(file)
    listing = list_items(file)
    assert [(item.path, item.label, item.split) for item in listing.items] == [
        ("blue/000.png", "3", "val"), ("red/000.png", "7", "train"),
    ]  # fmt: skip
    with open_source(file) as source:
        assert source.read("red/000.png") == (folder / "red/000.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,name\na,b\n", "the column 'label' is missing"),
        ("path,label\n../a.png,x\n", "row 2: path '../a.png' leads out"),
        ("path,label\nx/b.png,y\n/etc/a.png,x\n", "row 3: path '/etc/a.png' leads out"),
        ("path,label\nlink/a.png,x\n", "row 2: path 'link/a.png' leads out"),
        ("path;label\na.png;x\n", "the column 'path' is missing.* in UTF-8, separated by commas"),
        ("path,label\na\0.png,x\n", "row 2: path .* holds a zero byte"),
        ("path,label\na.png,\n", "row 2: label is empty"),
        ("path,label,split\na.png,x,hold\n", "row 2: split must be train, val or test, got 'hold'"),
        ("path,label\na.png,x\na.png,y\n", "'a.png' stands in more than one row"),
        ("path,label,split\na.png,x,test\nb.png,y,test\n", "no row has the split train"),
        ("", "not a readable .csv table"),
    ],
)
def test_wrong_manifests_are_told_by_row(tmp_path, text, message):
    folder = tmp_path / "set"
    folder.mkdir()
    os.symlink(tmp_path, folder / "link")
    (folder / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        list_items(folder / "list.csv")


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_archive_are_refused(tmp_path, name, kind):
    file = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, b"x")
    else:
        with tarfile.open(file, "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="leads out of the archive"):
        list_items(file)


def test_links_in_archives_are_not_followed(photos):
    folder = photos(count=1)
    os.symlink("/etc/passwd", folder / "red" / "link.png")
    listing = list_items(pack("tar", folder))
    assert listing.ignored == [("./red/link.png", "a link")]
    assert not any("link" in item.path for item in listing.items)


def test_a_hard_link_in_a_tar_is_read_as_the_file_that_it_is(photos):
    folder = photos(count=1)
    os.link(folder / "blue" / "000.png", folder / "blue" / "twin.png")
    with open_source(pack("tar", folder)) as source:
        assert source.read("blue/twin.png") == source.read("blue/000.png") == (folder / "blue/000.png").read_bytes()


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_that_lost_its_end_is_refused(photos, kind):
    file = pack("tar", photos(count=3))
    with tarfile.open(file) as archive:
        ends = [member.offset for member in archive.getmembers()][3:]
    whole = file.read_bytes()
    for end in ends:
        for rest in (b"", b"\xff" * 512 + whole[end + 512 :]):
            data = whole[:end] + rest
            file.with_suffix(f".{kind}").write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
            with pytest.raises(UserError, match=r"cut off or damaged|not a readable \.tar"):
                list_items(file.with_suffix(f".{kind}"))


def test_names_as_windows_writes_them(photos):
    folder = photos(count=1)
    with zipfile.ZipFile(folder / "back.zip", "w") as archive:
        for label in ("blue", "12:30"):
            archive.writestr(label, (folder / "blue" / "000.png").read_bytes())
            archive.filelist[-1].filename = f"set\\{label}\\1.png"
    assert [item.path for item in list_items(folder / "back.zip").items] == ["set/12:30/1.png", "set/blue/1.png"]
    (folder / "list.csv").write_text("path,label\nred\\000.png,1\nblue\\000.png,2\n")
    assert [item.path for item in list_items(folder / "list.csv").items] == ["blue/000.png", "red/000.png"]


def test_a_member_twice_is_refused(tmp_path):
    file = tmp_path / "twice.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/1.png", b"x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/1.png", b"y")
    with pytest.raises(UserError, match=r"holds 'a/1\.png' twice"):
        list_items(file)


def test_a_damaged_member_is_told_when_it_is_read(photos):
    file = pack("zip", photos(count=1))
    data = bytearray(file.read_bytes())
    start = data.index(b"blue/000.png") + 60
    data[start : start + 20] = bytes(20)
    file.write_bytes(data)
    with open_source(file) as source, pytest.raises(ImageError, match="damaged in the archive"):
        source.read("blue/000.png")


@pytest.mark.parametrize("name", ["bad.zip", "bad.tar", "bad.tar.gz", "bad.parquet"])
def test_a_damaged_source_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b" + b"no archive" * 9)
    with pytest.raises(UserError, match=f"{name}: not a readable"):
        list_items(tmp_path / name)


def test_an_empty_class_folder_is_named(photos):
    folder = photos(count=1)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no image in the class folder 'empty'"):
        list_items(folder)


def test_one_class_is_too_few(tmp_path):
    paint(tmp_path / "only" / "1.png", (0, 0, 0), 1)
    with pytest.raises(UserError, match=r"at least two classes are needed, found 1 \(only\)"):
        list_items(tmp_path)


def test_a_missing_source_and_an_unknown_kind(tmp_path):
    with pytest.raises(UserError, match="does not exist; give the path of"):
        list_items(tmp_path / "nowhere")
    (tmp_path / "photos.rar").write_bytes(b"x")
    with pytest.raises(UserError, match="is of no supported kind"):
        list_items(tmp_path / "photos.rar")


def test_a_loop_of_links_ends(photos):
    folder = photos(count=1)
    os.symlink(folder, folder / "red" / "loop")
    assert len(list_items(folder).items) == 3


def test_the_digits_are_those_of_scikit_learn(tmp_path, monkeypatch):
    import numpy as np
    from sklearn.datasets import load_digits

    from pipeline.images import decode

    monkeypatch.syspath_prepend(ROOT / "data")
    import make_digits

    make_digits.make(tmp_path / "digits.zip")
    with open_source(tmp_path / "digits.zip") as made, open_source(ROOT / "data" / "digits.zip") as committed:
        assert made.files == committed.files
        assert len(made.files) == 1797
        digits = load_digits()
        for name in made.files[::100]:
            label, index = name.removesuffix(".png").split("/")
            assert digits.target[int(index)] == int(label)
            for source in (made, committed):
                grey = np.asarray(decode(source.read(name)))[:, :, 0]
                assert (np.round(grey / 255 * 16) == digits.images[int(index)]).all()
