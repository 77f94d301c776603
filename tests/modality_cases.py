"""What tests that run for each modality know of it. A further one: an entry in CASES, and a fixture."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLOURS, paint
from PIL import Image


@dataclass(frozen=True)
class Case:
    """A modality, the model of it that is served and exported, and examples.

    Attributes:
        make: an example unlike that of any other number.
        rewrite: the same example in other bytes.
        alter: a near copy of it.
        spoil: what is left out of it, if bytes get lost, and the reason.
        reveal: an example by which one knows its label, "pos"; None: nothing is looked for.
        revealed: words of the line that says so.
    """

    name: str
    model: str  # a fixture of conftest.py: a model file of few layers
    examples: Callable[[Path], list[bytes]]  # in every form there is, made in an empty folder
    outside: Callable[[Path, list[bytes], int], np.ndarray]  # read by what lies beside an export, without our code
    tensor: str  # what an export takes
    bad: tuple[tuple[Any, int, str], ...]  # a value in a request, or what makes it; the status; words of the answer
    libraries: set[str]  # that an MLflow model of it requires, besides those of all
    make: Callable[[int], bytes]
    rewrite: Callable[[bytes], bytes]
    alter: Callable[[bytes], bytes]
    spoil: tuple[Callable[[bytes], bytes], str]
    suffix: str
    extracted: str  # fixtures of conftest.py: folders after prepare and extract
    finished: str  # and after all stages
    evidence: str  # what the page of results says of it
    shown: str  # how pages show an example
    change: Callable[[], None]  # changes examples of `extracted` in the current folder
    changed: str  # one of them
    beside: set[str] = field(default_factory=set)  # files that stand beside an export
    remarks: dict[int, str] = field(default_factory=dict)  # what is said of which of the examples
    plain: str = "keras"  # what loads its model without our code
    slow_formats: tuple[str, ...] = ()
    reveal: Callable[[int], bytes] | None = None
    revealed: str = ""


def draw_images(folder: Path) -> list[bytes]:
    """Images that are decoded in every way there is: to be turned, transparent, of other sizes and kinds."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(("a.png", "b.jpg", "c.webp", "d.bmp", "e.gif")):
        paint(folder / name, list(COLOURS.values())[number % 3], number, (90 + 7 * number, 70))
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(folder / "b.jpg") as image:
        image.save(folder / "turned.jpg", exif=turned)
        image.convert("RGBA").resize((40, 50)).save(folder / "alpha.png")
    return [file.read_bytes() for file in sorted(folder.iterdir())]


