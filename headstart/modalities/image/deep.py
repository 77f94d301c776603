"""Images with more than 8 bits a value: as their files have them, until one range makes them 8-bit RGB. No TensorFlow.

Pillow opens grey ones as they are. Of 16 bits in several channels it keeps the high byte alone; asked to read the same
file in the other byte order, it keeps the low byte.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from PIL import Image, ImageFile, ImageOps

from headstart.errors import ItemError

SCALED_AT_ONCE = 2**20  # values
SAMPLED = 2**22  # values of which the extent is found
OUTSIDE = 1e-4  # share of an image's values, at each end, that its extent leaves out: hot and dead pixels
FULL, FULL_FLOAT = 65535, 1.0  # white, if nothing else is known
SMALL_PART = 1 / 8  # of a range: a set or an image that uses less of it may have another range
# libtiff returns values in the byte order of the machine, which Pillow knows of unsigned ones only.
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_GREY_ALPHA = "LA;16B"
_WHITE_IS_ZERO, _SIGNED = 0, 2  # in TIFF
NO_DATA = 42113  # a tag of GDAL


@dataclass(frozen=True)
class DeepImage:
    """An image that has no scale of its own: what is black and white in it depends on the data set.

    Attributes:
        values: (height, width) or (height, width, 3): uint16 if it holds them, else int32, uint32 or float32.
        alpha: (height, width) uint16, 65535 being opaque; None: all opaque.
        inverted: whether the lowest value is white.
        missing: (height, width) bool: where the file has no values, which are then black; None: nowhere.
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    inverted: bool = False
    missing: np.ndarray | None = None

    @property
    def is_float(self) -> bool:
        """Whether values are floats."""
        return self.values.dtype.kind == "f"

    def extent(self) -> tuple[float, float]:
        """Return the lowest and the highest value, but for single pixels that stand out.

        Raises:
            ItemError: if no value is finite.
        """
        values = self.values.reshape(-1) if self.missing is None else self.values[~self.missing]
        values = values[:: max(1, values.size // SAMPLED)]
        if self.is_float:
            values = values[np.isfinite(values)]
        if not values.size:
            raise ItemError("damaged", "damaged: it holds no number")
        low = np.quantile(values, OUTSIDE, method="higher")
        high = np.quantile(values, 1 - OUTSIDE, method="lower")
        return float(min(low, high)), float(max(low, high))

    def item_id(self) -> str:
        """Hash size and values, 32 hexadecimal digits, whatever the file format."""
        shape = "x".join(map(str, self.values.shape))
        digest = blake3(f"{shape} {self.values.dtype.name} {self.inverted}\n".encode())
        for array in (self.values,) if self.alpha is None else (self.values, self.alpha):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest(length=16)

    def rgb(self, value_range: tuple[float, float]) -> Image.Image:
        """Return 8-bit RGB, transparency on white; values up to the first of `value_range` are black, or missing."""
        scaled = _scale(self.values, *value_range)
        scaled = 255 - scaled if self.inverted else scaled
        if self.missing is not None:
            scaled[self.missing] = 0
        image = Image.fromarray(scaled).convert("RGB")
        if self.alpha is None:
            return image
        mask = Image.fromarray(_scale(self.alpha, 0, FULL))
        return Image.composite(image, Image.new("RGB", image.size, "white"), mask)

    def usual_range(self) -> tuple[float, float]:
        """Return all of 16 bits, or [0, 1] of floats: the range if the model has seen images of 8 bits only.

        Raises:
            ItemError: unknown_range, if the values do not look like that.
        """
        low, high = self.extent()
        full = FULL_FLOAT if self.is_float else FULL
        if low < 0 or high > full or (not self.is_float and high < SMALL_PART * full):
            raise ItemError(
                "unknown_range",
                f"values from {low:g} to {high:g}, and no image with more than 8 bits was in the training data, so it "
                "is not known which value is white; convert it to 8 bits as those were",
            )
        return 0, full


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] to [0, 255], uint8; what is not finite becomes 0."""
    if values.dtype == np.uint16 and values.size > FULL:
        return _scale(np.arange(FULL + 1, dtype=np.int32), low, high)[values]
    scaled, flat = np.empty(values.size, np.uint8), values.reshape(-1)
    for start in range(0, values.size, SCALED_AT_ONCE):  # in float64, which of all values would be large
        part = flat[start : start + SCALED_AT_ONCE].astype(np.float64)
        part = np.where(np.isfinite(part), part, low)
        scaled[start : start + SCALED_AT_ONCE] = np.round(np.clip((part - low) / (high - low), 0, 1) * 255)
    return scaled.reshape(values.shape)


def deep_image(image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]) -> DeepImage | None:
    """Read the values of an opened image that is not loaded yet; None if it has at most 8 bits without a sign.

    Args:
        reopen: opens the same file again.
    """
    tags = getattr(image, "tag_v2", {})
    signed = tags.get(339, (1,))[0] == _SIGNED
    channels, alpha = _wide_channels(image, reopen), None
    if channels is not None:
        grey, transparent = channels.shape[2] == 2, channels.shape[2] in (2, 4)
        values, alpha = channels[..., 0 if grey else slice(3)], channels[..., -1] if transparent else None
    elif image.mode.startswith(("I", "F")) or (signed and image.mode == "L"):
        values = _load(image, _NATIVE.get(_raw_mode(image), "") if image.tile[0].codec_name == "libtiff" else "")
        if image.mode == "L":
            values = values.view(np.int8)
        elif image.mode == "I" and tags.get(258, (0,))[0] == 32 and not signed:
            values = values.view(np.uint32)
    else:
        return None
    if (key := image.info.get("transparency")) is not None and alpha is None:  # a value of PNG that is transparent
        same = values == np.asarray(key)
        alpha = np.where(same.all(axis=-1) if values.ndim == 3 else same, 0, FULL).astype(np.uint16)
    if alpha is not None and alpha.min() == FULL:
        alpha = None
    inverted = bool(tags) and tags.get(262, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    return DeepImage(_smallest(values), alpha, inverted, _missing(values, tags.get(NO_DATA)))


def _missing(values: np.ndarray, no_data: str | None) -> np.ndarray | None:
    """Return where a grey image has the value that GeoTIFF files give for places without data; None: nowhere."""
    try:
        number = float((no_data or "").strip("\0 "))
    except ValueError:
        return None
    with np.errstate(over="ignore"):  # by numbers that a float of 32 bits does not hold
        missing = values == number
    return missing if values.ndim == 2 and missing.any() else None


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return integers as uint16 if it holds them, else as int32 if that does; so that formats do not differ."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high <= FULL:
        return values.astype(np.uint16)
    return values.astype(np.int32 if high < 2**31 else np.uint32)


def _wide_channels(image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]) -> np.ndarray | None:
    """Return (height, width, 2, 3 or 4) uint16 of an image of 16 bits in several channels; None if it is another."""
    raw = _raw_mode(image)
    if image.format == "PPM" and raw == "RGB" and (white := _ppm_white(image)) > 255:
        values = _both_bytes(_read_as(image, "RGB;16B"), _read_as(reopen(), "RGB;16B"), "B")
        return np.uint16(np.round(np.minimum(values / white, 1) * FULL))
    if raw == _GREY_ALPHA:  # four bytes, as those of RGBA
        parts = _load(image, "RGBA").astype(np.uint16)
        return parts[..., ::2] << 8 | parts[..., 1::2]
    if raw[:-1] in ("RGB;16", "RGBA;16"):
        return _both_bytes(image, reopen(), raw[-1])
    return None


def _ppm_white(image: ImageFile.ImageFile) -> int:
    """Return the value that a PPM file with colours calls white."""
    tile = image.tile[0]
    white = int(tile.args[1]) if isinstance(tile.args, tuple) else 255
    if white > 255 and tile.codec_name != "ppm":
        raise ItemError("unsupported", "a PPM of 16 bits as text is not supported; save it as PNG")
    return white


def _both_bytes(image: ImageFile.ImageFile, again: ImageFile.ImageFile, order: str) -> np.ndarray:
    """Return uint16 of a file that was opened twice, whose values are in the byte `order` B, L, or N of the machine."""
    mode = _raw_mode(image)[:-1]
    high, low = "BL" if order == "B" or (order == "N" and sys.byteorder == "big") else "LB"
    values = _load(image, f"{mode}{high}").astype(np.uint16)
    values <<= 8
    values |= _load(again, f"{mode}{low}")
    return values


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how the file has its pixels, in Pillow's words; empty if there is nothing to decode."""
    args = image.tile[0].args if image.tile else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _read_as(image: ImageFile.ImageFile, raw_mode: str) -> ImageFile.ImageFile:
    """Have the file of an image read without a conversion."""
    image.tile = [tile._replace(codec_name="raw", args=(raw_mode, 0, 1)) for tile in image.tile]
    return image


def _load(image: ImageFile.ImageFile, raw_mode: str) -> np.ndarray:
    """Return the pixels, upright; as `raw_mode` reads them, unless it is empty."""
    if raw_mode:
        image.tile = [
            tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *(tile.args or ())[1:]))
            for tile in image.tile
        ]
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image)
