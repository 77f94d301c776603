"""Memory of the head's training, which maps features into memory and does not load them.

Command: python benchmarks/head.py [200000]    # makes that many rows of features in a temporary folder
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parent.parent
FEATURES, CLASSES = 1280, 100


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("dvc.yaml", "pipeline"):
            os.symlink(ROOT / name, root / name)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["train_head"] |= {"epochs": 2}
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        (root / "data" / "prepared").mkdir(parents=True)
        (root / "features").mkdir()
        generator = np.random.default_rng(0)
        targets = generator.integers(0, CLASSES, rows)
        split = np.where(np.arange(rows) % 10 < 8, "train", np.where(np.arange(rows) % 10 < 9, "val", "test"))
        manifest = pd.DataFrame({"path": [f"{row:09}.jpg" for row in range(rows)], "label": targets.astype(str)})
        manifest.assign(split=split).to_parquet(root / "data" / "prepared" / "manifest.parquet")
        classes = sorted(map(str, range(CLASSES)))
        (root / "data" / "prepared" / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
        centres = generator.normal(size=(CLASSES, FEATURES)).astype(np.float32)
        for name in ("train", "val", "test"):
            labels = targets[split == name]
            shape = (len(labels), FEATURES)
            file = np.lib.format.open_memmap(root / "features" / f"{name}.npy", "w+", np.float32, shape)
            for start in range(0, len(labels), 10_000):
                some = labels[start : start + 10_000]
                file[start : start + 10_000] = centres[some] + 3 * generator.normal(size=(len(some), FEATURES))
            file.flush()
            if name == "train":
                np.save(root / "features" / "train_views.npy", np.zeros((len(labels), 0, FEATURES), np.float32))
            del file
        size = sum(file.stat().st_size for file in (root / "features").iterdir())
        code = (
            "import resource; from pipeline import train_head; from pipeline.outputs import Outputs; "
            "from pipeline.params import load_params; outputs = Outputs(); train_head.main(load_params(), outputs); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
        )
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
        print(done.stdout)
        print(
            f"{rows:,} rows, {size / 2**30:.2f} GiB of features: {float(done.stdout.split()[-1]):.2f} GiB of memory at "
            f"most, two epochs in {time.perf_counter() - start:.0f} s"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
