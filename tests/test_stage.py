from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_params

from headstart import costs, paths, tracking
from headstart.errors import UserError
from headstart.stage import Run, stage

DVC_YAML = "stages:\n  train_head:\n    deps: ['${data.source}', headstart/training, features/train.npy]\n"
OUT = Path("models/head.keras")


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    write_params(Path("params.yaml"))
    Path("dvc.yaml").write_text(DVC_YAML)
    Path("features").mkdir()
    Path("features/train.npy").touch()
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(work, capsys) -> tuple[int, str]:
    """Exit code and what was printed to stderr."""
    with pytest.raises(SystemExit) as end, stage("train_head") as running:
        work(running)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("too few"), "train_head: too few\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "train_head: the disk is full ("),
        (OSError("Unable to write (error message = 'No space left on device')"), "train_head: the disk is full ("),
        (MemoryError("Unable to allocate 768 GiB"), "; lower train_head.batch_size or train_head.hidden"),
    ],
)
def test_a_mistake_ends_in_a_message_and_no_file(here, capsys, error, message):
    def work(running: Run) -> None:
        running.path(OUT).write_text("half")
        raise error

    code, printed = run(work, capsys)
    assert code == 1
    assert message in printed
    assert list(OUT.parent.iterdir()) == []


def test_a_fault_of_the_program_keeps_its_traceback(here):
    with pytest.raises(ZeroDivisionError), stage("train_head"):
        raise ZeroDivisionError


def test_a_stage_without_its_inputs_names_the_first(here, capsys):
    Path("features/train.npy").unlink()
    code, printed = run(lambda _: None, capsys)
    assert code == 1
    assert printed == (
        "train_head: features/train.npy does not exist; run `dvc repro`, which runs the stages before this one\n"
    )


def test_outputs_appear_when_the_stage_is_done_and_their_cost_is_known(here):
    with stage("train_head") as running:
        running.path(OUT).write_text("whole")
        running.metrics({"head_val_loss": 0.123456789})
        running.cost(examples_per_second=12.0)
        assert not OUT.exists()
    assert OUT.read_text() == "whole"
    assert paths.metrics("train_head").read_text() == '{\n  "head_val_loss": 0.123457\n}\n'
    known = costs.read("train_head")
    assert known.pop("train_head_seconds") >= 0
    assert known == {"examples_per_second": 12.0}
    OUT.write_text("another")
    assert costs.read("train_head") == {}  # of that result nothing is known


def test_the_log_is_told_of_success_and_failure(here, monkeypatch):
    calls = []

    class Logger(tracking.StageLogger):
        def log_epoch(self, row: dict[str, float]) -> None:
            calls.append(row)

        def fail(self) -> None:
            calls.append("fail")

        def finish(self) -> None:
            calls.append("finish" if OUT.exists() else "finish without outputs")

    monkeypatch.setattr(tracking, "start", lambda *_: Logger())
    with stage("train_head") as running:
        running.path(OUT).write_text("whole")
        running.log_epoch({"epoch": 1, "loss": 0.5})
    assert calls == [{"epoch": 1, "loss": 0.5}, "finish"]
    with pytest.raises(SystemExit), stage("train_head"):
        raise UserError("too few")
    assert calls[2:] == ["fail"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stage_that_is_stopped_cleans_up(here, number, code):
    program = (
        "import pathlib, signal, time; from headstart.stage import stage\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what is started with & ignores it
        "with stage('train_head') as run:\n"
        "    run.path(pathlib.Path('models/head.keras')).write_text('half'); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HEADSTART_TRACKING": "off"}
    process = subprocess.Popen([sys.executable, "-c", program], env=env)
    while process.poll() is None and not any(
        file.stat().st_size for file in Path("models").glob(".head.partial.*.keras")
    ):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == code
    assert list(Path("models").iterdir()) == []


def test_a_failure_brings_the_outputs_of_the_last_good_run_back(here, capsys):
    """DVC removes them before it starts a stage. Metrics are in Git alone; those of other results are not taken."""
    files = {"models/head.keras": "cached", "metrics/train_head.json": "{}", "reports/train_head.json": "other results"}
    files |= {"folder/out.json": "cached too"}
    outs = [{"path": name, "md5": hashlib.md5(content.encode()).hexdigest()} for name, content in files.items()]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"train_head": {"cmd": "x", "outs": outs}}}))
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    for place in (0, 3):
        cached = Path(".dvc/cache/files/md5", outs[place]["md5"][:2], outs[place]["md5"][2:])
        cached.parent.mkdir(parents=True)
        cached.write_text(files[outs[place]["path"]])
    for name, content in (("metrics/train_head.json", "{}"), ("reports/train_head.json", "these results")):
        Path(name).parent.mkdir()
        Path(name).write_text(content)
    git = "git -c user.name=x -c user.email=x@example.org"
    subprocess.run(f"git init -q && git add metrics reports && {git} commit -qm x", shell=True, check=True)
    shutil.rmtree("metrics")
    shutil.rmtree("reports")
    Path("folder").touch()  # a file where an output's folder should be

    def work(running: Run) -> None:
        running.path(OUT).write_text("half")
        raise UserError("too few")

    assert run(work, capsys) == (1, "train_head: too few\n")
    assert OUT.read_text() == "cached"
    assert Path("metrics/train_head.json").read_text() == "{}"
    assert not Path("reports").exists()
    assert [file.name for file in OUT.parent.iterdir()] == [OUT.name]
