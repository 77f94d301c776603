"""The feature store: what is put can be read, whatever else happens to the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from headstart import cli
from headstart.features.store import FeatureStore, fingerprint, folder, open_store, remove

KEYS = [bytes([number]) * 16 for number in range(10)]


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder() / f"{fingerprint({})}.sqlite"


def test_features_are_read_bit_for_bit(file, rows):
    with FeatureStore(file, {}, 6, "float32") as store:
        assert store.missing([*KEYS, KEYS[0]]) == list(range(10))  # of equal ones the first
        store.put(KEYS[:4], rows[:4], 2.0)
        store.put(KEYS[3:6], rows[3:6], 1.0)
    with FeatureStore(file, {}, 6, "float32") as store:
        assert store.missing(KEYS[::-1]) == [0, 1, 2, 3]
        found, bad = store.get([KEYS[5], KEYS[7], KEYS[0], KEYS[5]])
        assert bad == [1]
        assert (found[[0, 2, 3]] == rows[[5, 0, 5]]).all()
        assert store.seconds_per_row() == pytest.approx(3 / 7)


def test_float16_takes_half_of_the_space(file, rows):
    with FeatureStore(file, {}, 6, "float16") as store:
        store.put(KEYS, rows, 0.0)
        found, bad = store.get(KEYS)
    assert not bad
    assert (found == rows.astype(np.float16)).all()
    assert found.dtype == np.float16


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_zeros_at_the_end_of_a_row_take_no_space(file, dtype):
    rows = np.zeros((10, 50_000), dtype)
    rows[np.arange(1, 10), np.arange(9)] = [1, -1, 2.0**-24, 1e4, 0.1, -0.0, 3, 256, 1]  # one row is all zeros
    rows[9, -1] = -0.0
    with FeatureStore(file, {}, 50_000, dtype) as store:
        store.put(KEYS[:9], rows[:9], 0.0)
        found, bad = store.get(KEYS[:9])
        assert not bad
        assert found.tobytes() == rows[:9].tobytes()
        store.put(KEYS[9:], rows[9:], 0.0)
        assert store.get(KEYS[9:])[0].tobytes() == rows[9:].tobytes()
    with sqlite3.connect(file) as db:
        sizes = [size for (size,) in db.execute("SELECT length(feature) FROM features ORDER BY key")]
    assert max(sizes[:9]) <= 9 * rows.itemsize
    assert sizes[9] == 50_000 * rows.itemsize


@pytest.mark.parametrize("column", ["key", "feature", "digest"])
def test_a_damaged_row_is_noticed_and_can_be_put_again(file, rows, column):
    with FeatureStore(file, {}, 6, "float32") as store:
        store.put(KEYS, rows, 0.0)
    with sqlite3.connect(file) as db:
        changed = {"key": b"\xff" * 16, "feature": rows[4].tobytes()[:-1] + b"\x01", "digest": b"\0" * 8}
        db.execute(f"UPDATE features SET {column} = ? WHERE key = ?", (changed[column], KEYS[4]))
    with FeatureStore(file, {}, 6, "float32") as store:
        found, bad = store.get(KEYS)
        assert bad == [4]
        store.put([KEYS[4]], rows[4:5], 0.0)
        found, bad = store.get(KEYS)
        assert not bad
        assert (found == rows).all()


def test_verify_and_prune(file, rows, capsys):
    assert cli.main(["features"]) == 0
    assert "is empty; extract fills it" in capsys.readouterr().out
    with FeatureStore(file, {"backbone": "tiny"}, 6, "float32") as store:
        store.put(KEYS, rows, 0.0)
    assert cli.main(["features", "list"]) == 0
    assert f"{file.stem:<17} {10:>10}" in capsys.readouterr().out
    assert cli.main(["features", "verify"]) == 0
    with sqlite3.connect(file) as db:
        db.execute("UPDATE features SET feature = ? WHERE key = ?", (b"x" * 24, KEYS[4]))
    assert cli.main(["features", "verify"]) == 1
    assert "9 rows are intact, 1 damaged rows were removed" in capsys.readouterr().out
    assert cli.main(["features", "verify"]) == 0
    with FeatureStore(file, {}, 6, "float32") as store:
        assert store.missing(KEYS) == [4]

    other = file.with_name("0123456789abcdef.sqlite")
    other.write_bytes(b"no database at all" * 100)
    assert cli.main(["features"]) == 1
    assert (
        "damaged (file is not a database); `headstart features prune 0123456789abcdef` removes it"
        in capsys.readouterr().out
    )
    assert cli.main(["features", "verify"]) == 1
    assert cli.main(["features", "prune"]) == 1
    for days in ("-5", "nan"):
        assert cli.main(["features", "prune", "--unused-for", days]) == 1
        assert "--unused-for must be a number of days, 0 or more" in capsys.readouterr().err
    (file.parent / "folder.sqlite").mkdir()
    assert cli.main(["features", "prune", "ffff"]) == 1
    assert "unknown fingerprint ffff" in capsys.readouterr().err
    assert cli.main(["features", "prune", other.stem]) == 0
    (file.parent / "folder.sqlite").rmdir()
    assert [found.name for found in file.parent.glob("*.sqlite")] == [file.name]
    assert cli.main(["features", "prune", "--unused-for", "1"]) == 0
    assert file.exists()
    os.utime(file, (1e9, 1e9))
    assert cli.main(["features", "prune", "--unused-for", "1"]) == 0
    assert list(file.parent.iterdir()) == []


def test_verifying_is_not_using(file, rows):
    with FeatureStore(file, {}, 6, "float32") as store:
        store.put(KEYS, rows, 0.0)
    db = sqlite3.connect(file)
    db.execute("UPDATE features SET digest = zeroblob(8) WHERE rowid = 3")
    db.commit()
    db.close()
    os.utime(file, (1e9, 1e9))
    assert cli.main(["features", "verify"]) == 1
    assert file.stat().st_mtime == 1e9


WRITER = """
import sys, numpy as np
from pathlib import Path
from headstart.features.store import FeatureStore
first, last = int(sys.argv[2]), int(sys.argv[3])
with FeatureStore(Path(sys.argv[1]), {}, 100, "float32") as store:
    for number in range(first, last):
        store.put([number.to_bytes(16, "big")], np.full((1, 100), number, np.float32), 0.01)
        print(number, flush=True)
