"""Every odd file and name that data sets are known to contain: each is accepted, quarantined or ignored."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import paint, run_stages, write_params
from PIL import Image, PngImagePlugin

from headstart import paths
from headstart.data.files import Folder
from headstart.errors import UserError
from headstart.modalities import get_modality
from headstart.modalities.image.decode import UNSUPPORTED
from headstart.modalities.loading import read_batches


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image that differs from that of any other number: cells of random colours, interpolated."""
    cells = np.random.default_rng(number).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of some hundred bytes that claims to be 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def corpus() -> dict[str, tuple[bytes, str]]:
    """Path -> bytes and fate: `accepted`, `ignored`, or the reason for which it is quarantined."""
    files: dict[str, tuple[bytes, str]] = {}
    numbers = iter(range(1000))

    def add(path: str, fate: str, data: bytes | Callable[[Image.Image], bytes]) -> bytes:
        made = data if isinstance(data, bytes) else data(picture(next(numbers)))
        files[path] = (made, fate)
        return made

    def good(path: str, kind: str, mode: str = "RGB", **options: object) -> bytes:
        return add(path, "accepted", lambda image: encoded(image.convert(mode), kind, **options))

    photo = good("cat/plain.jpg", "JPEG")
    good("cat/progressive.jpg", "JPEG", progressive=True)
    good("cat/cmyk.jpg", "JPEG", "CMYK")
    good("cat/grey.jpg", "JPEG", "L")
    good("cat/rotated.jpg", "JPEG", exif=exif(6))
    good("cat/mirrored.jpg", "JPEG", exif=exif(2))
    good("cat/impossible-orientation.jpg", "JPEG", exif=exif(77))
    good("cat/UPPER.JPG", "JPEG")
    good("cat/palette.png", "PNG", "P")
    good("cat/black-and-white.png", "PNG", "1")
    good("cat/alpha.png", "PNG", "RGBA")
    good("cat/grey-alpha.png", "PNG", "LA")
    good("cat/transparent-palette.png", "PNG", "P", transparency=0)
    add(
        "cat/16-bit.png",
        "accepted",
        lambda i: encoded(Image.fromarray(np.asarray(i.convert("L"), np.uint16) * 257), "PNG"),
    )
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "long " * 999, zip=True)
    good("cat/with-text.png", "PNG", pnginfo=text)
    good("cat/lossy.webp", "WEBP")
    good("cat/lossless.webp", "WEBP", lossless=True)
    good("cat/plain.bmp", "BMP")
    good("cat/plain.gif", "GIF")
    frames = [picture(next(numbers)) for _ in range(3)]
    add("cat/animated.gif", "accepted", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    good("cat/lzw.tiff", "TIFF", compression="tiff_lzw")
    add("dog/pages.tif", "unsupported", encoded(frames[1], "TIFF", save_all=True, append_images=frames[2:]))
    good("cat/really-a-png.jpg", "PNG")
    good("cat/really-a-gif.jpeg", "GIF")
    good("cat/no-suffix", "JPEG")
    good("cat/photo.dat", "JPEG")
    good("cat/two.dots.in.name.jpg", "JPEG")
    good("cat/Ünïcödé 猫 🐈.jpg", "JPEG")
    good("cat/with space .jpg", "JPEG")
    good("cat/new\nline, comma \"quote'.jpg", "JPEG")
    good("cat/-rf.jpg", "JPEG")
    good("cat/$(reboot);`x`&.jpg", "JPEG")
    good("cat/<img src=x onerror=alert(1)>.jpg", "JPEG")
    good("cat/deep/er/down.jpg", "JPEG")
    good(f"cat/{'long' * 50}.jpg", "JPEG")
    good("Кошка/1.jpg", "JPEG")
    for index in range(12):  # the smallest classes must be in every split
        good(f"cat/more-{index}.png", "PNG")
        good(f"dog/more-{index}.png", "PNG")
        good(f"Кошка/more-{index}.png", "PNG")

    add("dog/empty.jpg", "empty", b"")
    add("dog/cut.jpg", "truncated", photo[:-200])
    add("dog/cut.png", "truncated", lambda image: encoded(image, "PNG")[:400])
    add("dog/header-only.png", "damaged", b"\x89PNG\r\n\x1a\n")
    add("dog/header-only.gif", "damaged", b"GIF89a")
    add("dog/text.jpg", "not_an_image", b"this is no picture")
    add("dog/page.jpg", "not_an_image", b"<!doctype html><title>404 Not Found</title>")
    add("dog/zeros.jpg", "not_an_image", bytes(500))
    add("dog/drawing.png", "not_an_image", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    add("dog/script.jpg", "not_an_image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    heic = "unsupported" if ".heic" in UNSUPPORTED else "damaged"  # by whether pillow-heif is installed
    add("dog/phone.heic", heic, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    add("dog/phone.jpg", heic, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    add("dog/bomb.png", "bomb", bomb())
    add("dog/dot.png", "too_small", encoded(Image.new("RGB", (1, 1)), "PNG"))
    add("dog/line.png", "too_small", encoded(picture(next(numbers), (300, 5)), "PNG"))
    twin = picture(next(numbers))
    add("dog/twin-a.png", "accepted", encoded(twin, "PNG"))
    add("dog/twin-b.png", "duplicate", encoded(twin, "PNG", compress_level=1))
    add("dog/twin-c.bmp", "duplicate", encoded(twin, "BMP"))
    torn = picture(next(numbers))
    add("dog/whose.png", "conflict", encoded(torn, "PNG"))
    add("cat/whose.bmp", "conflict", encoded(torn, "BMP"))

    add("dog/notes.txt", "ignored", b"dogs")
    add("dog/labels.csv", "ignored", b"a,b")
    add("dog/clip.mp4", "ignored", b"\0\0\0\x18ftypmp42")
    add("README", "ignored", b"no image, in no class")
    add("loose.png", "ignored", lambda image: encoded(image, "PNG"))
    add(".DS_Store", "ignored", b"x")
    add("dog/._more-1.png", "ignored", b"x")
    add("dog/Thumbs.db", "ignored", b"x")
    add("dog/desktop.ini", "ignored", b"x")
    return files


@pytest.fixture(scope="module")
def files() -> dict[str, tuple[bytes, str]]:
    return corpus()


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Callable[..., dict[str, str]]:
    """Runs the stage on a source; returns path -> fate."""
    monkeypatch.chdir(tmp_path)

    def call(source: Path, **changes: object) -> dict[str, str]:
        fixed = {"data.source": str(source), "prepare.split": "exact", "prepare.max_bad_fraction": 0.5}
        write_params(Path("params.yaml"), **{**fixed, **changes})
        run_stages("prepare")
        manifest = pd.read_parquet(paths.MANIFEST)
        quarantine = pd.read_csv(paths.QUARANTINE, keep_default_na=False)
        ignored = pd.read_csv(paths.IGNORED, keep_default_na=False)
        counts = json.loads(paths.report("prepare").read_text())["files"]
        assert (counts["accepted"], counts["quarantined"]) == (len(manifest), len(quarantine))
        assert counts["seen"] == counts["accepted"] + counts["quarantined"] + counts["ignored"]
        fates = [(path, "accepted") for path in manifest.path]
        fates += zip(quarantine.path, quarantine.reason, strict=True)
        fates += [(path, "ignored") for path in ignored.path]
        assert len(fates) == counts["seen"]
        return dict(fates)

    return call


def write(root: Path, files: dict[str, tuple[bytes, str]]) -> Path:
    for name, (data, _) in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_the_corpus_holds_forty_kinds(files):
    assert len([name for name in files if "/more-" not in name]) >= 40


def test_every_file_of_a_folder_has_its_fate(run, files, tmp_path):
    root = write(tmp_path / "set", files)
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("x")
    (root / "dog" / "nowhere.jpg").symlink_to(root / "gone.jpg")
    os.symlink(root, root / "dog" / "loop")
    os.mkfifo(root / "dog" / "pipe.jpg")
    expected = {name: fate for name, (_, fate) in files.items()}
    expected |= {".git/": "ignored", "dog/loop/": "ignored"}
    expected |= {"dog/nowhere.jpg": "missing", "dog/pipe.jpg": "unreadable"}
    expected["dog/\\xff.jpg"] = "bad_name"
    (root / "dog" / os.fsdecode(b"\xff.jpg")).write_bytes(files["cat/plain.jpg"][0])
    assert run(root) == expected


def test_every_member_of_an_archive_has_the_same_fate(run, files, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, (data, _) in files.items():
            archive.writestr(name, data)
        archive.writestr("__MACOSX/cat/._plain.jpg", b"x")
        archive.writestr("../evil.jpg", files["cat/plain.jpg"][0])
    fates = run(tmp_path / "set.zip")
    assert fates.pop("__MACOSX/cat/._plain.jpg") == "ignored"
    assert fates.pop("../evil.jpg") == "outside"
    assert fates == {name: fate for name, (_, fate) in files.items()}


def test_every_row_of_a_manifest_has_its_fate(run, files, tmp_path):
    root = write(tmp_path / "set", files)
    rows = {name: fate for name, (_, fate) in files.items() if fate != "ignored"}
    rows |= {
        "dog/notes.txt": "not_an_image",
        "dog/lost.jpg": "missing",
        "dog": "unreadable",
        "../set/cat/plain.jpg": "outside",
    }
    labels = [name.split("/")[0] if name.split("/")[0] in ("cat", "Кошка") else "dog" for name in rows]
    pd.DataFrame({"path": list(rows), "label": labels}).to_csv(root / "list.csv", index=False)
    assert run(root / "list.csv") == rows


def test_stages_see_the_pixels_that_prepare_saw(run, files, tmp_path):
    root = write(tmp_path / "set", files)
    run(root)
    images = get_modality("image")
    manifest = pd.read_parquet(paths.MANIFEST)
    rows = list(manifest.path), list(manifest.file_hash)
    (batch,) = read_batches(Folder(root), images, *rows, 24, len(manifest))
    for pixels, row in zip(batch["image"], manifest.itertuples(), strict=True):
        data = (root / row.path).read_bytes()
        assert (pixels == images.load(data, 24)).all()
        item = images.decode(data)
        known = images.measures(item)
        assert (row.width, row.height, row.item_id) == (known["width"], known["height"], images.item_id(item))


def test_the_first_bad_file_stops_the_stage_if_on_bad_is_fail(run, files, tmp_path):
    root = write(tmp_path / "set", files)
    with pytest.raises(UserError, match=r"dog/bomb\.png: a decompression bomb: .*prepare\.on_bad=quarantine"):
        run(root, **{"prepare.on_bad": "fail"})
    assert not paths.MANIFEST.exists()


def test_conflicts_are_kept_or_stop_the_stage(run, files, tmp_path):
    root = write(tmp_path / "set", files)
    with pytest.raises(UserError, match=r"cat/whose\.bmp, dog/whose\.png: the same content under .* cat, dog;"):
        run(root, **{"prepare.on_conflict": "fail"})
    fates = run(root, **{"prepare.on_conflict": "keep"})
    assert fates["cat/whose.bmp"] == fates["dog/whose.png"] == "accepted"
    manifest = pd.read_parquet(paths.MANIFEST).set_index("path")
    assert manifest.split["cat/whose.bmp"] == manifest.split["dog/whose.png"]


def test_classes_that_differ_in_case_are_reported(run, tmp_path, capsys):
    for number, label in enumerate(("Cat", "cat", "dog")):
        for index in range(4):
            paint(tmp_path / "set" / label / f"{index}.png", (9, 9, 9), 10 * number + index)
    run(tmp_path / "set", **{"prepare.near_distance": 0.0})
    assert "the classes 'Cat', 'cat' differ only in case" in capsys.readouterr().out
