from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, paint

from headstart.data import archives, layouts
from headstart.data.listing import Listing
from headstart.data.sources import open_source
from headstart.data.split_folders import Splits
from headstart.errors import ItemError, UserError
from headstart.modalities import get_modality
from headstart.modalities.image import ImageModality, decode


def list_items(
    path: Path | str, root: str | None = None, group_by: str | None = None, splits: Splits = None
) -> Listing:
    with open_source(str(path), root) as source:
        return layouts.list_items(source, str(path), get_modality("image"), root, group_by, splits=splits)


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
        (".DS_Store", "hidden"),
        ("loose.png", "in no class folder"),
        ("red/notes.txt", "not image data by its suffix (.txt) and content"),
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("prefix", ["", "outer/"])
def test_archives_list_and_read_as_folders_do(photos, kind, prefix):
    folder = photos(count=2)
    file = pack(kind, folder, prefix)
    listing = list_items(file)
    expected = [(prefix + item.path, item.label) for item in list_items(folder).items]
    assert [(item.path, item.label) for item in listing.items] == expected
    with open_source(str(file)) as source:
        for item in listing.items:
            assert source.read(item.path) == (folder / item.path.removeprefix(prefix)).read_bytes()
        with pytest.raises(ItemError, match="not in the archive"):
            source.read("red/missing.png")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_split_folders_are_kept(tmp_path, kind):
    folder = split_folders(tmp_path / "set")
    listing = list_items(folder if kind == "folder" else pack(kind, folder, "set/"))
    assert listing.classes == ["cat", "dog"]
    assert sorted({item.split for item in listing.items}) == ["test", "train", "val"]


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
    with open_source(str(file)) as source:
        assert source.read("red/000.png") == (folder / "red/000.png").read_bytes()


def test_a_manifest_may_have_a_comma_after_each_row(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.png,x,\nb.png,y,\n")
    listing = list_items(tmp_path / "list.csv")
    assert [(item.path, item.label) for item in listing.items] == [("a.png", "x"), ("b.png", "y")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,name\na,b\n", "the column 'label' is missing"),
        ("path;label\na.png;x\n", "the column 'path' is missing.* in UTF-8, separated by commas"),
        ("path,label\na\0.png,x\n", "row 2: path .* contains a zero byte"),
        ("path,label\na.png,\n", "row 2: label is empty"),
        ("path,label,split\na.png,x,hold\n", "row 2: split must be train, val or test, got 'hold'"),
        ("path,label,split\na.png,x,test\nb.png,y,test\n", "no row has the split train"),
        ("path,label\na.png,x\0\n", r"row 2: label 'x\\x00' contains a zero byte"),
        ("path,label\na.png,  \n", "row 2: label is empty"),
        ("path,label\na.png\nb.png,x\n", "row 2: label is empty"),
        ("path,label\na.png,x,1\nb.png,y\n", "rows have more values than the header"),
        ("path,label\na.png,x\nb.png,y,1\n", r"not a readable \.csv table \(.*Expected 2 fields in line 3, saw 3"),
        ("path,label\n", "list.csv: it has no rows"),
        ("\0" * 99, "the column 'path' is missing"),
        ("", r"not a readable \.csv table .*; a manifest has the columns path, label and"),
    ],
)
def test_mistakes_in_manifests_are_reported_by_row(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        list_items(tmp_path / "list.csv")


def test_manifests_in_other_encodings(photos):
    file = photos(count=1) / "list.csv"
    text = "path,label\nred/000.png,rosé\nblue/000.png,blue\n"
    file.write_text(text, encoding="utf-8-sig")  # as Excel writes it
    assert list_items(file).classes == ["blue", "rosé"]
    for encoding in ("utf-16", "latin-1"):
        file.write_text(text, encoding=encoding)
        with pytest.raises(UserError, match=r"list\.csv: not a readable \.csv table .*; save it as UTF-8"):
            list_items(file)


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ([b"a\xff.png", b"b.png"], "the column 'path' must hold text or numbers"),
        ([{"path": "a.png"}, {"path": "b.png"}], "the column 'path' must hold text or numbers"),
        (["a.png", None], "row 2: path is empty"),
    ],
)
def test_parquet_manifests_of_other_types(tmp_path, column, problem):
    pd.DataFrame({"path": column, "label": ["x", "y"]}).to_parquet(tmp_path / "list.parquet")
    with pytest.raises(UserError, match=problem):
        list_items(tmp_path / "list.parquet")