"""


def writer(file: Path, first: int, last: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file), str(first), str(last)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def read(file: Path, last: int) -> tuple[np.ndarray, list[int]]:
    with FeatureStore(file, {}, 100, "float32") as store:
        return store.get([number.to_bytes(16, "big") for number in range(last)])


def test_two_processes_write_at_once(file):
    both = [writer(file, 0, 300), writer(file, 200, 500)]
    assert [process.wait(120) for process in both] == [0, 0]
    found, bad = read(file, 500)
    assert not bad
    assert (found == np.arange(500)[:, None]).all()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_what_was_put_survives_a_kill_at_any_moment(file):
    for turn in range(3):
        process = writer(file, 0, 100_000)
        process.stdout.readline()
        time.sleep(0.05 * turn)
        process.send_signal(signal.SIGKILL)
        printed = 1 + len(process.stdout.read().splitlines())  # the last line may be incomplete
        process.wait(60)
        found, bad = read(file, printed - 1)
        assert not bad
        assert (found == np.arange(printed - 1)[:, None]).all()
        remove(file)


def test_a_full_disk_loses_nothing(file, rows):
    with FeatureStore(file, {}, 6, "float32") as store:
        store.put(KEYS[:5], rows[:5], 0.0)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        many = [number.to_bytes(16, "little") for number in range(1, 10_000)]
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.put(many, np.zeros((len(many), 6)), 0.0)
        assert store.missing(many) == list(range(len(many)))  # all or nothing
        _, bad = store.get(KEYS[:5])
        assert not bad
    with FeatureStore(file, {}, 6, "float32") as store:
        assert (store.get(KEYS[:5])[0] == rows[:5]).all()
        store.put(KEYS[5:], rows[5:], 0.0)


def test_a_broken_database_is_replaced(file, rows, capsys):
    with open_store({}, 6, "float32") as store:
        store.put(KEYS, rows, 0.0)
    file.write_bytes(b"no database at all" * 1000)
    with open_store({}, 6, "float32") as store:
        assert store.missing(KEYS) == list(range(10))
        store.put(KEYS, rows, 0.0)
    assert "damaged (file is not a database); everything in it is computed again" in capsys.readouterr().err
    with open_store({}, 6, "float32") as store:
        assert store.missing(KEYS) == []


def test_without_a_writable_folder_features_are_kept_for_the_run(file, rows, capsys):
    file.parent.parent.mkdir(parents=True)
    file.parent.write_text("a file where the folder belongs")
    with open_store({}, 6, "float32") as store:
        store.put(KEYS, rows, 0.0)
        assert store.get(KEYS)[1] == []
        elsewhere = store.file
    assert "cannot be used" in capsys.readouterr().err
    assert not elsewhere.exists()


def test_every_input_changes_the_fingerprint():
    base = {"backbone": "tiny", "size": 96, "libraries": {"openvino": "1"}}
    assert fingerprint(dict(reversed(base.items()))) == fingerprint(base)
    others = [{**base, "size": 97}, {**base, "libraries": {"openvino": "2"}}, {**base, "more": 1}]
    assert len({fingerprint(found) for found in (base, *others)}) == 4
