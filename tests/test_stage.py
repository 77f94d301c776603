from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, write_params

from headstart import stage
from headstart.errors import UserError
from headstart.tracking import recording

DVC_YAML = "stages:\n  train_head:\n    deps: ['${data.source}', features/train.npy]\n"
OUT = Path("models/head.keras")


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(recording, "record", lambda *_: None)
    write_params(Path("params.yaml"))
    Path("dvc.yaml").write_text(DVC_YAML)
    Path("features").mkdir()
    Path("features/train.npy").touch()
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(main, capsys) -> tuple[int, str]:
    """Exit code and what was printed to stderr."""
    with pytest.raises(SystemExit) as end:
        stage.run("train_head", main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("too few"), "train_head: too few\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "train_head: the disk is full ("),
        (OSError("Unable to write (error message = 'No space left on device')"), "train_head: the disk is full ("),
        (MemoryError("Unable to allocate 768 GiB"), "lower train_head.batch_size or extract.size"),
    ],
)
def test_what_a_user_can_mend_ends_in_a_message_and_no_file(here, capsys, error, message):
    def main(_, outputs):
        outputs.path(OUT).write_text("half")
        raise error

    code, printed = run(main, capsys)
    assert code == 1
    assert message in printed
    assert list(OUT.parent.iterdir()) == []


def test_a_fault_of_the_program_keeps_its_traceback(here):
    def main(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.run("train_head", main)


def test_a_stage_without_its_inputs_names_the_first(here, capsys):
    Path("features/train.npy").unlink()
    code, printed = run(lambda *_: None, capsys)
    assert code == 1
    assert printed == (
        "train_head: features/train.npy does not exist; run `dvc repro`, which runs the stages before this one\n"
    )


def test_outputs_appear_when_the_stage_is_done(here):
    seen = []

    def main(_, outputs):
        outputs.path(OUT).write_text("whole")
        seen.append(OUT.exists())

    stage.run("train_head", main)
    assert seen == [False]
    assert OUT.read_text() == "whole"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stage_that_is_stopped_cleans_up(here, number, code):
    program = (
        "import pathlib, signal, time; from pipeline import stage\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what is started with & ignores it
        "def main(_, outputs): outputs.path(pathlib.Path('models/head.keras')).write_text('half'); time.sleep(60)\n"
        "stage.run('train_head', main)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None and not any(
        file.stat().st_size for file in Path("models").glob(".head.partial.*.keras")
    ):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == code
    assert list(Path("models").iterdir()) == []
