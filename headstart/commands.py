"""The table of the subcommands of `headstart`: names, arguments, help, and the function that each calls."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart import paths

Argument = tuple[tuple[str, ...], dict[str, Any]]  # what argparse's add_argument takes


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        help: what it does, in one line.
        function: `module:function` in headstart that does it. It takes the arguments by name. If it returns a number
            other than 0, that counts failures.
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


def port(text: str) -> int:
    """Parse the number of a port."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be an integer in [1, 65535], got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def text_and_url(text: str) -> tuple[str, str]:
    """Parse TEXT=URL."""
    name, equals, url = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be TEXT=URL, got {text!r}")
    return name, url


RUN = "a revision, the name of an experiment, or a .csv file of predictions"
MODEL = argument("--model", type=Path, default=paths.MODEL, metavar="FILE", help="the model")
FORMAT = argument("--format", choices=["text", "markdown", "json"], default="text", help="of the output")
COMMITS = argument("--commits", type=int, default=1, metavar="N", help="look at the last N commits")
OUTPUT = argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")

COMMANDS = (
    Command("check", "check params.yaml and its files before a run", "cli:check", ["check"]),
    Command(
        "watch",
        "look at what DVC does not see by itself, for dvc.yaml",
        "cli:watch",
        ["watch source"],
        [argument("item", choices=["source", "weights"], metavar="ITEM", help="source or weights, see data.watch")],
    ),
    Command(
        "backbones",
        "list the backbones, or the blocks of one, or fetch one",
        "backbones.listing:run",
        [
            "backbones",
            "backbones mobilenetv2    # names to use for fine_tune.unfreeze",
            "backbones fetch minilm-l6    # download it before it is needed",
        ],
        [
            argument(
                "words", nargs="*", metavar="NAME", help="list the blocks of this backbone; fetch NAME: download it"
            )
        ],
    ),
    Command(
        "features",
        "list, verify or prune the feature store",
        "features.admin:list_features",
        ["features", "features verify", "features prune --unused-for 30"],
        commands=[
            Command("list", "list what is stored, and its size", "features.admin:list_features", ["features list"]),
            Command(
                "verify",
                "read every row and remove damaged ones",
                "features.admin:verify_features",
                ["features verify"],
            ),
            Command(
                "prune",
                "remove features by fingerprint or age",
                "features.admin:prune_features",
                ["features prune 1f0c8e21a9b3d4e5", "features prune --unused-for 30", "features prune --all"],
                [
                    argument("fingerprints", nargs="*", metavar="FINGERPRINT", help="as `features list` shows them"),
                    argument("--unused-for", type=float, metavar="DAYS", help="what no run has used for so many days"),
                    argument("--all", action="store_true", dest="everything", help="everything"),
                ],
            ),
        ],
    ),
    Command(
        "cluster",
        "look at the Ray cluster that params.yaml names",
        "features.ray_executor:check_cluster",
        ["cluster check"],
        commands=[
            Command(
                "check",
                "compare its machines, and see whether they can read the data",
                "features.ray_executor:check_cluster",
                ["cluster check"],
            )
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
            FORMAT,
            OUTPUT,
        ],
    ),
    Command(
        "gate",
        "check the results against the rules in params.yaml, for CI",
        "evaluation.gate:gate",
        ["gate", "gate origin/main"],
        [argument("base", nargs="?", metavar="BASE", help=f"the run to compare accuracy and classes with: {RUN}")],
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
            FORMAT,
            COMMITS,
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
        [COMMITS],
    ),
    Command(
        "ui",
        "open the MLflow UI on this machine",
        "tracking.ui:ui",
        ["ui", "ui --port 5001"],
        [argument("--port", type=port, default=5000, help="the port")],
    ),
    Command(
        "predict",
        "classify new examples",
        "serving.predict:predict",
        [
            "predict photos/",
            "predict 'photos/**/*.jpg' --format csv --output predictions.csv",
            "predict https://example.org/photo.jpg",
            "predict instances_val.json",
            "predict - < list.txt",
            "predict --text 'my card has not arrived'",
            "predict reviews.csv --column review",
        ],
        [
            argument("inputs", nargs="*", metavar="INPUT", help="file, folder, 'pattern', address, or - for a list"),
            argument("--text", action="append", metavar="TEXT", help="a text to classify; may be repeated"),
            argument("--column", metavar="NAME", help="of a table, the column with the texts (default: by its name)"),
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
        ["serve", "serve --port 5003", "serve --host 0.0.0.0 --memory 4096"],
        [
            argument("--port", type=port, default=5002, help="the port"),
            argument("--host", default="127.0.0.1", help="the address; 0.0.0.0 lets other machines in"),
            MODEL,
            argument("--timeout", type=positive, default=60, metavar="S", help="seconds that a request may take"),
            argument("--memory", type=positive, default=1024, metavar="MIB", help="MiB that all requests may take"),
            argument("--docs", action="store_true", help="also serve pages about the API, at /docs and /redoc"),
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
                help="saved_model takes images of any size, the others those of the network; all take texts as tokens",
            ),
            argument("--output", type=Path, metavar="FOLDER", help="default: exports/FORMAT"),
            MODEL,
        ],
    ),
    Command(
        "ood",
        "let predict flag examples unlike the training examples",
        "serving.ood:fit_ood",
        ["ood", "ood --rate 0.01"],
        [argument("--rate", type=float, default=0.05, help="share of the test examples that may be flagged"), MODEL],
    ),
)
