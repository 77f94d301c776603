"""What is known about images: in one pass, remembered, whatever interrupts it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, paint, write_params
from PIL import Image, ImageFilter
from test_sources import pack

from headstart.data import inspection_cache as memory_module
from headstart.data.files import SETTLED, Folder
from headstart.data.inspection import inspect, look
from headstart.data.inspection_cache import Memory
from headstart.data.sources import open_source


class Counted(Folder):
    """A folder that counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads = 0

    def read(self, name: str) -> bytes:
        self.reads += 1
        return super().read(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two hundred images, of a time long past."""
    for number in range(200):
        paint(tmp_path / "set" / f"{number:03}.png", (number, 9, 9), number)
        settle(tmp_path / "set" / f"{number:03}.png")
    return tmp_path / "set"


def settle(file: Path) -> None:
    os.utime(file, (1e9, 1e9))


def seen(folder: Path, file: Path, **options) -> tuple[list, int]:
    """The facts about the files of `folder`, and how many were read."""
    source = Counted(folder).scan()
    with Memory(file, str(folder)) as memory:
        return list(inspect(source.files, source, memory, **options)), source.reads


def test_a_second_look_reads_nothing_but_what_is_new(folder, tmp_path):
    first, reads = seen(folder, tmp_path / "m.sqlite")
    assert reads == len(first) == 200
    assert seen(folder, tmp_path / "m.sqlite") == (first, 0)
    for number in range(200, 202):
        paint(folder / f"{number}.png", (1, 1, 1), number)
    again, reads = seen(folder, tmp_path / "m.sqlite")
    assert again[:200] == first
    assert reads == 2


def test_a_file_that_changed_is_seen_anew_and_a_renamed_one_is_read_but_not_decoded(folder, tmp_path, monkeypatch):
    first, _ = seen(folder, tmp_path / "m.sqlite")
    paint(folder / "003.png", (77, 77, 77), 3)
    (folder / "000.png").rename(folder / "zzz.png")
    from headstart.data import inspection

    decoded = []
    real = inspection.decode
    monkeypatch.setattr(inspection, "decode", lambda data: decoded.append(data) or real(data))
    again, reads = seen(folder, tmp_path / "m.sqlite")
    assert reads == 2
    assert decoded == [(folder / "003.png").read_bytes()]
    assert again[-1] == first[0]
    assert again[2].item_id != first[3].item_id


def test_the_time_of_a_file_just_written_is_not_trusted(tmp_path):
    """Clocks of file systems are coarse: another content can have the same size and time."""
    paint(tmp_path / "set" / "a.png", (1, 1, 1), 1)
    assert time.time() - (tmp_path / "set" / "a.png").stat().st_mtime < SETTLED
    seen(tmp_path / "set", tmp_path / "m.sqlite")
    assert seen(tmp_path / "set", tmp_path / "m.sqlite")[1] == 1


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_processes_find_what_threads_find(folder, tmp_path, kind):
    (folder / "bad.png").write_bytes(b"no image")
    place = folder if kind == "folder" else pack(kind, folder)
    found = []
    for processes in (False, True):
        with open_source(str(place)) as source, Memory(tmp_path / f"{processes}.sqlite", "x") as memory:
            found.append(list(inspect(sorted(source.scan().files), source, memory, processes)))
    assert found[0] == found[1]
    assert [facts.reason for facts in found[0][199:]] == ["", "not_an_image"]


@pytest.mark.parametrize("spoil", ["garbage", "empty", "other code"])
def test_a_memory_that_is_of_no_use_is_made_anew(folder, tmp_path, monkeypatch, spoil):
    file = tmp_path / "m.sqlite"
    first, _ = seen(folder, file)
    if spoil == "garbage":
        file.write_bytes(b"no database" * 1000)
    elif spoil == "empty":
        file.write_bytes(b"")
    else:
        monkeypatch.setattr(memory_module, "_code_version", lambda: "another")
    assert seen(folder, file) == (first, 200)


@pytest.mark.parametrize(
    "spoil",
    ["DROP TABLE contents", "DROP TABLE versions; CREATE TABLE versions (x)", "pages", "a folder", "locked", "full"],
)
def test_a_memory_that_cannot_be_used_costs_time_alone(folder, tmp_path, monkeypatch, capsys, spoil):
    file = tmp_path / "m.sqlite"
    first, _ = seen(folder, file)
    other = None
    if spoil == "pages":
        data = bytearray(file.read_bytes())
        data[4096:] = b"\xab" * (len(data) - 4096)
        file.write_bytes(data)
    elif spoil == "a folder":
        file.unlink()
        file.mkdir()
    elif spoil == "locked":
        monkeypatch.setattr(memory_module, "SECONDS_TO_WAIT", 0.1)
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
    elif spoil == "full":
        monkeypatch.setattr(Memory, "_insert", raises(sqlite3.OperationalError("database or disk is full")))
        file.unlink()
    else:
        with sqlite3.connect(file) as db:
            db.executescript(spoil)
    assert seen(folder, file)[0] == first
    if spoil in ("a folder", "full"):
        assert f"{file}: cannot be used (" in capsys.readouterr().err
    if other:
        other.close()


def raises(error: Exception):
    def method(*_):
        raise error

    return method


def test_what_was_found_out_long_ago_is_forgotten(folder, tmp_path):
    file = tmp_path / "m.sqlite"
    seen(folder, file)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE contents SET found = found - 400")
    Memory(file, "x").close()
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT count(*) FROM contents").fetchone() == (0,)
    assert seen(folder, file)[1] == 200


def test_light_and_blur_are_measured(tmp_path):
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    images = {"sharp": noise, "blurred": noise.filter(ImageFilter.GaussianBlur(9)), "dark": Image.new("RGB", (99, 9))}
    images["bright"] = Image.new("RGB", (50, 50), "white")
    data = []
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
        data.append((tmp_path / f"{name}.png").read_bytes())
    sharp, blurred, dark, bright = look(data)
    assert sharp.sharpness > 20 * blurred.sharpness
    assert (dark.brightness, bright.brightness) == (0.0, pytest.approx(1.0))
    assert (dark.width, dark.height) == (99, 9)
    assert dark.descriptor == b""
    assert np.linalg.norm(np.frombuffer(sharp.descriptor, np.float16).astype(float)) == pytest.approx(1, abs=0.01)


def test_a_run_after_kill_9_ends_as_one_that_was_not_disturbed(tmp_path):
    folder = tmp_path / "photos"
    for number in range(300):
        paint(folder / f"class {number % 3}" / f"{number:03}.png", (number % 256, 9, 9), number)
    Image.linear_gradient("L").resize((4000, 3000)).save(tmp_path / "large.png")
    for number in range(20):  # they take seconds: time to be killed in
        data = (tmp_path / "large.png").read_bytes() + bytes([number])
        (folder / "class 2" / f"large {number}.png").write_bytes(data)
    for file in folder.glob("*/*"):
        settle(file)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for root in (killed, whole):
        root.mkdir()
        for name in ("dvc.yaml", "pipeline"):
            os.symlink(ROOT / name, root / name)
        write_params(root / "params.yaml", **{**SMALL, "data.source": str(folder)})
    command = [sys.executable, "-m", "pipeline.prepare"]
    store = killed / ".dvc" / "tmp" / "headstart" / "images.sqlite"

    running = subprocess.Popen(command, cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not remembered(store) and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert 0 < remembered(store) < 320
    assert not (killed / "data/prepared/manifest.parquet").exists()

    for root in (killed, whole):
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    prepared = ("manifest.parquet", "classes.json", "quarantine.csv", "ignored.csv")
    for name in ("metrics/prepare.json", "reports/data.html", *(f"data/prepared/{name}" for name in prepared)):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def remembered(store: Path) -> int:
    """How many images a memory holds that another process may be writing."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
            return db.execute("SELECT count(*) FROM contents").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # not made yet
