"""Which stages stand: those whose results in the workspace are what dvc.lock says of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from headstart import lockfile
from headstart.errors import UserError

OUT, LARGE, METRICS = Path("predictions/test.csv"), Path("models/model.keras"), Path("metrics/evaluate.json")


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """A workspace in which the stage evaluate stands; LARGE is too large to be hashed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lockfile, "MAX_HASHED_BYTES", 100)
    files = {OUT: b"path,label\n", LARGE: bytes(200), METRICS: b"{}"}
    for file, content in files.items():
        file.parent.mkdir()
        file.write_bytes(content)
    definition = {
        "cmd": "evaluate", "params": ["seed"], "deps": [], "outs": [OUT.as_posix(), LARGE.as_posix()],
        "metrics": [{METRICS.as_posix(): {"cache": False}}],
    }  # fmt: skip
    outs = [
        {"path": file.as_posix(), "hash": "md5", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}
        for file, content in files.items()
    ]
    entry = {"cmd": "evaluate", "params": {"params.yaml": {"seed": 1}}, "deps": [], "outs": outs}
    lockfile.PIPELINE.write_text(yaml.safe_dump({"stages": {"evaluate": definition}}))
    lockfile.LOCK.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"evaluate": entry}}))
    return tmp_path


def stands() -> bool:
    return lockfile.reached({"seed": 1}) == ["evaluate"]


def test_outputs_that_are_not_those_of_the_lock_file_do_not_stand(here):
    assert stands()
    for file in (OUT, METRICS):
        before = file.read_bytes()
        file.write_bytes(before.swapcase() + b" ")
        assert not stands(), file
        file.write_bytes(bytes(len(before)))  # of the same size
        assert not stands(), file
        file.write_bytes(before)
        assert stands()
    OUT.unlink()
    assert not stands()


def test_of_a_large_output_the_size_tells(here):
    LARGE.write_bytes(bytes(199))
    assert not stands()
    LARGE.write_bytes(b"1" * 200)
    assert stands()


@pytest.mark.parametrize("content", ["<<<<<<< HEAD\nstages: {}\n=======\n", "[1]", b"\xff\xfe\xff", "stages: {a: [}"])
def test_a_lock_file_that_cannot_be_read_is_named(here, content):
    lockfile.LOCK.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"dvc.lock: cannot be read: .*git checkout HEAD -- dvc.lock"):
        stands()


@pytest.mark.parametrize(
    "content",
    [
        *("", "stages: null", "stages: [1]", "stages: {evaluate: null}", "stages: {evaluate: [1]}"),
        "stages: {evaluate: {cmd: evaluate, outs: 5}}",
    ],
)
def test_what_dvc_did_not_write_describes_nothing(here, content):
    lockfile.LOCK.write_text(content)
    assert not stands()
