"""From the bytes of a file to what networks see."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import paint
from PIL import Image

from headstart.data.files import Folder, file_hash
from headstart.errors import ItemError, UserError
from headstart.modalities import get_modality
from headstart.modalities.batch import batch_length, pad_batch
from headstart.modalities.image.decode import decode
from headstart.modalities.image.pixels import pixels, resize
from headstart.modalities.loading import prefetch, read_batches

IMAGES = get_modality("image")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shapes, as photographs have them."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("size", "expected"), [(300, (300, 400)), (151, (300, 400)), (150, (150, 200)), (70, (75, 100)), (20, (38, 50))]
)
@pytest.mark.parametrize("kind", ["plain", "grey", "through Pillow"])
def test_a_jpeg_twice_as_large_is_decoded_at_a_fraction_of_its_size(size, expected, kind):
    image = photo(400, 300)
    options = {"exif": b"Exif\0\0damaged"} if kind == "through Pillow" else {}
    found = pixels(encoded(image.convert("L") if kind == "grey" else image, quality=95, **options), size)
    assert found.shape == (*expected, 3)
    reference = image.convert("L").convert("RGB") if kind == "grey" else image
    assert difference(found, np.asarray(reference.resize(expected[::-1], Image.Resampling.BOX))) < 3


def test_plain_jpegs_have_the_pixels_that_pillow_gives_them():
    data = encoded(photo(400, 300), quality=90)
    assert (pixels(data, 300) == np.asarray(decode(data))).all()
    assert (pixels(data, 100) == np.asarray(decode(data, at_least=100))).all()


@pytest.mark.parametrize("how", ["exif", "xmp"])
def test_photographs_are_rotated_upright(how):
    stored = photo(400, 300)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if how == "exif" else {"xmp": b'<x tiff:Orientation="6"/>'}
    found = pixels(encoded(stored, quality=95, **options), 100)
    assert found.shape == (200, 150, 3)
    assert difference(found, np.asarray(stored.rotate(-90, expand=True).resize((150, 200)))) < 3


@pytest.mark.parametrize("how", ["two segments", "another kind of segment"])
def test_exif_in_odd_places_is_read_as_prepare_reads_it(how):
    exif = Image.Exif()
    exif[0x0112] = 6
    data, body = encoded(photo(90, 60)), exif.tobytes()
    cut = 14 if how == "two segments" else 0  # after the header, before the tags
    pieces = [body[:cut], body[:6] + body[cut:]] if cut else [body]
    odd = b"".join(b"\xff\xe1" + (len(piece) + 2).to_bytes(2, "big") + piece for piece in pieces)
    if not cut:
        junk = b"junk" + b"Exif\0\0" + bytes(20)
        odd = b"\xff\xe2" + (len(junk) + 2).to_bytes(2, "big") + junk + odd
    data = data[:2] + odd + data[2:]
    assert decode(data).size == (60, 90)
    assert pixels(data, 60).shape == (90, 60, 3)


def test_exif_without_rotation_is_decoded_the_fast_way():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "maker"
    assert (pixels(encoded(photo(90, 60), exif=exif), 60) == pixels(encoded(photo(90, 60)), 60)).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_and_modes_go_through_pillow(kind):
    image = photo(80, 60).convert("RGBA")
    image.putalpha(0)
    if kind != "TIFF":
        assert (pixels(encoded(image, kind), 20) == 255).all()
    assert pixels(encoded(photo(80, 60), kind), 20).shape == (60, 80, 3)
    assert (pixels(encoded(Image.new("CMYK", (64, 64))), 64) > 250).all()


def test_a_cut_jpeg_has_the_reason_that_prepare_gives():
    data = encoded(photo(400, 300))
    with pytest.raises(ItemError, match="truncated") as raised:
        pixels(data[: len(data) // 2], 100)
    assert raised.value.reason == "truncated"


@pytest.mark.parametrize("shape", [(50, 20), (8, 8), (640, 480), (3000, 40), (7, 900), (1, 1)])
def test_resize_shows_the_whole_image_without_aliasing(shape):
    image = photo(*shape)
    made = resize(np.asarray(image), 32)
    assert made.shape == (32, 32, 3)
    assert made.dtype == np.uint8
    assert difference(made, np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))) < 5
    noise = np.random.default_rng(0).integers(0, 2, (*shape[::-1], 1), np.uint8).repeat(3, 2) * 255
    if min(shape) > 200:  # fine noise becomes grey, it is not picked from
        assert resize(noise, 32).std() < 30


@pytest.fixture
def ten(tmp_path: Path) -> tuple[Folder, list[str], list[str]]:
    names = [f"{number}.png" for number in range(10)]
    for number, name in enumerate(names):
        paint(tmp_path / name, (number * 20, 0, 0), number)
    return Folder(tmp_path), names, [file_hash((tmp_path / name).read_bytes()) for name in names]


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_batches_keep_the_order_and_equal_single_loads(ten, tmp_path, batch_size):
    source, names, hashes = ten
    batches = [batch["image"] for batch in read_batches(source, IMAGES, names, hashes, 16, batch_size)]
    assert [len(batch) for batch in batches] == [min(batch_size, 10 - start) for start in range(0, 10, batch_size)]
    singles = np.stack([IMAGES.load((tmp_path / name).read_bytes(), 16) for name in names])
    assert (np.concatenate(batches) == singles).all()


def test_a_file_that_changed_since_prepare_is_named(ten, tmp_path):
    source, names, hashes = ten
    paint(tmp_path / "3.png", (0, 99, 0), 1)
    with pytest.raises(UserError, match=r"3\.png has changed since prepare ran \(its content is different\)"):
        list(read_batches(source, IMAGES, names, hashes, 16, 4))
    (tmp_path / "3.png").unlink()
    with pytest.raises(UserError, match=r"3\.png has changed since prepare ran \(no such file\)"):
        list(read_batches(source, IMAGES, names, hashes, 16, 4))


@pytest.mark.parametrize(("batch_size", "workers", "most"), [(1, 2, 6), (8, 2, 40), (64, 2, 192), (4, 8, 68)])
def test_reading_ahead_is_bounded_and_keeps_all_threads_busy(batch_size, workers, most):
    loaded, lock = [], threading.Lock()

    def load(rows: range) -> Iterator[np.ndarray]:
        with lock:
            loaded.extend(rows)
        for _ in rows:
            yield np.zeros((2, 2, 3), np.uint8)

    batches = prefetch(load, 1000, batch_size, workers)
    next(batches)
    # All threads have something to do while the first batch is used.
    deadline = time.monotonic() + 10
    while len(loaded) < batch_size + workers * min(8, batch_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert batch_size + workers * min(8, batch_size) <= len(loaded) <= most
    batches.close()


def test_padding_repeats_the_last_example():
    batch = {"ids": np.array([[1, 2], [3, 4]]), "mask": np.array([[True, False], [True, True]])}
    padded = pad_batch(batch, 4)
    assert padded["ids"].tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]
    assert padded["mask"].tolist() == [[True, False], [True, True], [True, True], [True, True]]
    assert batch_length(padded) == 4
    assert pad_batch(batch, 2) is batch