def test_a_parquet_manifest_with_any_byte_wrong_is_read_or_refused(tmp_path):
    file = tmp_path / "list.parquet"
    pd.DataFrame({"path": [f"{row}.png" for row in range(50)], "label": ["a", "b"] * 25}).to_parquet(file)
    data = file.read_bytes()
    for place in range(0, len(data), 17):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0xA5]) + data[place + 1 :])
        with contextlib.suppress(UserError):
            list_items(file)


@pytest.mark.parametrize(
    "path",
    [
        *("../evil.png", "a/../../evil.png", "ABSOLUTE", "C:/x"),
        *("link/evil.png", "ABSOLUTE/link/evil.png", "evil-link.png", "a/link/evil.png"),
    ],
)
def test_rows_that_leave_the_folder_are_refused(photos, path):
    folder = photos(count=1)
    evil = folder.parent / "evil.png"
    paint(evil, (1, 1, 1), 1)
    os.symlink(folder.parent, folder / "link")
    os.symlink(evil, folder / "evil-link.png")
    (folder / "a").symlink_to(".")  # which stays inside
    path = {"ABSOLUTE": str(evil), "ABSOLUTE/link/evil.png": str(folder / "link/evil.png")}.get(path, path)
    (folder / "list.csv").write_text(f"path,label\nred/000.png,red\nblue/000.png,blue\n{path},red\n")
    listing = list_items(folder / "list.csv")
    assert [item.path for item in listing.items] == ["blue/000.png", "red/000.png"]
    detail = f"leads out of {folder}; make it relative to it, or set data.root to another folder"
    if "link/" in path:
        link = "a/link" if path.startswith("a/") else "link"
        way_out = f"put the files themselves there, or set data.root to {folder.parent} and let paths start from that"
        detail = f"{link} is a link that leads out of {folder}; {way_out}"
    elif "link" in path:
        detail = f"it is a link that leads out of {folder}, to {evil}; put the file itself there"
    assert listing.refused == [(path, "red", "outside", f"row 4: {detail}")]


@pytest.mark.parametrize("root", ["photos", "/ABSOLUTE/photos", "link", "photos/../photos/", "."])
def test_absolute_paths_below_the_root_are_accepted(photos, tmp_path, monkeypatch, root):
    folder = photos(count=2)
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("photos")
    paths = [folder / "red/000.png", tmp_path / "link/blue/000.png", folder / "green/../red/001.png"]
    Path("list.csv").write_text("path,label\n" + "".join(f"{path},{number}\n" for number, path in enumerate(paths)))
    root = root.replace("/ABSOLUTE", str(tmp_path))
    listing = list_items("list.csv", root=root)
    prefix = "photos/" if root == "." else ""
    expected = ["blue/000.png", "red/000.png", "red/001.png"]
    assert sorted(item.path.removeprefix(prefix).removeprefix("link/") for item in listing.items) == expected
    assert listing.refused == []
    with open_source("list.csv", root) as source:
        assert all(source.read(item.path) for item in listing.items)


def test_ids_without_a_suffix_are_completed(photos):
    folder = photos(count=3)
    shutil.copy(folder / "red/001.png", folder / "red/001.JPG")  # which one is meant is not known
    shutil.copy(folder / "red/002.png", folder / "red/002")
    (folder / "red/000.txt").touch()
    rows = ["red/000,red", "red/001,red", "red/002,red", "blue/000.png,blue", "blue/1.5,blue", "blue/001,blue"]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    listing = list_items(folder / "list.csv")
    assert [item.path for item in listing.items] == [
        "blue/000.png", "blue/001.png", "blue/1.5", "red/000.png", "red/001", "red/002",
    ]  # fmt: skip
    assert listing.notes == ["2 paths without a suffix are completed, e.g. blue/001.png"]
    pd.DataFrame({"path": [0.0, 1.0], "label": ["a", "b"]}).to_parquet(folder / "ids.parquet")
    paint(folder / "0.jpeg", (1, 1, 1), 1)
    assert [item.path for item in list_items(folder / "ids.parquet").items] == ["0.jpeg", "1"]


