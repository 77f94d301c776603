"""Files that appear all at once, and what must not be replaced by them."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from headstart.errors import UserError
from headstart.outputs import Outputs


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(file: str, **options: bool) -> None:
    outputs = Outputs(**options)
    outputs.path(Path(file)).write_text("new")
    outputs.commit()


def test_a_device_stays_one():
    reader, writer = os.openpty()  # a device in whose folder no file can be made: nothing is lost where this fails
    try:
        device = os.ttyname(writer)
        os.symlink(device, "link")
        for name in (device, "link"):
            put(name)
            assert os.read(reader, 10) == b"new"
        assert stat.S_ISCHR(os.stat(device).st_mode)
        assert os.path.islink("link")
    finally:
        os.close(reader)
        os.close(writer)


def test_a_pipe_takes_what_is_written():
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()))
    reader.start()
    put("pipe")
    reader.join()
    assert read == ["new"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_written(there, here):
    (here / "below").mkdir()
    if there:
        (here / "below/file.txt").write_text("old")
    os.symlink("below/file.txt", "link.txt")
    os.symlink("link.txt", "second.txt")
    put("second.txt")
    assert (here / "below/file.txt").read_text() == "new"
    assert os.path.islink("link.txt")
    assert os.path.islink("second.txt")
    assert sorted(os.listdir()) == ["below", "link.txt", "second.txt"]
    assert os.listdir("below") == ["file.txt"]


def test_a_stage_replaces_a_link_as_dvc_makes_them(here):
    (here / "cached").write_text("old")
    os.symlink("cached", "output")
    put("output", through_links=False)
    assert (here / "cached").read_text() == "old"
    assert not os.path.islink("output")
    assert (here / "output").read_text() == "new"


def test_what_can_hold_nothing_is_told(here):
    os.symlink("loop", "loop")
    (here / "folder").mkdir()
    os.symlink("folder", "to_folder")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name, told in (("loop", "loop"), ("folder", "folder"), ("to_folder", "folder"), ("socket", "socket")):
            with pytest.raises(UserError, match=f"{told}: cannot be written: "):
                put(name)
    assert stat.S_ISSOCK(os.stat("socket").st_mode)
