"""Runs side by side: who may use which GPU, and who computes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from filelock import FileLock

from headstart import framework, locks
from headstart.data.inspection_cache import Facts, Memory
from headstart.errors import UserError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "CUDA_VISIBLE_DEVICES", locks.GPUS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(locks, "_held", [])
    return tmp_path


def elsewhere(code: str, root: Path, **env: str) -> subprocess.Popen:
    """Another process of the same repository."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code], cwd=root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


HOLD = "from headstart import locks; print(locks.gpus({count}, 'extract')); input()"


def test_a_run_takes_what_no_other_one_holds(repository):
    other = elsewhere(HOLD.format(count=3), repository, HEADSTART_GPUS="1")
    assert other.stdout.readline() == "[0]\n"
    assert locks.gpus(3, "extract") == [1, 2]
    other.communicate("\n")


def test_an_experiment_takes_one_and_another_name_is_another_gpu(repository, monkeypatch):
    copy = repository / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(repository))  # as DVC runs queued experiments
    assert locks.gpus(3, "extract") == [0]
    assert locks.gpus(3, "extract") == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert locks.gpus(2, "extract") == [1]  # the first of these two is held, under the name of the second of three


def test_all_held_means_waiting_until_the_other_run_is_gone(repository):
    first = elsewhere(HOLD.format(count=1), repository)
    assert first.stdout.readline() == "[0]\n"
    second = elsewhere(HOLD.format(count=1), repository)
    assert second.stdout.readline().startswith("extract: waits for a GPU that no other run uses (HEADSTART_GPUS=shared")
    first.kill()  # as an abort does: nothing is cleaned up
    first.wait()
    assert second.stdout.readline() == "[0]\n"
    second.communicate("\n")


def test_shared_asks_nobody(repository, monkeypatch):
    assert locks.gpus(2, "extract") == [0, 1]
    monkeypatch.setenv(locks.GPUS, "shared")
    assert locks.gpus(2, "extract") == [0, 1]


@pytest.mark.parametrize("asked", ["0", "-1", "two"])
def test_a_wrong_wish_is_told(repository, monkeypatch, asked):
    monkeypatch.setenv(locks.GPUS, asked)
    with pytest.raises(UserError, match="HEADSTART_GPUS must be shared or the number of GPUs"):
        locks.gpus(2, "extract")


def test_tensorflow_sees_only_what_was_taken(repository, monkeypatch):
    seen = []
    monkeypatch.setattr(framework.tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(framework.tf.config, "set_visible_devices", lambda devices, kind: seen.append((devices, kind)))
    (repository / ".dvc/tmp/headstart/gpus").mkdir(parents=True)
    with FileLock(repository / ".dvc/tmp/headstart/gpus/0.lock"):
        framework.take_gpus.__wrapped__("extract")
    assert seen == [(["b"], "GPU")]


def test_two_that_open_a_fresh_memory_at_once_both_have_it(repository, capsys):
    """SQLite lets nobody wait while the journal is turned on."""
    file = repository / "images.sqlite"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, other.execute, ["ROLLBACK"])
    release.start()
    with Memory(file, "photos") as memory:
        memory.remember([("a.png", "1", Facts(file_hash="a"))])
        assert memory.files() == 1
    release.join()
    assert capsys.readouterr().err == ""


def test_a_second_run_waits_for_the_first_and_says_so(repository):
    code = "from pathlib import Path; from headstart import locks\n"
    code += "with locks.alone(Path('x/y.lock'), 'waits'): print('in'); input()"
    first = elsewhere(code, repository)
    assert first.stdout.readline() == "in\n"
    second = elsewhere(code, repository)
    assert second.stdout.readline() == "waits\n"
    first.communicate("\n")
    assert second.stdout.readline() == "in\n"
    second.communicate("\n")
