"""Archives whose lists of members would fill the memory."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from headstart.data import archives
from headstart.data.sources import open_source
from headstart.errors import UserError


def make(file: Path, count: int, global_headers: dict[str, str] | None = None, name: str = "red/{}.png") -> str:
    """Write an archive of `count` members of a byte each; returns its path."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for number in range(count):
                archive.writestr(name.format(number), b"x")
    else:
        with tarfile.open(file, "w", pax_headers=global_headers) as archive:
            for number in range(count):
                member = tarfile.TarInfo(name.format(number))
                member.size = 1
                archive.addfile(member, io.BytesIO(b"x"))
    return str(file)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_the_number_of_members_is_bounded(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    with open_source(make(tmp_path / f"20.{suffix}", 20)) as source:
        assert len(source.files) == 20
    source = make(tmp_path / f"21.{suffix}", 21)
    with pytest.raises(UserError, match=rf"21\.{suffix}: not a readable .* archive \(more than 20 members\)"):
        open_source(source)


def test_a_name_without_end_is_refused(tmp_path):
    file = make(tmp_path / "names.tar", 1, name="red/" + "x" * 70_000 + "{}.png")
    with pytest.raises(UserError, match=r"names\.tar: not a readable \.tar archive \(a name or attributes of 70,0"):
        open_source(file)


def test_what_is_said_about_all_members_is_not_kept_for_each(tmp_path):
    attributes = {f"KEY.{number}": "x" for number in range(3000)}
    file = make(tmp_path / "global.tar", 200, attributes)
    tracemalloc.start()
    with open_source(file) as source:
        _, peak = tracemalloc.get_traced_memory()
        assert len(source.files) == 200
    tracemalloc.stop()
    assert peak < 5e6  # 30 MB with a copy for each
