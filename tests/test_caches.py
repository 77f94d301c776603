"""Every cache of ours with flipped bits: what is read is what was written, or nothing, and a line says so.

Copies of downloads: test_transfers.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headstart import costs
from headstart.arrays import read_arrays, write_arrays
from headstart.data.inspection_cache import InspectionCache, ItemInfo
from headstart.features import admin, store
from headstart.features.engines import graphs
from headstart.features.engines.base import NetworkInfo
from headstart.features.store import DamagedStoreError, open_store
from headstart.framework import keras
from headstart.training import plan
from headstart.training.checkpoint import Checkpoint
from headstart.training.history import History
from headstart.training.verdict import PairedScores

SEEDS = range(200)
INFOS = [ItemInfo("", "", f"id{n}", {"width": n + 0.5}, bytes([n]) * 40, f"{n:032x}") for n in range(60)]
ROWS = [(f"red/{n:04}.png", f"{n} 1", info) for n, info in enumerate(INFOS)]


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def flipped(file: Path) -> Iterator[bytes]:
    """Yield the content of `file` with one to forty bits flipped."""
    content = file.read_bytes()
    for seed in SEEDS:
        rng, changed = random.Random(seed), bytearray(content)
        for _ in range(rng.choice([1, 1, 5, 40])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def replace(file: Path, content: bytes) -> None:
    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    file.write_bytes(content)


def test_what_inspection_found_out(tmp_path, capsys):
    file, said = tmp_path / "c.sqlite", 0
    with InspectionCache(file, "1") as cache:
        cache.put(ROWS)
    for content in flipped(file):
        replace(file, content)
        with InspectionCache(file, "1") as cache:
            by_version = cache.by_version({name: version for name, version, _ in ROWS})
            by_content = cache.by_content([info.file_hash for info in INFOS])
        assert by_version.items() <= {name: info for name, _, info in ROWS}.items()
        assert by_content.items() <= {info.file_hash: info for info in INFOS}.items()
        said += bool(capsys.readouterr().err)
    assert said > len(SEEDS) / 3  # other bits stand for nothing, or for a key


def test_a_damaged_row_of_the_inspection_is_said_and_healed(tmp_path, capsys):
    file = tmp_path / "c.sqlite"
    with InspectionCache(file, "1") as cache:
        cache.put(ROWS)
    file.write_bytes(file.read_bytes().replace(b'"width": 7.5', b'"width": 5.5'))
    name, version, info = ROWS[7]
    for expected in ({}, {name: info}):
        with InspectionCache(file, "1") as cache:
            assert cache.by_version({name: version}) == expected
            cache.put(ROWS[7:8])
    assert capsys.readouterr().err == f"{file}: has damaged rows; their files are inspected again\n"
    file.write_bytes(b"no database" * 1000)
    with InspectionCache(file, "1") as cache:
        assert cache.by_version({name: version}) == {}
    said = capsys.readouterr().err
    assert said == f"{file}: damaged (file is not a database) and replaced; all files are inspected again\n"


def test_features(capsys):
    features, keys = np.arange(320, dtype=np.float32).reshape(40, 8), [bytes([n]) * 16 for n in range(40)]
    with open_store({"a": 1}, 8, "float32") as opened:
        opened.put(keys, features, 2.0)
        file = opened.file
    for content in flipped(file):
        replace(file, content)
        try:
            with open_store({"a": 1}, 8, "float32") as opened:
                found, bad = opened.get(keys)
                good = np.setdiff1d(np.arange(40), bad)
                assert (found[good] == features[good]).all()
                assert len(opened.missing(keys)) <= 40
                assert np.isfinite(opened.seconds_per_row())
        except DamagedStoreError:
            assert not file.exists()
            continue
        admin.list_features()
        admin.verify_features()
        capsys.readouterr()


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"figures": {"latency_ms": 6.5}, "blake3": ""}'])
def test_what_a_result_cost(capsys, text):
    costs.write("evaluate", {"latency_ms": 7.5, "device": "CPU"}, "abc")
    (file,) = Path(".dvc").rglob("*abc.json")
    for content in flipped(file):
        file.write_bytes(content)
        assert costs.read("evaluate", "abc") in ({}, {"latency_ms": 7.5, "device": "CPU"})
    file.write_text(text)
    capsys.readouterr()
    assert costs.read("evaluate", "abc") == {}
    assert f"{file.name}: damaged, or of another version; what this evaluate cost" in capsys.readouterr().err
    assert not file.exists()


def state(value: float) -> tuple[list[keras.Variable], History, PairedScores]:
    scores = PairedScores.empty(np.zeros(3, np.int32))
    scores.losses, scores.brier_scores, scores.correct = ([np.full(3, value)] for _ in range(3))
    return [keras.Variable(np.full((4, 2), value, np.float32))], History([]), scores


def test_the_state_that_a_killed_run_resumes_from(tmp_path, capsys):
    file, outcomes = tmp_path / "state.npz", set()
    Checkpoint(file).save(*state(1.5))
    for content in flipped(file):
        file.write_bytes(content)
        variables, history, scores = state(0.0)
        loaded = Checkpoint(file).load(variables, history, scores)
        assert np.unique(variables[0].numpy()) == (1.5 if loaded else 0.0)
        assert scores.losses[0][0] == (1.5 if loaded else 0.0)
        said = capsys.readouterr().err
        assert (said == "") == loaded
        assert loaded or said == f"{file}: cannot be used (it is damaged); fine-tuning starts from the beginning\n"
        outcomes.add(loaded)
    assert False in outcomes


def test_the_logits_of_a_fold(tmp_path, capsys):
    file, logits = tmp_path / "fold.npz", np.arange(12, dtype=np.float32).reshape(4, 3)
    assert plan._read_logits(file, (4, 3)) is None
    write_arrays(file, logits=logits)
    for content in flipped(file):
        file.write_bytes(content)
        found = plan._read_logits(file, (4, 3))
        assert found is None or (found == logits).all()
        assert (capsys.readouterr().err == "") == (found is not None)


def test_arrays_of_all_kinds(tmp_path):
    arrays = {"text": np.array("äb"), "empty": np.zeros((0, 3)), "number": np.array(2.5), "column": np.eye(3)[:, 1]}
    write_arrays(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
    )
    np.savez(tmp_path / "b.npz", number=np.array(2.5))  # without a checksum
    (tmp_path / "c.npz").write_bytes(b"")
    for name in ("b", "c"):
        with pytest.raises(ValueError, match="it is damaged"):
            read_arrays(tmp_path / f"{name}.npz")


def test_the_converted_networks(tmp_path, monkeypatch, capsys):
    import openvino

    def serialize(model, xml: Path, weights: Path) -> None:
        xml.write_bytes(b"<net/>\n" * 20)
        weights.write_bytes(bytes(range(256)) * 4)

    monkeypatch.setattr(openvino, "serialize", serialize)
    file, info = tmp_path / "n.graph", NetworkInfo(3, "ab", {"last": [3]})
    graphs.write(file, info, None)
    assert graphs.read(file) == (info, b"<net/>\n" * 20, bytes(range(256)) * 4)
    for content in flipped(file):
        file.write_bytes(content)
        found = graphs.read(file)
        said = capsys.readouterr().err
        assert found is None
        assert said == f"{file}: damaged (its checksum is another one) and removed; the network is converted again\n"
        assert not file.exists()
    file.write_bytes(b"damaged, and on a disk that cannot be written")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda file, missing_ok: file.rmdir())  # an OSError
        assert graphs.read(file) is None
    assert "damaged" in capsys.readouterr().err
    file.write_bytes(b"")  # as a full disk leaves a file
    assert graphs.read(file) is None
    assert "damaged" in capsys.readouterr().err
    assert graphs.read(file) is None
    assert capsys.readouterr().err == ""


SQLITE = {"contents.sqlite", "inspection.sqlite"}  # both are an InspectionCache


def test_what_a_killed_run_left_of_a_converted_network_is_removed(tmp_path, monkeypatch, capsys):
    import openvino

    def serialize(model, xml: Path, weights: Path) -> None:
        xml.write_bytes(b"<net/>")
        weights.write_bytes(b"")
        (tmp_path / "pruned.graph").unlink(missing_ok=True)  # as another run does at the same time

    monkeypatch.setattr(openvino, "serialize", serialize)
    old, new = tmp_path / f"{graphs._PARTIAL}old", tmp_path / f"{graphs._PARTIAL}new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "graph.bin").write_bytes(b"x")
    os.utime(old, (1, 1))
    (tmp_path / "pruned.graph").write_bytes(b"")
    stat = Path.stat

    def stat_of_a_moving_target(file: Path, **options: bool) -> os.stat_result:
        if file.name == "pruned.graph":
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return stat(file, **options)

    monkeypatch.setattr(Path, "stat", stat_of_a_moving_target)
    graphs.write(tmp_path / "n.graph", NetworkInfo(3, "ab", {"last": [3]}), None)
    assert (tmp_path / "n.graph").exists()
    assert new.exists()
    assert not old.exists()
    assert capsys.readouterr().err == ""


def test_a_checkpoint_of_another_run_may_vanish_at_any_time(tmp_path, monkeypatch):
    (tmp_path / ".other.partial.1.npz").symlink_to(tmp_path / "renamed")
    Checkpoint(tmp_path / "state.npz").save(*state(1.5))
    assert Checkpoint(tmp_path / "state.npz").load(*state(0.0))


def test_every_cache_is_tested():
    """All that `cache_path` names: a new one needs a test here, or holds nothing (locks)."""
    root = Path(store.__file__).parent.parent
    named = {
        line.split("cache_path(")[1].split(")")[0].strip('"').removeprefix('f"').split("/")[0]
        for file in root.parent.glob("[hp]*/**/*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "cache_path(" in line and "def " not in line
    }
    assert named == {"costs", "features", "fetched", "fine_tune", "gpus", "graphs", "tracking.lock", *SQLITE}
