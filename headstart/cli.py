"""The `headstart` command: maps the command line to a function and an exit code.

What a subcommand needs is imported when it runs, so that `headstart --help` loads neither TensorFlow nor MLflow.
`python -m headstart` does the same.
"""

from __future__ import annotations

import argparse
import errno
import functools
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from headstart import __version__
from headstart.commands import COMMANDS, Command
from headstart.errors import UserError

DESCRIPTION = """\
Transfer learning that can be reproduced. `dvc repro` runs the pipeline; these commands prepare a run, judge its
results and use its model. Type them in the root of the repository."""
EPILOG = """\
typical order:
  headstart check                 before a run: is params.yaml valid, is the data there?
  dvc repro                       run the stages that changed
  headstart report                make the pages in reports/
  headstart compare HEAD          is the new model better than the committed one?
  headstart predict photos/       use the model

`headstart COMMAND --help` shows the options of a command, with examples."""

FORMATTER = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=26)


def check() -> None:
    """Check params.yaml and the files that it names."""
    from headstart import backbones, config, keras_backend
    from headstart.data.checks import check_data
    from headstart.modalities.detection import find_modality

    params = config.load_params()
    check_data(params)
    config.check_weights(params)
    backbone = backbones.choose_backbone(params, find_modality(params.data))
    keras_backend.check_jax(params)
    print(f"{config.PARAMS_FILE} is valid: backbone {backbone.name}, data {params.data.source}")


def watch(item: str) -> None:
    """Look at what DVC does not see, for the stages of the group `watch` in dvc.yaml."""
    from headstart import config
    from headstart.data import watching
    from headstart.modalities.detection import find_modality

    params = config.load_params()
    watching.watch(item, params, find_modality)


def review(base: str, output: Path | None, link: list[tuple[str, str]]) -> None:
    """Write the review of the results in the workspace, with a link to their run in MLflow."""
    from headstart.evaluation.review import review as write_review
    from headstart.tracking import ui

    run = ui.run_address()
    write_review(base, output, dict(link) | ({"The run in MLflow": run} if run else {}))


def add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command]) -> None:
    """Give `parser` subcommands; parsing sets `function` to that of the chosen one."""
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in commands:
        child = subparsers.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog="\n".join(["examples:", *(f"  headstart {line}" for line in command.examples)]),
            formatter_class=FORMATTER,
        )
        child.set_defaults(function=command.function)
        for names, options in command.arguments:
            child.add_argument(*names, **options)
        if command.commands:
            add_commands(child, command.commands)


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    parser = argparse.ArgumentParser("headstart", description=DESCRIPTION, epilog=EPILOG, formatter_class=FORMATTER)
    parser.add_argument("--version", action="version", version=f"headstart {__version__}")
    add_commands(parser, COMMANDS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 1 after an error, which is printed to stderr; 2 if the command line is wrong; 130 after
        Ctrl-C, 143 after SIGTERM.
    """
    parser = make_parser()
    given = vars(parser.parse_args(argv))
    if "function" not in given:
        parser.print_help(sys.stderr)
        return 2
    module, function = given.pop("function").split(":")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files are removed
    try:
        failures = getattr(importlib.import_module(f"headstart.{module}"), function)(**given)
        sys.stdout.flush()
        return int(isinstance(failures, int) and failures != 0)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it exits
        if error.errno == errno.EPIPE:  # the reader has seen enough, as `head` does
            return 0
        print(f"standard output: cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
