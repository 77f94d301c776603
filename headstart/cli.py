"""The `headstart` command: every subcommand, its arguments and what it calls. `python -m headstart` does the same.

The modules of a subcommand are imported when it runs, so that `headstart --help` needs neither TensorFlow nor MLflow.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart import __version__, paths
from headstart.errors import UserError

Arguments = argparse.Namespace


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a command; its help ends with its default."""
    if options.get("default") is not None and options.get("action") is None:
        options["help"] += " (default: %(default)s)"
    return names, options


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        help: what it does, in one line.
        run: does it; returns the exit code, None for 0.
        examples: lines to type.
        arguments: see `argument`.
        commands: subcommands of its own.
    """

    name: str
    help: str
    run: Callable[[Arguments], int | None]
    examples: Sequence[str]
    arguments: Sequence[tuple[tuple[str, ...], dict[str, Any]]] = ()
    commands: Sequence[Command] = ()


def check(_: Arguments) -> None:
    from headstart import backbones, config

    params = config.load_params()
    config.check_files(params)
    backbones.check_params(params)
    print(f"{config.PARAMS_FILE} is valid: backbone {params.backbone}, data {params.data.source}")


COMMANDS = (
    Command("check", "check params.yaml and that its files exist, before a run", check, ["headstart check"]),
)


def add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command]) -> None:
    """Give `parser` subcommands; the chosen one's `run` is then among the parsed arguments."""
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        text = command.help[0].upper() + command.help[1:] + "."
        examples = "examples:\n" + "\n".join(f"  {line}" for line in command.examples)
        form = argparse.RawDescriptionHelpFormatter
        child = subparsers.add_parser(
            command.name, help=command.help, description=text, epilog=examples, formatter_class=form
        )
        child.set_defaults(run=command.run)
        for names, options in command.arguments:
            child.add_argument(*names, **options)
        if command.commands:
            add_commands(child, command.commands)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headstart",
        description="Transfer learning that can be reproduced. `dvc repro` runs the pipeline; these commands prepare\n"
        "a run, judge it, and use its model. Run them in the root of the repository.",
        epilog="`headstart COMMAND --help` has the options of a command, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"headstart {__version__}")
    add_commands(parser, COMMANDS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 with a message on stderr, 130 after Ctrl-C, 143 after SIGTERM."""
    arguments = make_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files are removed
    try:
        code = arguments.run(arguments) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
