from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from headstart.errors import ItemError
from headstart.modalities.image import decode as decode_module
from headstart.modalities.image.decode import decode, item_id
from headstart.modalities.image.pixels import pixels


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG", "PPM"])
def test_formats_are_recognized_by_content(kind):
    pixels = np.asarray(decode(encoded(Image.new("RGB", (9, 7), (250, 10, 120)), kind)))
    assert pixels.shape == (7, 9, 3)
    assert np.abs(pixels.astype(int) - (250, 10, 120)).max() < 12


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 90), (90, 90, 90)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 255)), (0, 0, 0)),
        (Image.fromarray(np.full((4, 4), 32896, np.uint16)), (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(image, expected):
    assert (np.asarray(decode(encoded(image, "PNG"))) == expected).all()


def test_transparent_palette_becomes_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    assert (np.asarray(decode(encoded(image, "PNG", transparency=0))) == 255).all()


def test_cmyk_jpeg():
    white = decode(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert (np.asarray(white) > 250).all()


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(Image.new("RGB", (10, 4)), "JPEG", exif=exif)).size == (4, 10)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty", "the file is empty"),
        (b"hello", "not_an_image", "not an image of a supported kind"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:700], "truncated", "damaged: "),
        (encoded(Image.effect_noise((64, 64), 90), "PNG")[:700], "truncated", "damaged: "),
        (b"GIF89a", "damaged", "damaged: its header cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", "not an image of a supported kind"),
    ],
)
def test_why_a_file_is_not_an_image(data, reason, detail):
    with pytest.raises(ItemError, match=detail) as raised:
        decode(data)
    assert raised.value.reason == reason


def test_an_image_is_identified_by_its_pixels_in_any_format():
    image = Image.effect_noise((20, 10), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    same = [encoded(image, "PNG"), encoded(image, "BMP"), encoded(image, "WEBP", lossless=True)]
    same.append(encoded(image.rotate(180), "PNG", exif=exif))
    assert len({item_id(np.asarray(decode(data))) for data in same}) == 1
    other = image.copy()
    other.putpixel((3, 3), (1, 2, 3))
    assert item_id(np.asarray(other)) != item_id(np.asarray(image))
    assert item_id(np.zeros((6, 4, 3), np.uint8)) != item_id(np.zeros((4, 6, 3), np.uint8))


def test_a_decompression_bomb_is_refused():
    with pytest.raises(ItemError, match="decompression bomb"):
        decode(encoded(Image.new("1", (20000, 20000)), "PNG"))


def claiming(width: int, height: int) -> bytes:
    """A PNG of few bytes that claims to be that large: decoding it would fail in another way."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("read", [decode, lambda data: pixels(data, 32)])
def test_images_that_are_too_large_by_their_header_are_refused(read):
    with pytest.raises(ItemError, match="bomb: 13,300 x 13,300 pixels, 89,478,485 are allowed") as raised:
        read(claiming(13300, 13300))
    assert raised.value.reason == "bomb"
    with pytest.raises(ItemError) as raised:
        read(claiming(9400, 9400))
    assert raised.value.reason != "bomb"
    jpeg = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 13300, 13300)
    with pytest.raises(ItemError, match="13,300 x 13,300"):
        read(bytes(jpeg))


def test_heic_is_read_if_pillow_heif_is_installed():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (250, 10, 120))).save(buffer)
    pixels = np.asarray(decode(buffer.getvalue()))
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - (250, 10, 120)).max() < 12
    assert {".heic", ".heif"} <= set(decode_module.SUFFIXES)
    assert ".heic" not in decode_module.UNSUPPORTED
    assert decode_module.looks_like_image(buffer.getvalue()[:64], ".heic")
