"""Inspection: one pass over all files, cached, whatever interrupts it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, paint, run_stages, write_params
from PIL import Image, ImageFilter
from test_sources import pack

from headstart import paths
from headstart.data import inspection, inspection_cache
from headstart.data.files import SETTLED, Folder
from headstart.data.inspection import fingerprint, inspect, inspect_contents
from headstart.data.inspection_cache import InspectionCache, ItemInfo
from headstart.data.sources import open_source
from headstart.modalities import get_modality

IMAGES = get_modality("image")


class Counted(Folder):
    """A folder that counts reads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads = 0

    def read(self, name: str) -> bytes:
        self.reads += 1
        return super().read(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two hundred images, last changed long ago."""
    for number in range(200):
        paint(tmp_path / "set" / f"{number:03}.png", (number, 9, 9), number)
        settle(tmp_path / "set" / f"{number:03}.png")
    return tmp_path / "set"


def settle(file: Path) -> None:
    os.utime(file, (1e9, 1e9))


def inspected(folder: Path, file: Path, version: str = "1") -> tuple[list[ItemInfo], int]:
    """What is known about the files of `folder`, and how many were read."""
    source = Counted(folder).scan()
    with InspectionCache(file, version) as cache:
        return list(inspect(source.files, source, cache, IMAGES)), source.reads


def test_a_second_pass_reads_only_what_is_new(folder, tmp_path):
    first, reads = inspected(folder, tmp_path / "c.sqlite")
    assert reads == len(first) == 200
    assert inspected(folder, tmp_path / "c.sqlite") == (first, 0)
    for number in range(200, 202):
        paint(folder / f"{number}.png", (1, 1, 1), number)
    again, reads = inspected(folder, tmp_path / "c.sqlite")
    assert again[:200] == first
    assert reads == 2


def test_a_changed_file_is_inspected_and_a_renamed_one_is_read_but_not_decoded(folder, tmp_path, monkeypatch):
    first, _ = inspected(folder, tmp_path / "c.sqlite")
    paint(folder / "003.png", (77, 77, 77), 3)
    (folder / "000.png").rename(folder / "zzz.png")
    decoded = []
    real = type(IMAGES).decode
    monkeypatch.setattr(type(IMAGES), "decode", lambda self, data: decoded.append(data) or real(self, data))
    again, reads = inspected(folder, tmp_path / "c.sqlite")
    assert reads == 2
    assert decoded == [(folder / "003.png").read_bytes()]
    assert again[-1] == first[0]
    assert again[2].item_id != first[3].item_id


def test_the_time_of_a_file_just_written_is_not_trusted(tmp_path):
    """Clocks of file systems are coarse: another content can have the same size and time."""
    paint(tmp_path / "set" / "a.png", (1, 1, 1), 1)
    assert time.time() - (tmp_path / "set" / "a.png").stat().st_mtime < SETTLED
    inspected(tmp_path / "set", tmp_path / "c.sqlite")
    assert inspected(tmp_path / "set", tmp_path / "c.sqlite")[1] == 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_an_unchanged_archive_are_not_read_again(folder, tmp_path, monkeypatch, kind):
    file = pack(kind, folder)
    settle(file)
    found = []
    for number in range(2):
        with open_source(str(file)) as source, InspectionCache(tmp_path / "c.sqlite", "1") as cache:
            if number:
                monkeypatch.setattr(type(source), "read", None)
            found.append(list(inspect(sorted(source.scan().files), source, cache, IMAGES)))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_processes_find_what_threads_find(folder, tmp_path, kind):
    (folder / "bad.png").write_bytes(b"no image")
    place = folder if kind == "folder" else pack(kind, folder)
    found = []
    for processes in (False, True):
        with open_source(str(place)) as source, InspectionCache(tmp_path / f"{processes}.sqlite", "1") as cache:
            found.append(list(inspect(sorted(source.scan().files), source, cache, IMAGES, processes)))
    assert found[0] == found[1]
    assert [info.reason for info in found[0][199:]] == ["", "not_an_image"]


@pytest.mark.parametrize("spoil", ["garbage", "empty", "other code"])
def test_a_useless_cache_is_replaced(folder, tmp_path, spoil):
    file = tmp_path / "c.sqlite"
    first, _ = inspected(folder, file)
    if spoil == "garbage":
        file.write_bytes(b"no database" * 1000)
    elif spoil == "empty":
        file.write_bytes(b"")
    version = "2" if spoil == "other code" else "1"
    assert inspected(folder, file, version) == (first, 200)
    assert inspected(folder, file, version) == (first, 0)


def test_the_fingerprint_of_the_code_is_that_of_its_results(monkeypatch):
    before = fingerprint(IMAGES)
    assert fingerprint(IMAGES) == before
    real = type(IMAGES).measures
    monkeypatch.setattr(type(IMAGES), "measures", lambda self, item: dict(real(self, item)))
    assert fingerprint(IMAGES) == before  # other code, the same results
    monkeypatch.setattr(type(IMAGES), "measures", lambda self, item: real(self, item) | {"width": 1})
    assert fingerprint(IMAGES) != before


@pytest.mark.parametrize(
    "spoil",
    ["DROP TABLE contents", "DROP TABLE versions; CREATE TABLE versions (x)", "pages", "a folder", "locked", "full"],
)
def test_a_cache_that_cannot_be_used_only_costs_time(folder, tmp_path, monkeypatch, capsys, spoil):
    file = tmp_path / "c.sqlite"
    first, _ = inspected(folder, file)
    other = None
    if spoil == "pages":
        data = bytearray(file.read_bytes())
        data[4096:] = b"\xab" * (len(data) - 4096)
        file.write_bytes(data)
    elif spoil == "a folder":
        file.unlink()
        file.mkdir()
    elif spoil == "locked":
        monkeypatch.setattr(inspection_cache, "SECONDS_TO_WAIT", 0.1)
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
    elif spoil == "full":
        monkeypatch.setattr(InspectionCache, "_insert", raises(sqlite3.OperationalError("database or disk is full")))
        file.unlink()
    else:
        with sqlite3.connect(file) as db:
            db.executescript(spoil)
    assert inspected(folder, file)[0] == first
    if spoil in ("a folder", "full"):
        assert f"{file}: cannot be used (" in capsys.readouterr().err
    if other:
        other.close()


def raises(error: Exception):
    def method(*_):
        raise error

    return method


def count(file: Path, table: str = "contents") -> int:
    """How many rows a cache has, which another process may be writing; 0 if it is just being made."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
            return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_the_cache_is_bounded_and_the_oldest_rows_are_dropped(folder, tmp_path, monkeypatch):
    file = tmp_path / "c.sqlite"
    inspected(folder, file)
    with sqlite3.connect(file) as db:
        for table in ("contents", "versions"):
            db.execute(f"UPDATE {table} SET found = found - 400")
    monkeypatch.setattr(inspection_cache, "MAX_CONTENTS", 50)
    new = tmp_path / "new"
    for number in range(40):
        paint(new / f"{number}.png", (9, 9, number), 1000 + number)
        settle(new / f"{number}.png")
    inspected(new, file)
    assert (count(file), count(file, "versions")) == (50, 50)
    assert inspected(new, file)[1] == 0


def test_failures_are_not_cached(folder, tmp_path, monkeypatch):
    """Another version of a library may read the file."""
    (folder / "odd.png").write_bytes(b"no image")
    settle(folder / "odd.png")
    infos, _ = inspected(folder, tmp_path / "c.sqlite")
    assert infos[-1].reason == "not_an_image"
    real = type(IMAGES).decode
    monkeypatch.setattr(
        type(IMAGES), "decode", lambda self, data: Image.new("RGB", (9, 9)) if b"no image" in data else real(self, data)
    )
    infos, reads = inspected(folder, tmp_path / "c.sqlite")
    assert (infos[-1].reason, reads) == ("", 1)


def test_light_and_blur_are_measured(tmp_path):
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    images = {"sharp": noise, "blurred": noise.filter(ImageFilter.GaussianBlur(9)), "dark": Image.new("RGB", (99, 9))}
    images["bright"] = Image.new("RGB", (50, 50), "white")
    data = []
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
        data.append((tmp_path / f"{name}.png").read_bytes())
    infos = inspect_contents(data, IMAGES)
    sharp, blurred, dark, bright = (info.measures for info in infos)
    assert sharp["sharpness"] > 20 * blurred["sharpness"]
    assert (dark["brightness"], bright["brightness"]) == (0.0, pytest.approx(1.0))
    assert (dark["width"], dark["height"]) == (99, 9)
    assert infos[2].descriptor == b""
    assert np.linalg.norm(np.frombuffer(infos[0].descriptor, np.float16).astype(float)) == pytest.approx(1, abs=0.01)


def test_two_processes_can_open_a_new_cache_at_once(tmp_path, capsys):
    """SQLite does not wait by itself while another process turns on the write-ahead log."""
    file = tmp_path / "c.sqlite"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, other.execute, ["ROLLBACK"])
    release.start()
    with InspectionCache(file, "1") as cache:
        cache.put([("a.png", "1", ItemInfo(file_hash="a"))])
        assert list(cache.by_version({"a.png": "1"})) == ["a.png"]
    release.join()
    assert capsys.readouterr().err == ""


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository after prepare, its photos last changed long ago."""
    root = tmp_path / "repository"
    for label in ("blue", "green", "red"):
        for number in range(16):
            paint(root / "photos" / label / f"{number}.png", (9, number, len(label)), 100 * len(label) + number)
            settle(root / "photos" / label / f"{number}.png")
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_params(root / "params.yaml", **{**SMALL, "data.source": "photos"})
    run_stages("prepare")
    return root


@pytest.mark.parametrize("how", ["links", "copies"])
def test_an_experiment_in_a_copy_of_the_repository_uses_the_cache(repository, monkeypatch, how):
    """By version if DVC links the files of the data source, by content if it copies them."""
    copy = repository / ".dvc" / "tmp" / "exps" / "standalone" / "x"
    copy.mkdir(parents=True)
    shutil.copy("params.yaml", copy)
    if how == "links":
        os.symlink(repository / "photos", copy / "photos")
        monkeypatch.setattr(Folder, "read", raises(AssertionError("a file was read")))
    else:
        shutil.copytree("photos", copy / "photos")
    monkeypatch.setattr(inspection, "inspect_contents", only_without_files)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    run_stages("prepare")
    assert paths.MANIFEST.read_bytes() == (repository / paths.MANIFEST).read_bytes()
    assert not (copy / ".dvc").exists()


def only_without_files(files: list[bytes], inspector: object) -> list[ItemInfo]:
    if len(files) != len(IMAGES.probes(8)):  # those of the fingerprint
        assert not files
    return inspect_contents(files, IMAGES)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_after_kill_9_the_results_are_those_of_an_undisturbed_run(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    for number in range(90):
        paint(folder / f"class {number % 3}" / f"{number:03}.png", (number % 256, 9, 9), number)
    Image.linear_gradient("L").resize((4000, 3000)).save(tmp_path / "large.png")
    large = (tmp_path / "large.png").read_bytes()
    for number in range(12):  # they take a second: time to be killed in
        (folder / "class 2" / f"large {number}.png").write_bytes(large + bytes([number]))
    for file in folder.glob("*/*"):
        settle(file)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for root in (killed, whole):
        root.mkdir()
        write_params(root / "params.yaml", **{**SMALL, "data.source": str(folder)})
    cache = killed / ".dvc" / "tmp" / "headstart" / "inspection.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DVC_ROOT", None)

    command = [sys.executable, "-m", "pipeline", "prepare"]
    running = subprocess.Popen(
        command, cwd=killed, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not count(cache) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert 0 < count(cache) < 102
    assert not (killed / paths.MANIFEST).exists()

    monkeypatch.delenv("DVC_ROOT", raising=False)
    for root in (killed, whole):
        monkeypatch.chdir(root)
        run_stages("prepare")
    for file in (paths.MANIFEST, paths.FILES, paths.CLASSES, paths.QUARANTINE, paths.IGNORED, paths.report("prepare")):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
