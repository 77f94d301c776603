"""The `headstart` command: its subcommands, their arguments, and what each calls. `python -m headstart` does the same.

What a subcommand needs is imported when it runs, so that `headstart --help` loads neither TensorFlow nor MLflow.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart import __version__, paths
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

Argument = tuple[tuple[str, ...], dict[str, Any]]  # what argparse's add_argument takes


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        help: what it does, in one line.
        function: `module:function` in headstart that does it. It takes the arguments by their names, and returns the
            exit code, or None for 0.
        examples: lines to type, after `headstart`.
        commands: subcommands of its own.
    """

    name: str
    help: str
    function: str
    examples: Sequence[str]
    arguments: Sequence[Argument] = ()
    commands: Sequence[Command] = ()


def argument(*names: str, **options: Any) -> Argument:
    """Return an argument whose help ends with its default, if it has one."""
    if options.get("default"):
        options["help"] += " (default: %(default)s)"
    return names, options


# --- what more than one room has a part in


def check() -> None:
    """Check params.yaml and the files that it names."""
    from headstart import backbones, config

    params = config.load_params()
    config.check_files(params)
    backbones.check_params(params)
    print(f"{config.PARAMS_FILE} is valid: backbone {params.backbone}, data {params.data.source}")


def review(base: str, output: Path | None, link: list[tuple[str, str]]) -> None:
    """Write the review of the workspace with a link to its run in MLflow."""
    from headstart import tracking
    from headstart.evaluation.review import review

    run = tracking.run_address()
    review(base, dict(link) | ({"The run in MLflow": run} if run else {}), output)


def text_and_url(text: str) -> tuple[str, str]:
    """Parse TEXT=URL."""
    name, equals, url = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be TEXT=URL, got {text!r}")
    return name, url


# --- the table of commands

RUN = "a revision, the name of an experiment, or a .csv file of predictions"
MODEL = argument("--model", type=Path, default=paths.MODEL, metavar="FILE", help="the model")
OUTPUT = argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")

