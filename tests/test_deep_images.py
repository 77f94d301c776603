"""Images with more than 8 bits: every kind of file is read with all of its bits, or refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from test_images import encoded
from tiff_files import tiff_file

from headstart.data.inspection import inspect_contents
from headstart.errors import ItemError
from headstart.modalities import get_modality
from headstart.modalities.image import deep
from headstart.modalities.image.decode import decode, read
from headstart.modalities.image.deep import DeepImage
from headstart.modalities.image.probes import png

RANDOM = np.random.default_rng(0)


def draw(dtype: str, bands: int = 0) -> np.ndarray:
    """All values of a dtype at random, or floats in [0, 1), (6, 8) or (6, 8, bands)."""
    shape = (6, 8, bands) if bands else (6, 8)
    if np.dtype(dtype).kind == "f":
        return RANDOM.random(shape).astype(dtype)
    ends = np.iinfo(dtype)
    return RANDOM.integers(ends.min, ends.max, shape, dtype, endpoint=True)


def read_deep(data: bytes) -> DeepImage:
    image = read(data)
    assert isinstance(image, DeepImage)
    return image


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "u2", "i2", "i4", "f4"])
def test_grey_tiffs_keep_all_bits(dtype, order, compressed):
    values = draw(dtype)
    image = read_deep(tiff_file(values, order, compressed=compressed))
    assert (image.values == values).all()
    assert image.is_float == (dtype == "f4")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bands", [3, 4])
def test_tiffs_with_16_bits_of_colour_and_transparency_keep_them(bands, order, compressed):
    values = draw("u2", bands)
    image = read_deep(tiff_file(values, order, compressed=compressed, extra=[2] if bands == 4 else ()))
    assert (image.values == values[..., :3]).all()
    assert image.alpha is None if bands == 3 else (image.alpha == values[..., 3]).all()


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_them(bands):
    values = draw("u2", bands)
    image = read_deep(png(values))
    assert (image.values == (values[..., 0] if bands < 3 else values[..., :3])).all()
    assert image.alpha is None if bands % 2 else (image.alpha == values[..., -1]).all()


@pytest.mark.parametrize("kind", [".png", ".tiff", ".ppm"])
def test_colours_of_16_bits_are_read_as_opencv_wrote_them(kind):
    values = draw("u2", 3)
    data = cv2.imencode(kind, values[..., ::-1])[1].tobytes()
    assert (read_deep(data).values == values).all()


def test_a_rotated_png_of_16_bits():
    values = draw("u2", 3)
    data = png(values)
    exif = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    rotated = data[:33] + png_chunk(b"eXIf", exif) + data[33:]
    assert (read_deep(rotated).values == np.rot90(values, -1)).all()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_transparent_value_of_16_bits_is_compared_with_all_its_bits():
    values = np.full((4, 4, 3), 4096, np.uint16)
    values[0, 0, 2] = 4097
    data = png(values)
    key = png_chunk(b"tRNS", struct.pack(">HHH", 4096, 4096, 4096))
    image = read_deep(data[:33] + key + data[33:])
    assert image.alpha is not None
    assert (image.alpha > 0).sum() == 1
    assert (np.asarray(image.rgb((0, 4096)))[1:] == 255).all()


def test_ppm_and_pgm_say_themselves_what_is_white():
    header = b"P%d\n2 1\n4095\n"
    assert read_deep(header % 6 + struct.pack(">6H", 4095, 0, 0, 4095, 4095, 4095)).values.max() == 65535
    assert read_deep(header % 5 + struct.pack(">2H", 4095, 0)).values.max() == 65535
    with pytest.raises(ItemError, match="a PPM of 16 bits as text is not supported"):
        read(b"P3\n1 1\n4095\n4095 0 0\n")


def test_unsigned_32_bits_are_not_negative():
    values = draw("u4")
    assert (read_deep(tiff_file(values)).values == values).all()


def test_12_bits_packed_into_three_bytes_for_two():
    values = RANDOM.integers(0, 4096, (6, 8), np.uint16)
    first, second = values.reshape(-1, 2).astype(int).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    data = tiff_file(packed.reshape(6, 12), tags={256: [8], 258: [12]})
    assert (read_deep(data).values == values).all()


def test_white_can_be_zero():
    values = draw("u2")
    image = read_deep(tiff_file(values, photometric=0))
    black_is_zero = read_deep(tiff_file(values))
    assert (np.asarray(image.rgb((0, 65535))) == 255 - np.asarray(black_is_zero.rgb((0, 65535)))).all()
    assert image.item_id() != black_is_zero.item_id()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff_file(draw("u1", 5), extra=[0, 0]), "5 bands of 8-bit integers.* bands would be lost"),
        (tiff_file(draw("u1", 5), planar=True, compressed=True, extra=[0, 0]), "5 bands .* bands would be lost"),
        (tiff_file(draw("u1", 4), extra=[0]), "4 bands of 8-bit integers.* bands would be lost"),
        (tiff_file(draw("u1", 2), extra=[0]), "2 bands of 8-bit integers.* bands would be lost"),
        (tiff_file(draw("u2", 13), photometric=1), "13 bands of 16-bit integers is not supported"),
        (tiff_file(draw("u2", 3), planar=True), "3 bands of 16-bit integers, each in a plane of its own"),
        (tiff_file(draw("u2", 3), planar=True, compressed=True), "3 bands of 16-bit integers, each in a plane"),
        (tiff_file(draw("u2", 4), extra=[1]), "multiplied by transparency"),
        (tiff_file(draw("f4", 3)), "3 bands of 32-bit floats is not supported; save it as grey or RGB of 8 or 16 bits"),
        (tiff_file(draw("f8")), "1 band of 64-bit floats is not supported"),
        (tiff_file(draw("f2")), "1 band of 16-bit floats is not supported"),
        (tiff_file(draw("i2", 3)), "3 bands of 16-bit signed integers is not supported"),
        (tiff_file(draw("u4"), ">"), "1 band of 32-bit integers is not supported"),
        (tiff_file(draw("u1"), tags={259: [34887]}), "in compression 34887 is not supported"),
        (tiff_file(draw("u1", 3), photometric=8), "in CIELAB colours is not supported; save it as RGB"),
        (tiff_file(draw("u1", 5), photometric=5, extra=[2]), "5 bands of 8-bit integers is not supported; save it as"),
        (tiff_file(draw("u2"), photometric=32803), "1 band of 16-bit integers in photometric interpretation 32803 is"),
        (tiff_file(draw("u1"), pages=[0, 0, 0]), "a TIFF of 3 pages, of which one alone would be seen"),
        (tiff_file(draw("u2"), pages=[2, 2]), "a TIFF of 2 pages"),
    ],
)
def test_tiffs_that_would_be_read_wrong_are_refused_with_the_reason(data, words):
    with pytest.raises(ItemError, match=words) as raised:
        read(data)
    assert raised.value.reason == "unsupported"


@pytest.mark.parametrize(("dtype", "none"), [("i2", -9999), ("f4", -9999), ("u2", 65535), ("f4", float("nan"))])
def test_places_without_data_are_black_and_shape_no_range(dtype, none):
    values = np.full((20, 20), 100, dtype)
    values[:, 1], values[:9, 0] = 200, none
    text = f"{none}\0".encode()
    image = read_deep(tiff_file(values, tags={42113: list(text)}, text=(42113,)))
    assert image.extent() == (100, 200)
    assert np.asarray(image.rgb((0, 200)))[0, :3, 0].tolist() == [0, 255, 128]
    for other in (b"-1.7976931348623157e+308\0", b"-12345\0", b"none\0"):
        assert read_deep(tiff_file(values, tags={42113: list(other)}, text=(42113,))).missing is None


def test_grey_of_8_bits_multiplied_by_transparency():
    values = np.full((4, 4, 2), 128, np.uint8)
    values[0] = 0
    assert np.asarray(read(tiff_file(values, extra=[1])))[:2, 0, 0].tolist() == [255, 255]


def test_smaller_copies_and_masks_in_a_tiff_are_no_pages():
    values = draw("u1")
    assert (np.asarray(read(tiff_file(values, pages=[0, 1, 5, 4])))[..., 0] == values).all()


@pytest.mark.parametrize("bands", [3, 4])
def test_planes_and_cmyk_of_8_bits_are_read(bands):
    values = draw("u1", bands)
    planes, whole = tiff_file(values, planar=True, photometric=2 if bands == 3 else 5), tiff_file(values)
    image = np.asarray(read(planes))
    if bands == 3:
        assert (image == values).all()
        assert (np.asarray(read(whole)) == values).all()
    else:
        expected = Image.frombytes("CMYK", (8, 6), values.tobytes()).convert("RGB")
        assert (image == np.asarray(expected)).all()


def test_damaged_tiffs_are_called_damaged():
    data = tiff_file(draw("u2"), compressed=True)
    for broken in (data[:30], data[:8] + bytes(30) + data[38:], b"II*\0" + bytes(20), data[:4]):
        with pytest.raises(ItemError) as raised:
            read(broken)
        assert raised.value.reason in ("damaged", "truncated", "not_an_image")


def test_jpeg_2000_of_16_bits_grey_is_read_and_colour_is_refused():
    buffer = io.BytesIO()
    values = draw("u2")
    Image.fromarray(values).save(buffer, "JPEG2000", irreversible=False)
    data = buffer.getvalue()
    assert (read_deep(data).values == values).all()
    colour = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG2000"))
    colour[colour.index(b"\xff\x4f\xff\x51") + 42] = 15
    with pytest.raises(ItemError, match="JPEG 2000 of 16 bits in colour is not supported"):
        read(bytes(colour))


def test_images_that_differ_in_low_bits_are_not_the_same():
    """By their content, whatever the format of the file."""
    values = RANDOM.integers(0, 4096, (6, 8), np.uint16)
    same = [png(values[..., None]), tiff_file(values), tiff_file(values, ">", compressed=True)]
    same += [tiff_file(values.astype(dtype)) for dtype in ("i2", "i4", "u4")]
    ids = {read_deep(data).item_id() for data in same}
    assert len(ids) == 1
    values[2, 3] ^= 1
    assert read_deep(tiff_file(values)).item_id() not in ids
    assert read_deep(tiff_file(values.astype(np.float32))).item_id() not in ids
    assert read_deep(tiff_file(values.reshape(8, 6))).item_id() not in ids


def test_one_range_makes_8_bits_of_all():
    values = np.array([[0, 100, 200, 4095, 60000]], np.uint16)
    image = read_deep(tiff_file(np.repeat(values, 4, axis=0)))
    assert np.asarray(image.rgb((0, 4095)))[0, :, 0].tolist() == [0, 6, 12, 255, 255]
    assert np.asarray(image.rgb((100, 200)))[0, :, 0].tolist() == [0, 0, 255, 255, 255]
    grey_alpha = read_deep(png(np.array([[[4095, 65535], [0, 0], [0, 32768]]], np.uint16)))
    assert np.asarray(grey_alpha.rgb((0, 4095)))[0, :, 0].tolist() == [255, 255, 127]


@pytest.mark.parametrize("dtype", ["u2", "f4", "i4"])
def test_large_images_are_scaled_in_parts_or_by_a_table(monkeypatch, dtype):
    values = np.resize(draw(dtype), (300, 300))
    low, high = np.quantile(values, [0.2, 0.7])
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    monkeypatch.setattr(deep, "SCALED_AT_ONCE", 777)
    assert np.abs(np.asarray(DeepImage(values).rgb((low, high)))[..., 0] - expected).max() <= 0.5001


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_missing_values_of_float_images_are_black(hole):
    values = np.full((4, 4), 1.0, np.float32)
    values[0] = hole
    pixels = np.asarray(decode(tiff_file(values)))
    assert (pixels[0] == 0).all()
    assert (pixels[1:] == 255).all()
    with pytest.raises(ItemError, match="it holds no number"):
        get_modality("image").measures(read(tiff_file(values * np.nan)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((9, 9), 4095, np.uint16), "values from 4095 to 4095, and no image with more than 8 bits was in the"),
        (np.full((9, 9), -5, np.int16), "values from -5 to -5"),
        (np.full((9, 9), 255, np.float32), "values from 255 to 255"),
        (np.full((9, 9), 70000, np.int32), "values from 70000 to 70000"),
    ],
)
def test_without_a_range_images_of_unknown_scale_are_refused(values, words):
    """A model that has seen 8 bits alone would take them for black or white."""
    with pytest.raises(ItemError, match=words) as raised:
        decode(tiff_file(values))
    assert raised.value.reason == "unknown_range"
    assert decode(tiff_file(values), (-5, 70000)).size == (9, 9)


def test_hot_and_dead_pixels_are_not_the_extent():
    values = RANDOM.integers(100, 4000, (64, 64), np.uint16)
    values[3, 3], values[9, 9] = 65535, 0
    low, high = DeepImage(values).extent()
    assert 100 <= low < 110
    assert 3990 < high < 4000
    assert DeepImage(np.full((8, 8), 7, np.uint16)).extent() == (7, 7)


def test_a_modality_reads_by_what_it_is_given():
    image = get_modality("image")
    assert get_modality("image", {}) is image
    assert image.reading == {}
    twelve = get_modality("image", {"value_range": [0, 4095]})
    assert twelve.reading == {"value_range": [0, 4095]}
    data = tiff_file(np.full((8, 8), 4095, np.uint16))
    assert (twelve.load(data, 8) == 255).all()
    assert (twelve.whole(data) == 255).all()
    assert twelve.show(data).startswith("<img")
    assert image.show(data) == ""
    eight = encoded(Image.new("RGB", (8, 8), (9, 99, 199)), "PNG")
    assert (twelve.load(eight, 8) == image.load(eight, 8)).all()  # 8 bits have one scale


def test_an_image_without_a_number_is_quarantined():
    nothing = np.full((6, 8), np.nan, np.float32)
    good, bad = inspect_contents([png(draw("uint16", 1)), tiff_file(nothing)], get_modality("image"))
    assert (good.reason, bad.reason) == ("", "damaged")
