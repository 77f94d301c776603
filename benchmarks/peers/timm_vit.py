"""Features by timm's vit_small_patch16_224, random weights, behind a DataLoader with timm's own preprocessing.

Command: python benchmarks/peers/timm_vit.py SIZE PRECISION FILE...; it computes features once for each line that it
reads, and writes how many seconds of the clock and of the processor that took. `benchmarks/hub_images.py` runs it, in a
process of its own: TensorFlow and torch do not go together in one.
"""

from __future__ import annotations

import os
import sys
import time

import timm
import torch
from PIL import Image

size, precision, files = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
model = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0, img_size=size).eval()
settings = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=model)
transform = timm.data.create_transform(**settings)


class Photographs(torch.utils.data.Dataset):
    """The files as timm's preprocessing makes them."""

    def __len__(self) -> int:
        return len(files)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(files[number]) as image:
            return transform(image.convert("RGB"))


loader = torch.utils.data.DataLoader(Photographs(), batch_size=32, num_workers=1)
print(f"timm {timm.__version__}, torch {torch.__version__}", flush=True)
for _ in sys.stdin:
    start, used = time.perf_counter(), sum(os.times()[:4])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        for batch in loader:
            model(batch)
    print(time.perf_counter() - start, sum(os.times()[:4]) - used, flush=True)