COMMANDS = (
    Command("check", "check params.yaml and its files before a run", "cli:check", ["check"]),
    Command(
        "backbones",
        "list the backbones, or the blocks of one",
        "backbones.table:show",
        ["backbones", "backbones mobilenetv2    # names to use for fine_tune.unfreeze"],
        [argument("name", nargs="?", metavar="NAME", help="list the blocks of this backbone")],
    ),
    Command(
        "features",
        "list, verify or prune the feature store",
        "features.admin:show",
        ["features", "features verify", "features prune --unused-for 30"],
        commands=[
            Command("list", "list what is stored, and its size", "features.admin:show", ["features list"]),
            Command(
                "verify", "read every row and remove damaged ones", "features.admin:verify_all", ["features verify"]
            ),
            Command(
                "prune",
                "remove features by fingerprint or age",
                "features.admin:prune",
                ["features prune 1f0c8e21a9b3d4e5", "features prune --unused-for 30", "features prune --all"],
                [
                    argument("fingerprints", nargs="*", metavar="FINGERPRINT", help="as `features list` shows them"),
                    argument("--unused-for", type=float, metavar="DAYS", help="what no run has used for so many days"),
                    argument("--all", action="store_true", help="everything"),
                ],
            ),
        ],
    ),
    Command(
        "report",
        "make the pages reports/data.html and reports/report.html",
        "report.pages:make_pages",
        ["report", "report --if-stale"],
        [argument("--if-stale", action="store_true", help="only if the results have changed")],
    ),
    Command(
        "compare",
        "compare two runs by a paired test: is the difference real?",
        "evaluation.compare:compare",
        ["compare HEAD", "compare main my-experiment --format markdown", "compare old/test.csv new/test.csv"],
        [
            argument("base", metavar="BASE", help=RUN),
            argument("head", nargs="?", metavar="HEAD", default="workspace", help="likewise"),
            argument("--format", choices=["text", "markdown", "json"], default="text", help="of the output"),
            OUTPUT,
        ],
    ),
    Command(
        "gate",
        "check the results against the rules in params.yaml, for CI",
        "evaluation.gate:gate",
        ["gate", "gate origin/main"],
        [argument("base", nargs="?", metavar="BASE", help=f"what gate.max_drop compares with: {RUN}")],
    ),
    Command(
        "leaderboard",
        "rank all experiments by their results on val",
        "evaluation.leaderboard:leaderboard",
        ["leaderboard", "leaderboard --heads --by val_accuracy", "leaderboard --commits 5 --format markdown"],
        [
            argument("--by", choices=["val_loss", "val_accuracy"], default="val_loss", help="rank by this"),
            argument("--heads", action="store_true", help="rank the heads, also of runs that were fine-tuned"),
            argument("--test", action="store_true", help="also show test accuracy; it does not change the order"),
            argument("--format", choices=["text", "markdown", "json"], default="text", help="of the output"),
            argument("--commits", type=int, default=1, metavar="N", help="look at the last N commits"),
        ],
    ),
    Command(
        "review",
        "write what a pull request changes as Markdown",
        "cli:review",
        ["review origin/main", "review origin/main --output report.md --link 'CI run=https://...'"],
        [
            argument("base", metavar="BASE", help=RUN),
            OUTPUT,
            argument(
                "--link", type=text_and_url, action="append", default=[], metavar="TEXT=URL", help="a link to add"
            ),
        ],
    ),
    Command(
        "track",
        "complete the runs in MLflow from what Git and DVC have",
        "tracking.rebuild:rebuild",
        ["track", "track --commits 10"],
        [argument("--commits", type=int, default=1, metavar="N", help="look at the last N commits")],
    ),
    Command(
        "ui",
        "open the MLflow UI on this machine",
        "tracking.ui:ui",
        ["ui", "ui --port 5001"],
        [argument("--port", type=int, default=5000, help="the port")],
    ),
    Command(
        "predict",
        "classify new examples",
        "serving.predict:predict",
        [
            "predict photos/",
            "predict 'photos/**/*.jpg' --format csv --output predictions.csv",
            "predict https://example.org/photo.jpg",
            "predict - < list.txt",
        ],
        [
            argument("inputs", nargs="+", metavar="INPUT", help="a file, folder, 'pattern', address, or - for a list"),
            argument("--format", choices=["text", "csv", "json"], default="text", help="of the output"),
            argument("--json", action="store_const", const="json", dest="format", help="the same as --format json"),
            OUTPUT,
            MODEL,
        ],
    ),
    Command(
        "serve",
        "serve the model over HTTP",
        "serving.server:serve",
        ["serve", "serve --port 5003"],
        [
            argument("--port", type=int, default=5002, help="the port"),
            argument("--host", default="127.0.0.1", help="the address; 0.0.0.0 lets other machines in"),
            MODEL,
        ],
    ),
    Command(
        "export",
        "export the model to another runtime and check it there",
        "serving.export:export",
        ["export --format onnx", "export --format litert --output app/model"],
        [
            argument(
                "--format",
                choices=["saved_model", "onnx", "openvino", "litert"],
                required=True,
                help="saved_model takes images of any size, the others those of the network",
            ),
            argument("--output", type=Path, metavar="FOLDER", help="the folder to write (default: exports/FORMAT)"),
            MODEL,
        ],
    ),
    Command(
        "ood",
        "let predict flag examples unlike the training examples",
        "serving.ood:fit_ood",
        ["ood", "ood --rate 0.01"],
        [
            argument("--rate", type=float, default=0.05, help="share of the test examples that may be flagged"),
            MODEL,
        ],
    ),
)


# --- the command line


def add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command]) -> None:
    """Give `parser` subcommands; parsing sets `function` to that of the chosen one."""
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in commands:
        child = subparsers.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog="\n".join(["examples:", *(f"  headstart {line}" for line in command.examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        child.set_defaults(function=command.function)
        for names, options in command.arguments:
            child.add_argument(*names, **options)
        if command.commands:
            add_commands(child, command.commands)


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="headstart", description=DESCRIPTION, epilog=EPILOG, formatter_class=form)
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
        code = getattr(importlib.import_module(f"headstart.{module}"), function)(**given)
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it exits
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
