"""The table of backbones: every image classifier of keras.applications, and `tiny`. Loads no TensorFlow.

Command: python -m headstart.backbones.table          # prints the table, and whose weights are on this machine
         python -m headstart.backbones.table NAME     # prints the blocks of one, from the input to the output
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import did_you_mean

TINY_WEIGHTS = Path(__file__).parent / "weights" / "tiny.weights.h5"

# How each family's own `preprocess_input` maps RGB in [0, 255]; `inside` is done by layers of the network itself.
PREPROCESSING = {
    "tf": "RGB in [-1, 1]",
    "caffe": "BGR minus ImageNet's mean",
    "torch": "RGB in [0, 1] by ImageNet's mean and deviation",
    "inside": "inside the network",
}

# How each family names the layers of a block; what the parentheses find names the block. What matches nothing belongs
# to the block before it, in Inception to the one after it: there only the last layers of a block have its name.
BLOCKS = {
    "convnext": r"convnext_[a-z]+_(stage_\d+_block_\d+|downsampling_block_[1-9])",
    "densenet": r"(conv\d_block\d+)_",
    "efficientnet": r"(block\d+[a-z]+)_",
    "efficientnet_v2": r"(block\d+[a-z]+)_",
    "inception_resnet_v2": r"(mixed_\d[ab]|block\d+_\d+)",
    "inception_v3": r"(mixed\d+)$",
    "mobilenet": r"(conv)_(?:pad|dw|pw)_(\d+)",
    "mobilenet_v2": r"(block_\d+|expanded_conv)_",
    "mobilenet_v3": r"(expanded_conv(?:_\d+)?)_",
    "nasnet": r"(?!activation|concatenate).*?_((?:stem_|reduce_)?\d+)$",
    "resnet": r"(conv\d_block\d+)_",
    "resnet_v2": r"(conv\d_block\d+)_",
    "vgg16": r"(block\d)_",
    "vgg19": r"(block\d)_",
    "xception": r"(block\d+)_",
}
NAMED_BY_THE_END = ("inception_resnet_v2", "inception_v3")


@dataclass(frozen=True)
class Backbone:
    """A row of the table.

    Attributes:
        constructor: function of `keras.applications`.
        module: module of `keras.applications` that holds its `preprocess_input`.
        preprocessing: a key of PREPROCESSING.
        feature_dim: channels of the last feature map, the length of a vector pooled from it.
        parameters: weights in millions, without the classifier on top.
        default_size, min_size: image side in pixels.
        weights_file: name of its ImageNet weights in Keras' cache; `{size}` is the size that they were trained at.
        weight_sizes: the sizes that `{size}` can be; any other image size takes the last one.
        pinned_size: True where Keras gives ImageNet weights at the default size alone.
        arguments: further arguments of the constructor.
        weights_sha256: of the weights file, hexadecimal, where it comes with this repository.
    """

    constructor: str
    module: str
    preprocessing: str
    feature_dim: int
    parameters: float
    default_size: int
    weights_file: str
    min_size: int = 32
    weight_sizes: tuple[int, ...] = ()
    pinned_size: bool = False
    arguments: tuple[tuple[str, float], ...] = ()
    weights_sha256: str = ""

    def weights_path(self, image_size: int) -> Path:
        """Where the pretrained weights for images of `image_size` pixels lie, or would lie once downloaded."""
        if self is BACKBONES["tiny"]:
            return TINY_WEIGHTS
        size = image_size if image_size in self.weight_sizes else (self.weight_sizes or (0,))[-1]
        return keras_models() / self.weights_file.format(size=size)


def keras_models() -> Path:
    """The folder of Keras' weights cache, by Keras' own rule: KERAS_HOME, else ~/.keras, else /tmp/.keras."""
    home = Path.home() if os.access(Path.home(), os.W_OK) else Path("/tmp")
    return Path(os.environ.get("KERAS_HOME") or home / ".keras") / "models"


def cached_backbones() -> list[str]:
    """Names of the backbones whose pretrained weights for the default size are on this machine."""
    return [name for name, row in BACKBONES.items() if row.weights_path(row.default_size).is_file()]


_TF_KERNELS = "{}_weights_tf_dim_ordering_tf_kernels_notop.h5"
_MOBILE = (128, 160, 192, 224)


def _convnext(size: str, feature_dim: int, parameters: float) -> Backbone:
    file = f"convnext_{size.lower()}_notop.h5"
    return Backbone(f"ConvNeXt{size}", "convnext", "inside", feature_dim, parameters, 224, file)


def _densenet(depth: int, feature_dim: int, parameters: float) -> Backbone:
    file = _TF_KERNELS.format(f"densenet{depth}")
    return Backbone(f"DenseNet{depth}", "densenet", "torch", feature_dim, parameters, 224, file)


def _efficientnet(size: str, feature_dim: int, parameters: float, pixels: int) -> Backbone:
    file = f"efficientnet{size.lower()}_notop.h5"
    return Backbone(f"EfficientNet{size}", "efficientnet", "inside", feature_dim, parameters, pixels, file)


def _efficientnet_v2(size: str, feature_dim: int, parameters: float, pixels: int) -> Backbone:
    file = f"efficientnetv2-{size.lower()}_notop.h5"
    return Backbone(f"EfficientNetV2{size}", "efficientnet_v2", "inside", feature_dim, parameters, pixels, file)


def _mobilenet_v3(size: str, feature_dim: int, parameters: float) -> Backbone:
    file = f"weights_mobilenet_v3_{size.lower()}_224_1.0_float_no_top_v2.h5"
    return Backbone(f"MobileNetV3{size}", "mobilenet_v3", "inside", feature_dim, parameters, 224, file)


def _nasnet(size: str, feature_dim: int, parameters: float, pixels: int) -> Backbone:
    file = f"nasnet_{size.lower()}_no_top.h5"
    return Backbone(f"NASNet{size}", "nasnet", "tf", feature_dim, parameters, pixels, file, pinned_size=True)


def _resnet(depth: int, parameters: float) -> Backbone:
    file = _TF_KERNELS.format(f"resnet{depth}")
    return Backbone(f"ResNet{depth}", "resnet", "caffe", 2048, parameters, 224, file)


def _resnet_v2(depth: int, parameters: float) -> Backbone:
    file = _TF_KERNELS.format(f"resnet{depth}v2")
    return Backbone(f"ResNet{depth}V2", "resnet_v2", "tf", 2048, parameters, 224, file)


def _vgg(depth: int, parameters: float) -> Backbone:
    file = _TF_KERNELS.format(f"vgg{depth}")
    return Backbone(f"VGG{depth}", f"vgg{depth}", "caffe", 512, parameters, 224, file)


_ROWS = [
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
    Backbone(
        "InceptionResNetV2", "inception_resnet_v2", "tf", 1536, 54.3, 299,
        _TF_KERNELS.format("inception_resnet_v2"), min_size=75,
    ),
    Backbone("InceptionV3", "inception_v3", "tf", 2048, 21.8, 299, _TF_KERNELS.format("inception_v3"), min_size=75),
    Backbone("MobileNet", "mobilenet", "tf", 1024, 3.2, 224, "mobilenet_1_0_{size}_tf_no_top.h5", weight_sizes=_MOBILE),
    Backbone(
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
    Backbone("Xception", "xception", "tf", 2048, 20.9, 299, _TF_KERNELS.format("xception"), min_size=71),
]  # fmt: skip

BACKBONES: dict[str, Backbone] = {
    "tiny": Backbone(
        "MobileNetV2",
        "mobilenet_v2",
        "tf",
        1280,
        0.4,
        64,
        TINY_WEIGHTS.name,
        arguments=(("alpha", 0.35),),
        weights_sha256="5daf60d938e0213dcc814b34fbafe1aa580285b99226a9d319d462b8e244c87c",
    ),
    **{row.constructor.lower(): row for row in _ROWS},
}


def main(argv: list[str] | None = None) -> int:
    """Print the table, or the blocks of one backbone."""
    parser = argparse.ArgumentParser(prog="python -m headstart.backbones.table", description="The table of backbones.")
    parser.add_argument("backbone", nargs="?", help="lists the blocks of this one, for fine_tune.unfreeze")
    name = parser.parse_args(argv).backbone
    if name is None:
        try:
            _print_table()
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 0
    if name not in BACKBONES:
        print(f"backbone {name!r} is unknown{did_you_mean(name.lower(), BACKBONES)}", file=sys.stderr)
        return 1
    from headstart.backbones import blocks  # loads TensorFlow, which the table does without

    blocks.show(name, BACKBONES[name])
    return 0


def _print_table() -> None:
    here = set(cached_backbones())
    print(f"{'backbone':<18} {'features':>8} {'weights':>9} {'size':>5} {'least':>5}  {'here':<5} preprocessing")
    for name, row in BACKBONES.items():
        print(
            f"{name:<18} {row.feature_dim:>8} {row.parameters:>7.1f} M {row.default_size:>5} {row.min_size:>5}  "
            f"{'yes' if name in here else '-':<5} {PREPROCESSING[row.preprocessing]}"
        )
    print(
        "\nsize, least: image side in pixels, `extract.size`. features: vector length after average pooling."
        f"\nhere: ImageNet weights in {keras_models()}; those not there are downloaded by `extract`."
        "\ntiny's weights come with this repository, trained on images drawn by formula: see pretraining/README.md."
    )


if __name__ == "__main__":
    sys.exit(main())
