"""Run a stage.

DVC removes a stage's outputs before it starts the stage, whose libraries then take seconds to load. A Ctrl-C or SIGTERM
or an error in these seconds must put the outputs back, too; so this file installs handlers and imports next to nothing.
`headstart.stage` replaces them when the stage begins.

Command: python -m pipeline STAGE
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

STAGES = sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
    """Run the stage that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1] not in STAGES:
        sys.exit(f"Give one stage: python -m pipeline {{{','.join(STAGES)}}}")
    name = sys.argv[1]

    def restore() -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        # In a process of its own, since the imports of this one are half done, and out of reach of a second Ctrl-C.
        subprocess.run([sys.executable, "-m", "headstart.restore", name], start_new_session=True, check=False)

    def restore_and_exit(number: int, _: FrameType | None) -> None:
        restore()
        os._exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) != signal.SIG_IGN:  # as `nohup` and shells set it for background jobs
            signal.signal(each, restore_and_exit)
    try:
        module = importlib.import_module(f"pipeline.{name}")
    except BaseException:
        restore()
        raise
    module.main()


if __name__ == "__main__":
    main()
