"""The `headstart` command: every subcommand calls a function that exists, and ends with the right exit code."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import headstart
from headstart import cli
from headstart.commands import COMMANDS, Command
from headstart.errors import UserError


def every_command(commands=COMMANDS) -> Iterator[Command]:
    for command in commands:
        yield command
        yield from every_command(command.commands)


def function_of(command: Command):
    module, function = command.function.split(":")
    return getattr(importlib.import_module(f"headstart.{module}"), function)


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headstart", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), **options)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("command", [*every_command()], ids=lambda command: command.name)
def test_a_command_calls_a_function_that_takes_its_arguments(command):
    given = {}
    for names, options in command.arguments:
        dest = options.get("dest") or names[0].lstrip("-").replace("-", "_")
        given[dest] = options.get("default")
    signature = inspect.signature(function_of(command))
    signature.bind(**given)
    for name, value in given.items():
        default = signature.parameters[name].default
        if default not in (inspect.Parameter.empty, None) and value is not None:
            assert default == value, name


def test_choices_are_those_of_the_functions():
    from headstart.serving import export, predict

    offered = {
        command.name: {names[-1]: options.get("choices") for names, options in command.arguments}
        for command in every_command()
    }
    assert set(offered["predict"]["--format"]) == set(predict.FORMATS)
    assert set(offered["export"]["--format"]) == set(export.FORMATS)


@pytest.mark.parametrize("command", [*every_command()], ids=lambda command: command.name)
def test_help_says_what_a_command_does_with_an_example_and_the_defaults(command):
    for example in command.examples:
        assert example.split()[0] in {known.name for known in COMMANDS}
    assert command.help[0].islower()
    assert not command.help.endswith(".")
    assert len(command.help) <= 65
    for names, options in command.arguments:
        assert options["help"], names


def test_help_lists_every_command():
    text = cli.make_parser().format_help()
    for command in COMMANDS:
        assert command.name in text
        assert command.help in text


def test_help_loads_nothing_slow():
    slow = {"tensorflow", "keras", "mlflow", "numpy", "pydantic", "dvc"}
    code = f"import sys; from headstart import cli; cli.make_parser().format_help(); print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_check_loads_no_tensorflow_no_mlflow_and_no_dvc():
    slow = {"tensorflow", "keras", "mlflow", "dvc", "pandas"}
    code = f"import sys; from headstart import cli; print(cli.main(['check'])); print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["0", "set()"]


def test_version():
    assert run("--version").stdout == f"headstart {headstart.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predct"],
        ["compare"],
        ["review", "main", "--link", "no address"],
        ["ui", "--port", "x"],
        ["serve", "--port", "99999"],
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert "usage: headstart" in capsys.readouterr().err


def fail(error: BaseException):
    def function(**_: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        (lambda **_: None, 0, ""),
        (lambda **_: 0, 0, ""),
        (lambda **_: Path("exports"), 0, ""),
        (lambda **_: 256, 1, ""),
        (fail(UserError("params.yaml: no")), 1, "params.yaml: no\n"),
        (fail(KeyboardInterrupt()), 130, ""),
    ],
)
def test_exit_codes(monkeypatch, capsys, function, code, message):
    monkeypatch.setattr(cli, "check", function)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["check"]) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == message


def test_sigterm_ends_with_143_after_cleaning_up(tmp_path):
    code = """
import sys, time
from pathlib import Path
from headstart import cli

def work():
    try:
        Path("started").touch()
        time.sleep(60)
    finally:
        Path("cleaned").touch()

cli.check = work
sys.exit(cli.main(["check"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment())
    until = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 143
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize(
    ("into", "code", "message"),
    [("| head -n 1", 0, ""), ("> /dev/full", 1, "standard output: cannot be written (No space left on device)\n")],
)
def test_output_that_nobody_takes(into, code, message):
    command = f"{sys.executable} -m headstart backbones {into}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stderr) == (code, message)