@pytest.mark.parametrize(
    ("labels", "expected", "note"),
    [
        (["1.0", "2.0", "1"], ["1", "1", "2"], ["labels such as 1.0 are read as whole numbers, e.g. 1"]),
        (["3", "1.0", "3"], ["1", "3", "3"], ["labels such as 1.0 are read as whole numbers, e.g. 1"]),
        (["1.0", "1.5", "2.0"], ["1.0", "1.5", "2.0"], []),
        (["1.0", "v2.0", "2.0"], ["1.0", "2.0", "v2.0"], []),
        (["01", "02", "02"], ["01", "02", "02"], []),
        (["[a]", "b", "[b"], ["[a]", "[b", "b"], []),
    ],
)
def test_whole_labels_are_integers(tmp_path, labels, expected, note):
    table = pd.DataFrame({"path": ["a.png", "b.png", "c.png"], "label": labels})
    table.to_csv(tmp_path / "list.csv", index=False)
    listing = list_items(tmp_path / "list.csv")
    assert sorted(item.label for item in listing.items) == expected
    assert listing.notes == note


def test_whole_labels_of_a_column_of_floats_are_integers(tmp_path):
    for labels, expected in (([0.0, 1.0], ["0", "1"]), ([0.5, 1.0], ["0.5", "1.0"]), ([1.0, None], None)):
        pd.DataFrame({"path": ["a.png", "b.png"], "label": labels}).to_parquet(tmp_path / "list.parquet")
        if expected:
            assert list_items(tmp_path / "list.parquet").classes == expected
        else:
            with pytest.raises(UserError, match="row 2: label is empty"):
                list_items(tmp_path / "list.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_lists_as_labels_are_refused(tmp_path, suffix):
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": [["cat", "dog"], ["cat"]]})
    file = tmp_path / f"list{suffix}"
    table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    with pytest.raises(
        UserError, match=r"a label is a list, \['cat',? 'dog'\]: several labels are not supported; give each"
    ):
        list_items(file)


def legacy_zip(file: Path, names: list[str], encoding: str) -> Path:
    """A .zip as old programs write it: names in that encoding, without a mark of it."""
    marks = [f"name {number:03}" for number in range(len(names))]
    with zipfile.ZipFile(file, "w") as archive:
        for mark, name in zip(marks, names, strict=True):
            archive.writestr(mark.ljust(len(name.encode(encoding)), "x"), b"x")
    data = file.read_bytes()
    for mark, name in zip(marks, names, strict=True):
        raw = name.encode(encoding)
        data = data.replace(mark.ljust(len(raw), "x").encode(), raw)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (["動物/猫/写真１.png", "動物/犬/表示.png"], "cp932"),
        (["データセット/ソファ.png", "データセット/こねこ【2】.png", "ascii.png", "photosxxxx/A.png"], "cp932"),
        (["schön/Größe.png", "früh/Müller.png", "café/rosé.png"], "cp437"),
        (["schön/Größe.png", "猫の写真/いぬの写真.png"], "utf-8"),
        (["Äpfel und Birnen/naïve.png"], "cp437"),
    ],
)
def test_names_in_archives_of_old_programs(tmp_path, names, encoding):
    with open_source(str(legacy_zip(tmp_path / "old.zip", names, encoding))) as source:
        assert source.files == names
        assert [source.read(name) for name in names] == [b"x"] * len(names)


def test_the_root_of_a_manifest(photos, tmp_path):
    folder = photos(count=1)
    table = tmp_path / "elsewhere" / "list.csv"
    table.parent.mkdir()
    table.write_text("path,label\nred/000.png,red\nblue/000.png,blue\n../photos/green/000.png,green\n")
    listing = list_items(table, root=str(folder))
    assert [item.path for item in listing.items] == ["blue/000.png", "red/000.png"]
    assert [row[2] for row in listing.refused] == ["outside"]
    with open_source(str(table), str(folder)) as source:
        assert source.read("red/000.png") == (folder / "red/000.png").read_bytes()


def test_groups_by_a_column(photos):
    folder = photos(count=1)
    (folder / "list.csv").write_text("path,label,patient\nred/000.png,red,7\nblue/000.png,blue,\n")
    groups = {item.path: item.group for item in list_items(folder / "list.csv", group_by="patient").items}
    assert groups == {"red/000.png": "7", "blue/000.png": None}


