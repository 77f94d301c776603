"""Runs side by side: which GPU each may use, and which one computes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from filelock import FileLock

from headstart import framework, locks
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


HOLD = "from headstart import locks; print(locks.claim_gpus({count}, 'extract')); input()"


def test_a_run_claims_all_gpus_that_no_other_uses(repository):
    other = elsewhere(HOLD.format(count=3), repository, HEADSTART_GPUS="1")
    assert other.stdout.readline() == "[0]\n"
    assert locks.claim_gpus(3, "extract") == [1, 2]
    other.communicate("\n")


def test_an_experiment_claims_one_and_another_name_is_another_gpu(repository, monkeypatch):
    copy = repository / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(repository))  # as DVC runs queued experiments
    assert locks.claim_gpus(3, "extract") == [0]
    assert locks.claim_gpus(3, "extract") == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert locks.claim_gpus(2, "extract") == [1]  # the first of these two is the second of three, and held


def test_a_run_waits_while_all_gpus_are_in_use(repository):
    first = elsewhere(HOLD.format(count=1), repository)
    assert first.stdout.readline() == "[0]\n"
    second = elsewhere(HOLD.format(count=1), repository)
    line = second.stdout.readline()
    assert line.startswith("extract: waiting for a GPU that no other run uses (HEADSTART_GPUS=shared shares them); 0 (")
    assert f"process {first.pid}, since " in line
    first.kill()  # as an abort does: nothing is cleaned up
    first.wait()
    assert second.stdout.readline() == "[0]\n"
    second.communicate("\n")


def test_shared_claims_nothing(repository, monkeypatch):
    assert locks.claim_gpus(2, "extract") == [0, 1]
    monkeypatch.setenv(locks.GPUS, "shared")
    assert locks.claim_gpus(2, "extract") == [0, 1]


@pytest.mark.parametrize("setting", ["0", "-1", "two"])
def test_a_wrong_setting_is_reported(repository, monkeypatch, setting):
    monkeypatch.setenv(locks.GPUS, setting)
    with pytest.raises(UserError, match="HEADSTART_GPUS must be shared or the number of GPUs"):
        locks.claim_gpus(2, "extract")


def test_tensorflow_sees_only_claimed_gpus(repository, monkeypatch):
    seen = []
    monkeypatch.setattr(framework.tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(framework.tf.config, "set_visible_devices", lambda devices, kind: seen.append((devices, kind)))
    (repository / ".dvc/tmp/headstart/gpus").mkdir(parents=True)
    with FileLock(repository / ".dvc/tmp/headstart/gpus/0.lock"):
        framework.take_gpus.__wrapped__("extract")
    assert seen == [(["b"], "GPU")]


def test_a_second_run_waits_for_the_first_and_says_who_that_is(repository):
    code = "from pathlib import Path; from headstart import locks; locks.SECONDS_BETWEEN_LINES = 0.1\n"
    code += "with locks.exclusive_lock(Path('x/y.lock'), 'waits'): print('in'); input()"
    first = elsewhere(code, repository)
    assert first.stdout.readline() == "in\n"
    second = elsewhere(code, repository)
    for _ in range(3):
        assert re.fullmatch(
            rf"waits \(process {first.pid}, since \d+-\d\d-\d\d \d\d:\d\d\)\n", second.stdout.readline()
        )
    first.communicate("\n")
    lines = iter(second.stdout.readline, "in\n")
    assert all(line.startswith("waits") for line in lines)
    assert json.loads((repository / "x/y.holder").read_text())["pid"] == second.pid
    second.communicate("\n")
    assert not (repository / "x/y.holder").exists()


HOLDER = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time(), "since": 0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, r" \(process PID, since 19\d\d-\d\d-\d\d \d\d:\d\d\)"),
        (
            {"started": 5.0},
            r" \(process .*, which has ended; a process .* may hold y\.lock: .* delete the file\)",
        ),
        ({"pid": 2**22 + 1}, r" \(process 4194305, .* which has ended; .*"),
        (
            {"host": "node7"},
            r" \(process .*, on the machine node7; if it does not run there .*, delete y\.lock\)",
        ),
        ({"pid": "x"}, ""),
        ({"since": 1e300}, ""),
    ],
)
def test_who_holds_a_lock(repository, change, expected):
    Path("y.holder").write_text(json.dumps(HOLDER | change))
    assert re.fullmatch(expected.replace("PID", str(os.getpid())), locks.holder(Path("y.lock")))
    Path("y.holder").write_text("[]")
    assert locks.holder(Path("y.lock")) == ""


def test_a_lock_of_a_run_that_was_killed_is_free(repository):
    code = "from pathlib import Path; from headstart import locks\n"
    code += "with locks.exclusive_lock(Path('x/y.lock'), 'waits'): print('in'); input()"
    first = elsewhere(code, repository)
    assert first.stdout.readline() == "in\n"
    first.kill()
    first.wait()
    second = elsewhere(code, repository)
    assert second.stdout.readline() == "in\n"
    second.communicate("\n")
