"""How long prepare takes to list a large file of COCO annotations, and how much memory.

Command: python benchmarks/coco.py [100000]   # so many boxes, 12,000 images for each 100,000
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from headstart.data import layouts
from headstart.data_config import Data
from headstart.modalities import get_modality

SIZE, CATEGORIES, VERTICES = (640, 480), 80, 24  # as many as in a segmentation of COCO on average


def write_annotations(file: Path, boxes: int) -> None:
    """Write annotations as COCO has them, with segmentations, beside the first image, by which its folder is found."""
    images = max(1, boxes * 12 // 100)
    generator = np.random.default_rng(0)
    width, height = (generator.uniform(10, side / 2, boxes).round(2) for side in SIZE)
    x, y = (generator.uniform(0, side / 2, boxes).round(2) for side in SIZE)
    outline = generator.uniform(0, 480, 2 * VERTICES).round(2).tolist()
    rows = [
        {"segmentation": [outline], "area": 1.0, "iscrowd": 0, "image_id": row % images, "bbox": list(box),
         "category_id": row % CATEGORIES + 1, "id": row}
        for row, box in enumerate(zip(x.tolist(), y.tolist(), width.tolist(), height.tolist(), strict=True))
    ]  # fmt: skip
    content = {
        "images": [
            {"id": number, "file_name": f"{number:012}.jpg", "width": SIZE[0], "height": SIZE[1]}
            for number in range(images)
        ],
        "categories": [{"id": number + 1, "name": f"category {number}"} for number in range(CATEGORIES)],
        "annotations": rows,
    }
    file.write_text(json.dumps(content), encoding="utf-8")
    (file.parent / f"{0:012}.jpg").touch()


def main(boxes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, kind = Path(folder) / "instances_train.json", get_modality("image")
        writer = multiprocessing.Process(target=write_annotations, args=(file, boxes))  # its memory does not count
        writer.start()
        writer.join()
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["data"]
        data = Data(**{**params, "source": str(file)})
        start, cpu = time.perf_counter(), time.process_time()
        with layouts.open_examples(data, kind) as opened:
            listing = layouts.list_items(opened, data.source, kind)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        size = file.stat().st_size / 2**20
        print(
            f"{len(listing.items):,} boxes of {len(listing.classes)} classes listed from {size:.0f} MiB in "
            f"{seconds:.1f} s, {cpu:.1f} s of CPU, {peak:.2f} GiB at most"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000)