def test_groups_by_an_expression(tmp_path):
    for name in ("a/p1-x.png", "a/p1-y.png", "b/p2-x.png", "b/alone.png"):
        paint(tmp_path / name, (1, 1, 1), 1)
    for pattern in (r"/(p\d)-", r"p\d"):
        groups = {item.path: item.group for item in list_items(tmp_path, group_by=pattern).items}
        assert groups == {"a/p1-x.png": "p1", "a/p1-y.png": "p1", "b/p2-x.png": "p2", "b/alone.png": None}
    with pytest.raises(UserError, match=r"prepare\.group_by 'q\+' is not a column .* matches no path"):
        list_items(tmp_path, group_by="q+")
    with pytest.raises(UserError, match=r"prepare\.group_by must be a column .* or a regular expression, got '\('"):
        list_items(tmp_path, group_by="(")


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
    with open_source(str(file)) as source:
        assert source.refused == [(name, "outside", "leads out of the archive")]
        assert source.files == []


def test_links_in_archives_are_not_followed(photos):
    folder = photos(count=1)
    os.symlink("/etc/passwd", folder / "red" / "link.png")
    listing = list_items(pack("tar", folder))
    detail = "a link in the archive; pack what it leads to: tar --dereference"
    assert listing.refused == [("red/link.png", "", "link", detail)]
    assert not any("link" in item.path for item in listing.items)


@pytest.mark.parametrize(("kind", "way_out"), [("tar", "tar --dereference"), ("zip", "zip without --symlinks")])
def test_a_class_that_is_a_link_in_an_archive_is_reported(photos, kind, way_out):
    folder = photos(count=2)
    shutil.move(folder / "red", folder.parent / "pool")
    (folder / "red").symlink_to("../pool")
    note = f"photos/red is left out: a link in the archive; pack what it leads to: {way_out}"
    assert list_items(pack_links(kind, folder)).notes == [note]
    (folder / "green/more").symlink_to("../../pool")
    assert "is left out, and so are 1 others: a link" in list_items(pack_links(kind, folder)).notes[0]
    shutil.rmtree(folder / "green")
    with pytest.raises(UserError, match=rf"at least two classes are needed, found 1 \(blue\); .*; {note}"):
        list_items(pack_links(kind, folder))


def pack_links(kind: str, folder: Path) -> Path:
    """The folder in an archive, its links as links."""
    file = folder.with_suffix(f".{kind}")
    if kind == "tar":
        with tarfile.open(file, "w") as archive:
            archive.add(folder, folder.name)
        return file
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder.parent).as_posix()
            if path.is_symlink():
                info = zipfile.ZipInfo(name)
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, os.readlink(path))
            elif path.is_file():
                archive.write(path, name)
    return file


def test_a_hard_link_in_a_tar_is_read_like_its_file(photos):
    folder = photos(count=1)
    os.link(folder / "blue" / "000.png", folder / "blue" / "same.png")
    with open_source(str(pack("tar", folder))) as source:
        assert source.read("blue/same.png") == source.read("blue/000.png") == (folder / "blue/000.png").read_bytes()


def test_a_hard_link_in_a_tar_is_refused_like_its_file(photos):
    file = pack("tar", photos(count=1))
    with tarfile.open(file, "a") as archive:
        for name, kind, target in [
            ("red/device.png", tarfile.CHRTYPE, ""),
            ("red/a.png", tarfile.LNKTYPE, "red/device.png"),
            ("red/b.png", tarfile.LNKTYPE, "nowhere.png"),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    assert sorted((path, reason) for path, _, reason, _ in list_items(file).refused) == [
        ("red/a.png", "unreadable"),
        ("red/b.png", "missing"),
        ("red/device.png", "unreadable"),
    ]


def test_a_member_that_would_fill_the_memory_is_not_read(photos):
    file = pack("zip", photos(count=1))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("red/bomb.bmp", bytes(2**26))
    ((path, _, reason, detail),) = list_items(file).refused
    assert (path, reason) == ("red/bomb.bmp", "bomb")
    assert "claim to be 67108864" in detail


def test_a_tar_that_would_fill_the_disk_is_refused(photos, monkeypatch):
    monkeypatch.setattr(archives, "BOMB_ARCHIVE_BYTES", 2**20)
    folder = photos(count=1)
    (folder / "red" / "zeros.bmp").write_bytes(bytes(2**24))
    with pytest.raises(UserError, match=r"unpacks to more than \d+ MiB, over 200 times its size"):
        list_items(pack("tar.gz", folder))


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


def test_members_of_one_name_are_refused(tmp_path):
    file = tmp_path / "twice.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/1.png", b"x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/1.png", b"y")
    with open_source(str(file)) as source:
        assert [(name, reason) for name, reason, _ in source.refused] == [("a/1.png", "repeated")] * 2
        assert source.files == []


