"""Images: files of many formats become RGB pixels, (size, size, 3) uint8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from headstart.config import LEAST_CROP
from headstart.data.boxes import Cut
from headstart.errors import ItemError
from headstart.modalities import pictures, requests
from headstart.modalities.base import Augmentation, Modality, StillRecognized
from headstart.modalities.batch import Batch
from headstart.modalities.explaining import Evidence, Explanation
from headstart.modalities.image import cutting, decode, descriptors, evidence, memory, pixels, probes, value_range
from headstart.modalities.image.augmentation import ImageAugmentation, view
from headstart.modalities.image.deep import DeepImage

if TYPE_CHECKING:
    import keras
    import pandas as pd

    from headstart.config import Extract, Prepare
    from headstart.fine_tune_config import FineTune

INPUT = "image"  # name of the encoder's input, and of an image in a request to the model server
THUMB = 96  # pixels, the longer side
CROPS = (0.35, 0.5, 0.65, 0.8, 0.9)  # tried for fine-tuning, the strongest first
CENTER_CROP = 0.875  # of networks trained on ImageNet, as a rule: 224 of 256 pixels
ALL = 0.999  # of the pixels


class ImageModality(Modality):
    """Photographs, scans and drawings as RGB pixels.

    Args:
        value_range: what is black and what is white in images with more than 8 bits; None: the data set has none.
        center_crop: share of the shorter side that the central square has which networks see; None: they see
            the whole image, stretched to a square.
    """

    name, noun, column, default_backbone = "image", "image", INPUT, "tiny"
    suffixes, unsupported = decode.SUFFIXES, decode.UNSUPPORTED
    columns = {"width": "int32", "height": "int32"}  # noqa: RUF012  never changed
    libraries = ("pillow", "simplejpeg")
    descriptor_dim = descriptors.DIM
    explains = "Where it looks"

    def __init__(self, value_range: value_range.Range | None = None, center_crop: float | None = None) -> None:
        self._range, self._center_crop = value_range, center_crop
        self.reading = {"value_range": list(value_range)} if value_range else {}
        if center_crop is not None:
            self.reading["center_crop"] = center_crop

    def recognizes(self, head: bytes, suffix: str) -> bool:
        return decode.looks_like_image(head, suffix)

    def decode(self, data: bytes) -> Image.Image | DeepImage:
        return decode.read(data)

    def cutter(self, data: bytes) -> Cut:
        return cutting.cutter(data)

    def item_id(self, item: Image.Image | DeepImage) -> str:
        return item.item_id() if isinstance(item, DeepImage) else decode.item_id(np.asarray(item))

    def measures(self, item: Image.Image | DeepImage) -> dict[str, float]:
        """Return width and height; of more than 8 bits also deep (1), float (0 or 1), low and high, see `extent`."""
        if not isinstance(item, DeepImage):
            return {"width": item.width, "height": item.height}
        (height, width), (low, high) = item.values.shape[:2], item.extent()
        return {"width": width, "height": height, "deep": 1, "float": int(item.is_float), "low": low, "high": high}

    def sketch(self, item: Image.Image | DeepImage) -> np.ndarray:
        if isinstance(item, DeepImage):  # the range of the data set is not known yet
            low, high = item.extent()
            item = item.rgb((low, high if high > low else low + 1))
        return descriptors.sketch(item)

    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        vectors, brightness, sharpness = descriptors.describe(sketches)
        return vectors, {"brightness": brightness, "sharpness": sharpness}

    def reject(self, measures: dict[str, float], settings: Prepare) -> tuple[str, str] | None:
        if min(measures["width"], measures["height"]) >= settings.min_size:
            return None
        shown = f"{measures['width']:.0f} x {measures['height']:.0f} pixels"
        return "too_small", f"{shown}, prepare.min_size is {settings.min_size}"

    def find_reading(self, examples: pd.DataFrame, settings: Prepare) -> tuple[dict[str, Any], list[str]]:
        """Return value_range, [black, white], if there are images with more than 8 bits."""
        return value_range.find_reading(examples, settings.value_range)

    def with_reading(self, reading: dict[str, Any]) -> ImageModality:
        rest = dict(reading)
        return ImageModality(
            center_crop=_parse_crop(rest.pop("center_crop", None)), value_range=value_range.parse_reading(rest)
        )

    def for_backbone(self, wanted: dict[str, Any], settings: Extract) -> ImageModality:
        choice, share = settings.resize, wanted.get("center_crop")
        if choice is not None:
            share = {"stretch": None, "crop": share or CENTER_CROP}[choice] if isinstance(choice, str) else choice
        return ImageModality(self._range, share)

    def unseen(self, examples: pd.DataFrame, size: int) -> list[str]:
        shapes = examples[["width", "height"]]
        seen = (shapes.min(axis=1) / shapes.max(axis=1)).mean() * (size / self._needed(size)) ** 2
        if self._center_crop is None or seen > ALL:
            return []
        return [
            f"of each image the network sees the central square, {100 * seen:.0f} % of the pixels on average; "
            "extract.resize=stretch shows all of them, squeezed"
        ]

    def outlier_measures(self, examples: pd.DataFrame) -> dict[tuple[str, str | None], tuple[pd.Series, float]]:
        width, height = examples.width.astype(float), examples.height.astype(float)
        return {
            ("small", "large"): (np.log2(width * height), 0.5),
            ("narrow", "wide"): (np.log2(width / height), 0.5),
            ("dark", "bright"): (examples.brightness, 0.05),
            ("blurred", None): (np.log2(examples.sharpness + 1), 0.25),
        }

    def histograms(self, examples: pd.DataFrame) -> dict[str, tuple[pd.Series, str]]:
        return {
            "longer side": (examples[["width", "height"]].max(axis=1), "{:.0f} px"),
            "width / height": (examples.width / examples.height, "{:.2f}"),
            "brightness": (examples.brightness, "{:.2f}"),
            "sharpness": (examples.sharpness, "{:.0f}"),
        }

    def load(self, data: bytes, size: int) -> np.ndarray:
        """Load an image, (size, size, 3) uint8 RGB."""
        return self._resize(pixels.pixels(data, self._needed(size), self._range), size)

    def load_with_remark(self, data: bytes, size: int) -> tuple[np.ndarray, str]:
        """Return an image as `load` does, and a remark if its values do not fit the range of the training images."""
        if not self._range or data.startswith(pixels.JPEG):
            return self.load(data, size), ""
        image, remark = decode.read(data), ""
        if isinstance(image, DeepImage):
            remark = value_range.compare(image.extent(), self._range)
            image = image.rgb(self._range)
        return self._resize(np.asarray(image), size), remark

    def memory(self, data: bytes, size: int) -> int:
        return memory.decoding_memory(data, self._needed(size))

    def views(
        self, data: bytes, size: int, augmentation: Augmentation | None, key: str, numbers: Iterable[int]
    ) -> Iterator[np.ndarray]:
        numbers = list(numbers)
        if not isinstance(augmentation, ImageAugmentation) or not any(numbers):
            yield from super().views(data, size, None, key, numbers)
            return
        needed = max(augmentation.min_side(size), self._needed(size))
        image = pixels.pixels(data, needed, self._range)
        for number in numbers:
            yield view(image, size, augmentation, key, number, self._center_crop)

    def whole(self, data: bytes) -> np.ndarray:
        """Decode an image, (height, width, 3) uint8 RGB."""
        return np.asarray(decode.decode(data, self._range))

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        return {INPUT: np.stack(arrays)}

    def spec(self, size: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        return {INPUT: ((size, size, 3), "uint8")}

    def front(self, size: int) -> keras.Model:
        """Build the resize: RGB images of any size in [0, 255] -> (N, size, size, 3), antialiased."""
        import keras

        image = keras.Input((None, None, 3), name=INPUT)
        crops, side = self._center_crop is not None, self._needed(size)
        how = {"interpolation": "bilinear", "antialias": True, "crop_to_aspect_ratio": crops}
        resized = keras.layers.Resizing(side, side, **how, name="resize")(image)
        if side > size:
            resized = keras.layers.CenterCrop(size, size, name="crop")(resized)
        return keras.Model(image, {INPUT: resized}, name="front")

    def augmentation(self, settings: Extract | FineTune) -> ImageAugmentation | None:
        crop = 1.0 if settings.crop is None else settings.crop
        return _unless_plain(ImageAugmentation(crop, bool(settings.flip), settings.jitter))

    def choose_augmentation(
        self, settings: Extract | FineTune, still_recognized: StillRecognized
    ) -> ImageAugmentation | None:
        """Return flips if the head still recognizes mirrored images, and the strongest of CROPS that it recognizes.

        A crop or a mirror image that the head does not recognize may be of another class, as with digits.
        """
        flip, crop = settings.flip, settings.crop
        if flip is None:
            flip = still_recognized(ImageAugmentation(1.0, True, 0.0, mirror=True), 1)
        if crop is None:
            candidates = (ImageAugmentation(crop, flip, settings.jitter) for crop in CROPS)
            crop = next((one.crop for one in candidates if still_recognized(one, 1)), CROPS[-1])
        return _unless_plain(ImageAugmentation(crop, flip, settings.jitter))

    def probes(self, size: int) -> list[bytes]:
        side = self._needed(size)
        return probes.files(side) + (probes.deep_files(side) if self._range else [])

    def parse_request(self, value: Any) -> bytes:
        """Return the bytes of an image file, from base64 text."""
        return requests.parse_file(value, "an image file")

    def format_request(self, data: bytes) -> str:
        return requests.format_file(data)

    def show(self, data: bytes) -> str:
        """Return a thumbnail whose longer side has THUMB pixels."""
        try:
            image = decode.decode(data, self._range)
        except ItemError:
            return ""
        image.thumbnail((THUMB, THUMB), reducing_gap=2.0)
        return pictures.as_html(image)

    def explain(self, files: Sequence[bytes], size: int, classes: np.ndarray, network: Evidence) -> Explanation:
        maps, words = network.maps([self.load(data, size) for data in files], classes)
        images = [self.whole(data) for data in files]
        seen = [pixels.seen_part(image.shape[1], image.shape[0], size, self._center_crop) for image in images]
        return evidence.draw(images, maps, seen, words)

    def _needed(self, size: int) -> int:
        return pixels.needed_side(size, self._center_crop)

    def _resize(self, image: np.ndarray, size: int) -> np.ndarray:
        return pixels.resize(image, size, self._center_crop)


def _parse_crop(share: Any) -> float | None:
    """Return the share of a reading; raises ValueError if it is none."""
    if share is not None and not (isinstance(share, int | float) and LEAST_CROP <= share <= 1):
        raise ValueError(f"center_crop must be in [{LEAST_CROP}, 1], got {share!r}")
    return share


def _unless_plain(augmentation: ImageAugmentation) -> ImageAugmentation | None:
    return None if augmentation == ImageAugmentation(1.0, False, 0.0) else augmentation
