"""The table of image encoders by KerasHub. Does not load TensorFlow.

Sizes, patches and scaling are those that the networks were trained with, but for DINOv2, trained at up to 518 pixels;
parameters are of the part that takes images, in millions. Central crops are those that their authors evaluate with, see
docs/backbones.md for the sources. No revision or sha256 is pinned: these files could not be
looked at when the table was written, and what is at the place on the day is taken.
"""

from __future__ import annotations

from headstart.backbones.hub_images import ATTENTION, BOTH, CLASS, CLIP, HALF, make_row

APACHE = "Apache 2.0"
DINOV3 = "hf:facebook/dinov3-vits16-pretrain-lvd1689m"

ROWS = [
    make_row("vit-base", "hub:vit_base_patch16_224_imagenet21k", 768, 85.8, 224, 16, CLASS, HALF, licence=APACHE),
    make_row(
        "deit-small", "hub:deit_small_distilled_patch16_224_imagenet", 384, 21.7, 224, 16, CLASS, licence=APACHE,
        learning_rate=1e-4, center_crop=0.875,
    ),
    make_row("dinov2-small", "hf:facebook/dinov2-small", 768, 21.6, 224, 14, BOTH, licence=APACHE, center_crop=0.875),
    make_row("dinov2-base", "hf:facebook/dinov2-base", 1536, 85.7, 224, 14, BOTH, licence=APACHE, center_crop=0.875),
    make_row(
        "dinov2-large", "hf:facebook/dinov2-large", 2048, 303.2, 224, 14, BOTH, licence=APACHE, learning_rate=2e-5,
        center_crop=0.875,
    ),
    make_row("dinov3-small", DINOV3, 384, 21.7, 224, 16, CLASS, licence="DINOv3 License", consent=True),
    make_row(
        "clip-b32", "hub:clip_vit_base_patch32", 768, 87.5, 224, 32, CLASS, CLIP, licence="MIT (code)",
        learning_rate=1e-5, center_crop=1.0,
    ),
    make_row(
        "siglip2-base", "hub:siglip2_base_patch16_224", 768, 92.9, 224, 16, ATTENTION, HALF, licence=APACHE,
        learning_rate=1e-5,
    ),
    make_row(
        "coco-resnet50", "hub:retinanet_resnet50_fpn_coco", 2048, 23.6, 224, licence="BSD 3 (code)", learning_rate=3e-4
    ),
]  # fmt: skip