def resize_images(_: Path, files: list[bytes], size: int) -> np.ndarray:
    images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB").resize((size, size))) for file in files]
    return np.stack(images).astype(np.float32)


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(size: tuple[int, int], mode: str = "RGB") -> str:
    """The base64 of a black image, which takes few bytes however large it is."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", compress_level=1)
    return encode(buffer.getvalue())


def draw(number: int) -> bytes:
    from test_corpus import encoded, picture

    return encoded(picture(number, (80, 60)), "PNG")


def redraw(data: bytes, kind: str, size: tuple[int, int] = (80, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).resize(size).save(buffer, kind)
    return buffer.getvalue()


IMAGE = Case(
    *("image", "shipped", draw_images, resize_images, "image (N, 32, 32, 3), float32"),
    libraries={"pillow", "simplejpeg"},
    make=draw,
    rewrite=lambda data: redraw(data, "BMP"),
    alter=lambda data: redraw(data, "JPEG", (40, 30)),
    spoil=(lambda data: data[:-400], "truncated"),
    suffix=".png",
    extracted="extracted_short",
    finished="finished_photos",
    evidence="Where it looks",
    shown='<img src="data:',
    change=lambda: paint(Path("photos/red/003.png"), (1, 2, 3), 5),
    changed="red/003.png",
    bad=(
        ("This is no base64!", 400, "not the base64 of an image file"),
        ("", 400, "the file is empty"),
        (encode(b"some text, no picture"), 400, "not an image of a supported kind"),
        (encode(b"<html></html>" + bytes(60)), 400, "but HTML or XML"),
        (encode(b"\xff\xd8\xff\xe0"), 400, "damaged"),
        ("A" * 48_000_000, 413, "larger than 32 MiB"),
        (lambda: png((20000, 20000), "1"), 413, "a decompression bomb"),
        (lambda: png((11000, 8000), "RGBA"), 413, "too large: loading it takes 2,014 MiB of memory, 512"),
        ("data:image/png;base64,iVBORw0K", 400, "not the base64 of an image file"),
    ),
)

LONG = "the bank is cold and " * 20
CUT = "texts like this one have more than 24 tokens, as many as the model reads; the rest is left out."


def write_sentences(_: Path) -> list[bytes]:
    """Texts of other lengths; the second is longer than the model reads."""
    from text_models import make_table

    return [text.encode() for text in ("bank card", LONG, "soup", *make_table(4, seed=2).text)]


def tokenize(folder: Path, files: list[bytes], _: int) -> np.ndarray:
    """Tokens (N, t) int32, by the tokenizer beside an export, padded as its reading.json says."""
    from tokenizers import Tokenizer

    reading = json.loads((folder / "reading.json").read_text())
    assert (reading["prefix"], reading["pad"], reading["size"]) == ("", 0, 24)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return np.array([one.ids for one in tokenizer.encode_batch([file.decode() for file in files])], np.int32)


def write(number: int) -> bytes:
    from test_texts import sentence

    return sentence(number).encode()


def replace_words(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


TEXT = Case(
    *("text", "shipped_texts", write_sentences, tokenize, "tokens (N, any), int32"),
    libraries={"keras-hub", "tokenizers"},
    make=write,
    rewrite=lambda data: f"{data.decode().upper()}\n".encode("utf-16"),
    alter=lambda data: data + b" indeed",
    spoil=(lambda data: data[:3] + b"\0" + data[4:], "not_text"),
    suffix=".txt",
    extracted="extracted_texts",
    finished="finished_texts",
    evidence="Which words matter",
    shown="<blockquote",
    change=lambda: replace_words(Path("texts.csv"), "rain", "hail"),
    changed="texts.csv#",
    reveal=lambda number: b"Pos: " + write(number),
    revealed="the texts of 1 of 2 classes name their own label: pos in 100 % of its texts and 0.0 % of",
    beside={"reading.json", "tokenizer.json"},
    remarks={1: CUT},
    plain="keras_hub",
    slow_formats=("litert", "openvino", "saved_model"),
    bad=(
        (None, 400, "must be a text, got nothing"),
        (3, 400, "must be a text, got int"),
        (["bank"], 400, "must be a text, got list"),
        (" \n", 400, "there is no text"),
        ("\ud800 bank", 400, "character 1 is half of a pair of surrogates"),
        ("a\0b", 400, "it holds zero bytes"),
        ("bank " * 60_000, 413, "300,000 characters, at most 250,000 are read"),
    ),
)


def record_sounds(_: Path) -> list[bytes]:
    """Recordings of other lengths, rates and formats; the second is longer than the model hears."""
    from audio_files import encode, tone

    return [
        encode(tone(0.5)),
        encode(tone(1.3)),
        encode(tone(0.4, rate=8000), 8000, "FLAC"),
        encode(tone(0.7, rate=44_100, channels=2), 44_100),
    ]


def resample_sounds(_: Path, files: list[bytes], size: int) -> np.ndarray:
    """Samples (N, n) float32 at 16 kHz, n being a multiple of a step; of one second, the middle one."""
    import soundfile
    import soxr

    sounds = []
    for file in files:
        samples, rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
        sound = soxr.resample(samples.mean(axis=1), rate, 16_000)
        start = max(0, (len(sound) - size * 16_000) // 2)
        sounds.append(sound[start : start + size * 16_000])
    longest = -(-max(map(len, sounds)) // 320) * 320
    return np.stack([np.pad(sound, (0, longest - len(sound))) for sound in sounds])


@cache
def record(number: int, rate: int = 16_000) -> bytes:
    from audio_files import encode
    from test_audio_copies import say

    return encode(say(number), rate)


def record_again(data: bytes, kind: str, codec: str | None = None) -> bytes:
    import soundfile
    from audio_files import encode

    return encode(*soundfile.read(io.BytesIO(data), dtype="int16"), kind, codec)


AUDIO = Case(
    *("audio", "shipped_sounds", record_sounds, resample_sounds, "sound (N, any), float32"),
    libraries={"soundfile", "soxr"},
    make=record,
    rewrite=lambda data: record_again(data, "FLAC"),
    alter=lambda data: record_again(data, "WAV", "ULAW"),
    spoil=(lambda data: data[:-400], "truncated"),
    suffix=".wav",
    extracted="extracted_sounds",
    finished="finished_sounds",
    evidence="Which moments matter",
    shown="<audio",
    change=lambda: Path("recordings/up/speaker_1_0.wav").write_bytes(record(0)),
    changed="up/speaker_1_0.wav",
    reveal=lambda number: record(number, 8000),
    revealed="sample rates give 2 of 2 classes away: neg (0 % of it has fewer than 16,000",
    remarks={1: "recordings like this one are longer than 1 s, of which the second in the middle is heard."},
    slow_formats=("litert", "openvino"),
    bad=(
        ("This is no base64!", 400, "not the base64 of a recording"),
        (encode(b"some text, no sound"), 400, "not a sound file of a supported kind"),
        ("A" * 48_000_000, 413, "larger than 32 MiB"),
    ),
)

CASES = {case.name: case for case in (IMAGE, AUDIO, TEXT)}


def each_modality(fixture: str, stages: str = "extracted") -> pytest.MarkDecorator:
    """Run a test for each modality with a fixture that takes what some stages have left from `examples_of(request)`."""
    found = [getattr(case, stages) for case in CASES.values()]
    return pytest.mark.parametrize(fixture, found, ids=CASES, indirect=True)


def examples_of(request: pytest.FixtureRequest) -> Path:
    """Return the folder that a fixture begins with: that of `each_modality`, by default photos by `short`."""
    return request.getfixturevalue(getattr(request, "param", IMAGE.extracted))


each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
