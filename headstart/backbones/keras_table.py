"""The table of backbones: the image classifiers of keras.applications, and `tiny`. Does not load TensorFlow."""

from __future__ import annotations

from typing import Any

from headstart.backbones.keras_applications import TINY_WEIGHTS, KerasApplication

# What the `preprocess_input` of each family makes of RGB in [0, 255]; `inside`: layers of the network do it.
PREPROCESSING = {
    "tf": "RGB in [-1, 1]",
    "caffe": "BGR minus ImageNet's mean",
    "torch": "RGB in [0, 1] by ImageNet's mean and deviation",
    "inside": "inside the network",
}


def _row(
    constructor: str,
    module: str,
    preprocessing: str,
    feature_dim: int,
    parameters: float,
    size: int,
    weights_file: str,
    name: str = "",
    **more: Any,
) -> KerasApplication:
    """Make a row of the table.

    Args:
        preprocessing: a key of PREPROCESSING.
        size: the default size, pixels per side.
        name: by default the constructor's in lower case.
    """
    return KerasApplication(
        name=name or constructor.lower(),
        modality="image",
        default_size=size,
        feature_dim=feature_dim,
        parameters=parameters,
        preprocessing=PREPROCESSING[preprocessing],
        constructor=constructor,
        module=module,
        weights_file=weights_file,
        **{"min_size": 32, **more},
    )


_TF_KERNELS = "{}_weights_tf_dim_ordering_tf_kernels_notop.h5"
_MOBILE = (128, 160, 192, 224)


def _convnext(size: str, feature_dim: int, parameters: float) -> KerasApplication:
    file = f"convnext_{size.lower()}_notop.h5"
    return _row(f"ConvNeXt{size}", "convnext", "inside", feature_dim, parameters, 224, file)


def _densenet(depth: int, feature_dim: int, parameters: float) -> KerasApplication:
    file = _TF_KERNELS.format(f"densenet{depth}")
    return _row(f"DenseNet{depth}", "densenet", "torch", feature_dim, parameters, 224, file)


def _efficientnet(size: str, feature_dim: int, parameters: float, pixels: int) -> KerasApplication:
    file = f"efficientnet{size.lower()}_notop.h5"
    return _row(f"EfficientNet{size}", "efficientnet", "inside", feature_dim, parameters, pixels, file)


def _efficientnet_v2(size: str, feature_dim: int, parameters: float, pixels: int) -> KerasApplication:
    file = f"efficientnetv2-{size.lower()}_notop.h5"
    return _row(f"EfficientNetV2{size}", "efficientnet_v2", "inside", feature_dim, parameters, pixels, file)


def _mobilenet_v3(size: str, feature_dim: int, parameters: float) -> KerasApplication:
    file = f"weights_mobilenet_v3_{size.lower()}_224_1.0_float_no_top_v2.h5"
    return _row(f"MobileNetV3{size}", "mobilenet_v3", "inside", feature_dim, parameters, 224, file)


def _nasnet(size: str, feature_dim: int, parameters: float, pixels: int) -> KerasApplication:
    file = f"nasnet_{size.lower()}_no_top.h5"
    return _row(f"NASNet{size}", "nasnet", "tf", feature_dim, parameters, pixels, file, pinned_size=True)


def _resnet(depth: int, parameters: float) -> KerasApplication:
    file = _TF_KERNELS.format(f"resnet{depth}")
    return _row(f"ResNet{depth}", "resnet", "caffe", 2048, parameters, 224, file)


def _resnet_v2(depth: int, parameters: float) -> KerasApplication:
    file = _TF_KERNELS.format(f"resnet{depth}v2")
    return _row(f"ResNet{depth}V2", "resnet_v2", "tf", 2048, parameters, 224, file)


def _vgg(depth: int, parameters: float) -> KerasApplication:
    file = _TF_KERNELS.format(f"vgg{depth}")
    return _row(f"VGG{depth}", f"vgg{depth}", "caffe", 512, parameters, 224, file)


ROWS = [
    _row(
        "MobileNetV2", "mobilenet_v2", "tf", 1280, 0.4, 64, TINY_WEIGHTS.name,
        name="tiny", arguments=(("alpha", 0.35),),
        weights_sha256="5daf60d938e0213dcc814b34fbafe1aa580285b99226a9d319d462b8e244c87c",
    ),
    _convnext("Tiny", 768, 27.8),
    _convnext("Small", 768, 49.5),
    _convnext("Base", 1024, 87.6),
    _convnext("Large", 1536, 196.2),
    _convnext("XLarge", 2048, 348.1),
    _densenet(121, 1024, 7.0),
    _densenet(169, 1664, 12.6),
    _densenet(201, 1920, 18.3),
    _efficientnet("B0", 1280, 4.0, 224),
    _efficientnet("B1", 1280, 6.6, 240),
    _efficientnet("B2", 1408, 7.8, 260),
    _efficientnet("B3", 1536, 10.8, 300),
    _efficientnet("B4", 1792, 17.7, 380),
    _efficientnet("B5", 2048, 28.5, 456),
    _efficientnet("B6", 2304, 41.0, 528),
    _efficientnet("B7", 2560, 64.1, 600),
    _efficientnet_v2("B0", 1280, 5.9, 224),
    _efficientnet_v2("B1", 1280, 6.9, 240),
    _efficientnet_v2("B2", 1408, 8.8, 260),
    _efficientnet_v2("B3", 1536, 12.9, 300),
    _efficientnet_v2("S", 1280, 20.3, 384),
    _efficientnet_v2("M", 1280, 53.2, 480),
    _efficientnet_v2("L", 1280, 117.7, 480),
    _row(
        "InceptionResNetV2", "inception_resnet_v2", "tf", 1536, 54.3, 299,
        _TF_KERNELS.format("inception_resnet_v2"), min_size=75,
    ),
    _row("InceptionV3", "inception_v3", "tf", 2048, 21.8, 299, _TF_KERNELS.format("inception_v3"), min_size=75),
    _row("MobileNet", "mobilenet", "tf", 1024, 3.2, 224, "mobilenet_1_0_{size}_tf_no_top.h5", weight_sizes=_MOBILE),
    _row(
        "MobileNetV2", "mobilenet_v2", "tf", 1280, 2.3, 224,
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5", weight_sizes=(96, *_MOBILE),
    ),
    _mobilenet_v3("Large", 960, 3.0),
    _mobilenet_v3("Small", 576, 0.9),
    _nasnet("Large", 4032, 84.9, 331),
    _nasnet("Mobile", 1056, 4.3, 224),
    _resnet(50, 23.6),
    _resnet(101, 42.7),
    _resnet(152, 58.4),
    _resnet_v2(50, 23.6),
    _resnet_v2(101, 42.6),
    _resnet_v2(152, 58.3),
    _vgg(16, 14.7),
    _vgg(19, 20.0),
    _row("Xception", "xception", "tf", 2048, 20.9, 299, _TF_KERNELS.format("xception"), min_size=71),
]  # fmt: skip
