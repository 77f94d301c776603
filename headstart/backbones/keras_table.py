"""The table of backbones: the image classifiers of keras.applications, and `tiny`. Does not load TensorFlow."""

from __future__ import annotations

from typing import Any

from headstart.backbones.keras_applications import Family, KerasApplication

# What the `preprocess_input` of each family makes of RGB in [0, 255].
TF, CAFFE = "RGB in [-1, 1]", "BGR minus ImageNet's mean"
TORCH = "RGB in [0, 1] by ImageNet's mean and deviation"
INSIDE = "inside the network"  # its first layers do it

_KERNELS = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
# Keras numbers layers without a name of their own through a whole process: those numbers are no blocks.
_NASNET_BLOCK = r"(?!activation|add_\d|concatenate|cropping2d|input_layer|zero_padding2d).*?_((?:stem_|reduce_)?\d+)$"
_MOBILENET_V2 = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5"
_EFFICIENTNET_BLOCK, _RESNET_BLOCK = r"(block\d+[a-z]+)_", r"(conv\d_block\d+)_"

# By the module of keras.applications; {} is what distinguishes the networks of a family.
FAMILIES = {
    "convnext": Family(
        "ConvNeXt{}", INSIDE, "convnext_{}_notop.h5", r"convnext_[a-z]+_(stage_\d+_block_\d+|downsampling_block_[1-9])"
    ),
    "densenet": Family("DenseNet{}", TORCH, "densenet{}" + _KERNELS, _RESNET_BLOCK),
    "efficientnet": Family("EfficientNet{}", INSIDE, "efficientnet{}_notop.h5", _EFFICIENTNET_BLOCK),
    "efficientnet_v2": Family("EfficientNetV2{}", INSIDE, "efficientnetv2-{}_notop.h5", _EFFICIENTNET_BLOCK),
    "inception_resnet_v2": Family(
        "InceptionResNetV2", TF, "inception_resnet_v2" + _KERNELS, r"(mixed_\d[ab]|block\d+_\d+)", True
    ),
    "inception_v3": Family("InceptionV3", TF, "inception_v3" + _KERNELS, r"(mixed\d+)$", True),
    "mobilenet": Family("MobileNet", TF, "mobilenet_1_0_{size}_tf_no_top.h5", r"(conv)_(?:pad|dw|pw)_(\d+)"),
    "mobilenet_v2": Family("MobileNetV2", TF, _MOBILENET_V2, r"(block_\d+|expanded_conv)_"),
    "mobilenet_v3": Family(
        "MobileNetV3{}", INSIDE, "weights_mobilenet_v3_{}_224_1.0_float_no_top_v2.h5", r"(expanded_conv(?:_\d+)?)_"
    ),
    "nasnet": Family("NASNet{}", TF, "nasnet_{}_no_top.h5", _NASNET_BLOCK),
    "resnet": Family("ResNet{}", CAFFE, "resnet{}" + _KERNELS, _RESNET_BLOCK),
    "resnet_v2": Family("ResNet{}V2", TF, "resnet{}v2" + _KERNELS, _RESNET_BLOCK),
    "vgg16": Family("VGG16", CAFFE, "vgg16" + _KERNELS, r"(block\d)_"),
    "vgg19": Family("VGG19", CAFFE, "vgg19" + _KERNELS, r"(block\d)_"),
    "xception": Family("Xception", TF, "xception" + _KERNELS, r"(block\d+)_"),
}


def _row(
    module: str, variant: str, feature_dim: int, parameters: float, size: int, min_size: int = 32, **more: Any
) -> KerasApplication:
    """Make a row of the table; `variant` distinguishes the network in its family, `size` is the default."""
    family = FAMILIES[module]
    name = more.pop("name", family.constructor.format(variant).lower())
    return KerasApplication(
        name, "image", size, feature_dim, parameters, family.preprocessing, min_size,
        family=family, module=module, variant=variant, **more,
    )  # fmt: skip


_MOBILE = (128, 160, 192, 224)

ROWS = [
    _row(
        "mobilenet_v2", "", 1280, 0.4, 64, name="tiny", arguments=(("alpha", 0.35),),
        weights_sha256="5daf60d938e0213dcc814b34fbafe1aa580285b99226a9d319d462b8e244c87c",
    ),
    _row("convnext", "Tiny", 768, 27.8, 224),
    _row("convnext", "Small", 768, 49.5, 224),
    _row("convnext", "Base", 1024, 87.6, 224),
    _row("convnext", "Large", 1536, 196.2, 224),
    _row("convnext", "XLarge", 2048, 348.1, 224),
    _row("densenet", "121", 1024, 7.0, 224),
    _row("densenet", "169", 1664, 12.6, 224),
    _row("densenet", "201", 1920, 18.3, 224),
    _row("efficientnet", "B0", 1280, 4.0, 224),
    _row("efficientnet", "B1", 1280, 6.6, 240),
    _row("efficientnet", "B2", 1408, 7.8, 260),
    _row("efficientnet", "B3", 1536, 10.8, 300),
    _row("efficientnet", "B4", 1792, 17.7, 380),
    _row("efficientnet", "B5", 2048, 28.5, 456),
    _row("efficientnet", "B6", 2304, 41.0, 528),
    _row("efficientnet", "B7", 2560, 64.1, 600),
    _row("efficientnet_v2", "B0", 1280, 5.9, 224),
    _row("efficientnet_v2", "B1", 1280, 6.9, 240),
    _row("efficientnet_v2", "B2", 1408, 8.8, 260),
    _row("efficientnet_v2", "B3", 1536, 12.9, 300),
    _row("efficientnet_v2", "S", 1280, 20.3, 384),
    _row("efficientnet_v2", "M", 1280, 53.2, 480),
    _row("efficientnet_v2", "L", 1280, 117.7, 480),
    _row("inception_resnet_v2", "", 1536, 54.3, 299, min_size=75),
    _row("inception_v3", "", 2048, 21.8, 299, min_size=75),
    _row("mobilenet", "", 1024, 3.2, 224, weight_sizes=_MOBILE),
    _row("mobilenet_v2", "", 1280, 2.3, 224, weight_sizes=(96, *_MOBILE)),
    _row("mobilenet_v3", "Large", 960, 3.0, 224),
    _row("mobilenet_v3", "Small", 576, 0.9, 224),
    _row("nasnet", "Large", 4032, 84.9, 331, pinned_size=True),
    _row("nasnet", "Mobile", 1056, 4.3, 224, pinned_size=True),
    _row("resnet", "50", 2048, 23.6, 224),
    _row("resnet", "101", 2048, 42.7, 224),
    _row("resnet", "152", 2048, 58.4, 224),
    _row("resnet_v2", "50", 2048, 23.6, 224),
    _row("resnet_v2", "101", 2048, 42.6, 224),
    _row("resnet_v2", "152", 2048, 58.3, 224),
    _row("vgg16", "", 512, 14.7, 224),
    _row("vgg19", "", 512, 20.0, 224),
    _row("xception", "", 2048, 20.9, 299, min_size=71),
]  # fmt: skip
