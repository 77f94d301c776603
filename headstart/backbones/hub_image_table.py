"""The table of image encoders by KerasHub. Does not load TensorFlow."""

from __future__ import annotations

from headstart.backbones.hub_images import ATTENTION, CLASS, CLIP, HALF, make_row

ROWS = [
    make_row("vit-base", "hf:google/vit-base-patch16-224-in21k", 768, 85.8, 224, patch=16, pooled=CLASS, scaling=HALF),
]
