"""What changes to the params of fine_tune do for texts: loss on val, by which one chooses, and accuracy on test.

Command: python benchmarks/text_choices.py TABLE [CHANGE...] [--backbone tinybert] [--each 10] [--seeds 5]

A CHANGE is KEY=VALUE as `dvc exp run -S` takes it; by default two shares of word dropout. Of the table, a .csv with the
texts in its first column and the labels in its second, each seed draws so many texts of each class for training, half
as many for val and 20 for test. On val the network is scored that was trained on train alone; on test what is shipped,
which is the head where that classifies more of val correctly. Differences are paired, seed by seed, with their standard
error.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

from choices import ROOT, run
from paired import difference, spread
from text_tuning import CHANGES, make_table  # first: sets the kernels that TensorFlow loads

from headstart import paths
from headstart.framework import device_name
from pipeline import evaluate, extract, fine_tune, prepare, train_head

WAYS = ("fine_tune.word_dropout=0.1", "fine_tune.word_dropout=0.2")
ALONE = [f"fine_tune.{change}" for change in ("refit=false", "folds=0", "confidence=0", "effort=thorough")]
TESTED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("changes", nargs="*", default=WAYS, metavar="CHANGE")
    parser.add_argument("--backbone", default="tinybert")
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    source, ways = arguments.table.resolve(), ["params.yaml", *arguments.changes]
    losses: dict[str, list[float]] = {way: [] for way in ["the head", *ways]}
    accuracy: dict[str, list[float]] = {way: [] for way in ["the head", *ways]}
    os.environ.pop("DVC_ROOT", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in range(arguments.seeds):
            always = [*CHANGES, *ALONE, f"backbone={arguments.backbone}", "data.source=texts.csv", f"seed={seed}"]
            make_table(source, arguments.each, TESTED, seed)
            with contextlib.redirect_stdout(io.StringIO()):
                for stage in (prepare, extract, train_head):
                    run(stage, always)
            for way in ways:
                with contextlib.redirect_stdout(io.StringIO()):
                    for stage in (fine_tune, evaluate):
                        run(stage, [*always, *([] if way == "params.yaml" else [way])])
                tuned, tested = (json.loads(paths.report(name).read_text()) for name in ("fine_tune", "evaluate"))
                losses[way].append(tuned["tuned_val_loss"])
                accuracy[way].append(tested["final"]["metrics"]["accuracy"]["value"])
            losses["the head"].append(tuned["head_val_loss"])
            accuracy["the head"].append(tested["head"]["metrics"]["accuracy"]["value"])
            print(f"seed {seed}: {losses}, {accuracy}", file=sys.stderr, flush=True)
        os.chdir(ROOT)
    drawn = f"{source.name}, {arguments.each} of each class, {arguments.seeds} seeds"
    print(f"{arguments.backbone} on {device_name()}, {drawn}")
    print(f"{'':<28} {'log loss on val':>16} {'- params.yaml':>16} {'test accuracy':>16} {'- params.yaml':>16}")
    for way in losses:
        pairs = [(each[way], each[ways[0]]) for each in (losses, accuracy)]
        cells = [cell for one, plain in pairs for cell in (spread(one), difference(one, plain))]
        print(f"{way:<28} " + " ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