def test_a_damaged_member_is_reported_when_it_is_read(photos):
    file = pack("zip", photos(count=1))
    data = bytearray(file.read_bytes())
    start = data.index(b"blue/000.png") + 60
    data[start : start + 20] = bytes(20)
    file.write_bytes(data)
    with open_source(str(file)) as source, pytest.raises(ItemError, match="damaged in the archive"):
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


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize("kind", ["folder", "split folders", "zip", "tar", "outer"])
def test_classes_of_heic_files_stop_with_that_reason(tmp_path, monkeypatch, kind):
    """As phones write them, without pillow-heif."""
    unsupported = {".heic": "install pillow-heif, or convert them to JPEG"}
    monkeypatch.setattr(ImageModality, "unsupported", unsupported)
    monkeypatch.setattr(decode, "UNSUPPORTED", unsupported)
    monkeypatch.setattr(decode, "FORMATS", ("JPEG", "PNG"))
    folder = tmp_path / "photos"
    for label in ("cat", "dog"):
        below = folder / "train" / label if kind == "split folders" else folder / label
        below.mkdir(parents=True)
        for number in range(3):
            (below / f"IMG_{number}.HEIC").write_bytes(HEIC)
    if kind == "outer":
        folder = pack("zip", folder, "outer/")
    else:
        (folder / "loose.heic").write_bytes(HEIC)
    if kind in ("zip", "tar"):
        folder = pack(kind, folder)
    message = "no usable image in the class folders 'cat', 'dog': 6 files there: .heic files are not supported; install"
    with pytest.raises(UserError, match=re.escape(message)):
        list_items(folder)


def test_one_class_of_heic_files_among_others_is_named(photos):
    folder = photos(count=2)
    for number in range(2):
        (folder / "new").mkdir(exist_ok=True)
        (folder / "new" / f"{number}.svg").write_bytes(b"<svg/>")
    with pytest.raises(UserError, match=r"no usable image in the class folder 'new': 2 files there: \.svg files are"):
        list_items(folder)


def test_many_empty_classes_make_a_short_message(tmp_path):
    for number in range(100):
        (tmp_path / f"class {number:03}").mkdir()
    with pytest.raises(UserError, match=r"'class 003', 'class 004' and 95 more; put images there"):
        list_items(tmp_path)


def test_one_class_is_too_few(tmp_path):
    paint(tmp_path / "only" / "1.png", (0, 0, 0), 1)
    with pytest.raises(UserError, match=r"at least two classes are needed, found 1 \(only\)"):
        list_items(tmp_path)
    (tmp_path / "only").rename(tmp_path / "new\nline")
    with pytest.raises(UserError, match=r"found 1 \('new\\nline'\)"):
        list_items(tmp_path)


def test_a_missing_source_and_an_unsupported_kind(tmp_path):
    with pytest.raises(UserError, match="does not exist; give the path of"):
        list_items(tmp_path / "nowhere")
    (tmp_path / "photos.rar").write_bytes(b"x")
    with pytest.raises(UserError, match="is of an unsupported kind"):
        list_items(tmp_path / "photos.rar")
    os.mkfifo(tmp_path / "photos.zip")
    with pytest.raises(UserError, match=r"photos\.zip' is neither a regular file nor a folder"):
        list_items(tmp_path / "photos.zip")


def test_a_loop_of_links_ends(photos):
    folder = photos(count=1)
    os.symlink(folder, folder / "red" / "loop")
    assert len(list_items(folder).items) == 3


def test_the_digits_are_those_of_scikit_learn(tmp_path, monkeypatch):
    import numpy as np
    from sklearn.datasets import load_digits

    monkeypatch.syspath_prepend(ROOT / "data")
    import make_digits

    make_digits.make(tmp_path / "digits.zip")
    with open_source(str(tmp_path / "digits.zip")) as made, open_source(str(ROOT / "data" / "digits.zip")) as committed:
        assert made.files == committed.files
        assert len(made.files) == 1797
        digits = load_digits()
        for name in made.files[::100]:
            label, index = name.removesuffix(".png").split("/")
            assert digits.target[int(index)] == int(label)
            for source in (made, committed):
                grey = np.asarray(decode.decode(source.read(name)))[:, :, 0]
                assert (np.round(grey / 255 * 16) == digits.images[int(index)]).all()
