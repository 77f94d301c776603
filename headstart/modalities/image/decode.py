"""Recognize and decode image files. No TensorFlow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from blake3 import blake3
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from headstart.errors import ItemError
from headstart.modalities.image import tiff
from headstart.modalities.image.deep import DeepImage, deep_image

# Recognized by content. Listed, since Pillow also opens formats that run other programs, and documents.
FORMATS: tuple[str, ...] = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES: tuple[str, ...] = (
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
# Meant as images, but not supported: these are quarantined, not ignored.
_CONVERT = "convert them to JPEG or PNG"
UNSUPPORTED = {
    **dict.fromkeys(
        (".heic", ".heif"), "install pillow-heif (python -m pip install pillow-heif), or convert them to JPEG"
    ),
    **dict.fromkeys((".jxl", ".svg", ".psd", ".eps", ".tga", ".ico", ".dcm", ".dng", ".cr2", ".cr3"), _CONVERT),
    **dict.fromkeys((".nef", ".arw", ".raf", ".orf", ".rw2"), _CONVERT),
}
try:
    import pillow_heif  # the extra `heic`
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
    FORMATS, SUFFIXES = (*FORMATS, "HEIF"), (*SUFFIXES, ".heic", ".heif")
    UNSUPPORTED = {suffix: advice for suffix, advice in UNSUPPORTED.items() if suffix not in (".heic", ".heif")}
# Of one image: the most that Pillow opens without a warning. Up to twice as many, it only warns, and takes gigabytes.
MAX_PIXELS = 2**30 // 4 // 3
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")

# About odd metadata, which nothing here reads. Set once: filters around each image would not be safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def looks_like_image(head: bytes, suffix: str = "") -> bool:
    """Whether a file that begins with `head`, 32 bytes or more, is an image by its content.

    Args:
        suffix: of the file, in lower case. With an unsupported suffix only JPEG and PNG count: camera raw files begin
            like TIFF.
    """
    Image.init()  # loads Pillow's plugins, the first time
    formats: Sequence[str] = ("JPEG", "PNG") if suffix in UNSUPPORTED else FORMATS
    accepts = [Image.OPEN[name][1] for name in formats if name in Image.OPEN]
    return any(accept is not None and accept(head) is True for accept in accepts)


def decode(data: bytes, value_range: tuple[float, float] | None = None, at_least: int | None = None) -> Image.Image:
    """Decode the first frame as 8-bit RGB: rotated upright by EXIF, transparency on white.

    Args:
        value_range: what is black and what is white in images with more than 8 bits; None: as their files usually say.
        at_least: see `read`.

    Raises:
        ItemError: as `read`; unknown_range, if there is no `value_range` and values look unusual.
    """
    image = read(data, at_least)
    return image.rgb(value_range or image.usual_range()) if isinstance(image, DeepImage) else image


def read(data: bytes, at_least: int | None = None) -> Image.Image | DeepImage:
    """Read the first frame, upright: as 8-bit RGB, or with its own values if it has more than 8 bits or floats.

    AVIF, HEIC and CMYK of more than 8 bits say themselves what is white: they are read as 8-bit RGB.

    Args:
        at_least: pixels; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides keep that many.

    Raises:
        ItemError: empty, not_an_image, unsupported, truncated, damaged or bomb, if the bytes are not a complete image.
    """
    if not data:
        raise ItemError("empty", "the file is empty")
    try:
        if data.startswith(tiff.MAGIC):
            tiff.check_tiff(data)
        image = _open(data)
        if image.format == "JPEG2000":
            _check_jpeg2000(data)
        deep = deep_image(image, lambda: _open(data))
        if deep:
            return deep
        if at_least:
            image.draft(None, (at_least, at_least))  # for JPEG only
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)
    except ItemError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, if there are more than twice as many pixels
        raise ItemError("bomb", f"a decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        if data.startswith(tiff.MAGIC) and (what := tiff.describe_tiff(data)):
            detail = f"{what} is not supported; save it as grey or RGB of 8 or 16 bits"
            raise ItemError("unsupported", detail) from error
        if looks_like_image(data[:32]):
            raise ItemError("damaged", "damaged: its header cannot be read") from error
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF and ".heic" in UNSUPPORTED:
            raise ItemError("unsupported", f"HEIC is not supported; {UNSUPPORTED['.heic']}") from error
        text = ", but HTML or XML" if data[:64].lstrip().startswith(b"<") else ""
        raise ItemError("not_an_image", f"not an image of a supported kind{text}") from error
    except Exception as error:  # decoders raise many kinds on damaged bytes: OSError, SyntaxError, struct.error, ...
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ItemError("truncated" if "truncated" in detail.lower() else "damaged", f"damaged: {detail}") from error


def _open(data: bytes) -> ImageFile.ImageFile:
    """Open an image without decoding it; raises ItemError if it has too many pixels."""
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    width, height = image.size  # by its header
    if width * height > MAX_PIXELS:
        raise ItemError("bomb", f"a decompression bomb: {width:,} x {height:,} pixels, {MAX_PIXELS:,} are allowed")
    return image


def _check_jpeg2000(data: bytes) -> None:
    """Check that Pillow will not cut the values of a colour image to 8 bits; raises ItemError if it would."""
    start = data.find(b"\xff\x4f\xff\x51")  # of the codestream, where the number of channels is at 40
    channels, bits = int.from_bytes(data[start + 40 : start + 42], "big"), (data[start + 42] & 0x7F) + 1
    if start >= 0 and channels > 1 and bits > 8:
        raise ItemError("unsupported", f"JPEG 2000 of {bits} bits in colour is not supported; save it as PNG or TIFF")


def item_id(pixels: np.ndarray) -> str:
    """Hash a decoded image, (height, width, 3) uint8, by its size and pixels: BLAKE3, 32 hexadecimal digits.

    Files with the same pixels have the same hash, whatever their format, name and metadata.
    """
    digest = blake3(b"%dx%d\n" % (pixels.shape[1], pixels.shape[0]))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest(length=16)


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # Pillow has no direct way
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy it
