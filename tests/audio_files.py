"""Every odd sound file that data sets are known to contain, made by code: each is accepted or has a reason why not."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 16_000


class Case(NamedTuple):
    """A file, and its fate.

    Attributes:
        reason: why it is left out; empty: it is accepted.
        says: what the message holds, if it is left out.
        measures: some of its measures, if it is accepted.
    """

    data: bytes
    reason: str = ""
    says: str = ""
    measures: dict[str, float] = {}  # noqa: RUF012  never changed


def tone(seconds: float = 0.5, rate: int = RATE, channels: int = 1, peak: float = 0.5) -> np.ndarray:
    """Return a sweep with some noise, (n, channels) int16; all channels are equal."""
    time = np.arange(int(seconds * rate)) / rate
    random = np.random.default_rng(0)
    sound = np.sin(2 * np.pi * (300 + 400 * time) * time) + 0.05 * random.uniform(-1, 1, len(time))
    return np.repeat((sound * peak / 1.05 * 2**15).astype(np.int16)[:, None], channels, axis=1)


def encode(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", codec: str | None = None) -> bytes:
    """Return samples, (n,) or (n, channels), as the bytes of a file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, codec, format=kind)
    return buffer.getvalue()


def commented(samples: np.ndarray, text: str) -> bytes:
    """Return samples as Ogg Vorbis with a comment."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, "VORBIS", format="OGG") as file:
        file.comment = text
        file.write(samples)
    return buffer.getvalue()


def as_float(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 2**15


def replaced(data: bytes, place: int, layout: str, *values: int) -> bytes:
    """Return a file with other numbers at a byte of its header."""
    made = bytearray(data)
    struct.pack_into(layout, made, place, *values)
    return bytes(made)


def id3(size: int) -> bytes:
    """Return a tag of ID3 with a cover in it."""
    cover = b"APIC" + struct.pack(">IH", size, 0) + b"\0image/jpeg\0\x03\0\xff\xd8\xff\xe0" + bytes(size - 18)
    return b"ID3\x03\0\0" + bytes(len(cover) >> shift & 0x7F for shift in (21, 14, 7, 0)) + cover


def page(data: bytes, number: int) -> int:
    """Return where page `number` of an Ogg file begins."""
    place = 0
    for _ in range(number):
        place += 27 + data[place + 26] + sum(data[place + 27 : place + 27 + data[place + 26]])
    return place


def accepted() -> dict[str, Case]:
    """Name -> a file that is accepted."""
    sound = tone()
    wav = encode(sound)
    flac, mp3 = encode(sound, kind="FLAC"), encode(tone(1.0), kind="MP3")
    files = {
        f"{rate}.wav": Case(encode(tone(rate=rate), rate), measures={"rate": rate, "seconds": 0.5})
        for rate in (8000, 11_025, 22_050, 44_100, 48_000, 96_000)
    }
    files |= {
        f"{codec.lower()}.{kind.lower()}": Case(encode(as_float(sound), kind=kind, codec=codec))
        for kind, codec in [
            *(("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE")),
            *(("WAV", "ULAW"), ("WAV", "ALAW"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610")),
            *(("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")),
            *(("AIFF", "ULAW"), ("AU", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("NIST", "PCM_16")),
        ]
    }
    loud = as_float(tone(peak=1.0)) * 2.5
    square = np.where(tone(rate=44_100) > 0, 2**15 - 1, -(2**15)).astype(np.int16)
    clipped = np.clip(loud, -1, 1)
    antiphase = sound * np.array([1, -1], np.int16)
    five = tone(channels=5)
    five[:, 1:] = 0
    pipe = replaced(replaced(wav, 4, "<I", 2**32 - 1), 40, "<I", 2**32 - 1)
    odd = np.r_[as_float(sound)[:, 0], np.zeros(RATE, np.float32)]
    return files | {
        "plain.wav": Case(wav, measures={"channels": 1, "clipped": 0, "offset": 0, "out_of_phase": 0, "silent": 0}),
        "plain.flac": Case(flac),
        "stereo.wav": Case(encode(tone(channels=2)), measures={"channels": 2, "out_of_phase": 0}),
        "out-of-phase.wav": Case(encode(antiphase), measures={"channels": 2, "out_of_phase": 1}),
        "one-of-five-channels.wav": Case(encode(five), measures={"channels": 5, "out_of_phase": 0}),
        "extensible.wav": Case(encode(sound, kind="WAVEX", codec="PCM_24")),
        "beyond-full-scale.wav": Case(encode(loud, codec="FLOAT"), measures={"peak": 2.5, "clipped": 0}),
        "integers-as-float.wav": Case(encode(loud * 2**15, codec="FLOAT"), measures={"peak": 2.5 * 2**15}),
        "clipped.wav": Case(encode(clipped), measures={"clipped": 0.724}),
        "clipped.flac": Case(encode(square, 44_100, "FLAC")),
        "offset.wav": Case(encode(as_float(sound) + 0.25, codec="FLOAT"), measures={"offset": 0.25, "peak": 0.5}),
        "half-silent.wav": Case(encode(odd), measures={"silent": 2 / 3, "seconds": 1.5}),
        "written-to-a-pipe.wav": Case(pipe),
        "written-to-a-pipe.au": Case(replaced(encode(sound, kind="AU"), 8, ">I", 2**32 - 1)),
        "really-an-mp3.wav": Case(mp3),
        "really-a-flac.mp3": Case(flac),
        "tag-and-cover.mp3": Case(id3(5000) + mp3 + b"TAG" + bytes(125)),
        "wrong-size-in-its-first-frame.mp3": Case(replaced(mp3, mp3.index(b"Xing") + 12, ">I", 99_999)),
        "without-its-first-frame.mp3": Case(mp3[mp3.index(mp3[:2], 40) :]),
        "tag.flac": Case(id3(300) + flac),
        "junk-behind.wav": Case(wav + bytes(99)),
        "junk-behind.w64": Case(encode(sound, kind="W64") + b"junk" * 99, measures={"seconds": 0.5}),
        "junk-behind.nist": Case(encode(sound, kind="NIST") + b"junk" * 99, measures={"seconds": 0.5}),
        "20-ms.wav": Case(encode(tone(0.02))),
    }


def refused() -> dict[str, Case]:
    """Name -> a file that is left out."""
    sound = tone()
    made = {kind: encode(sound, kind=kind) for kind in ("WAV", "FLAC", "MP3", "AIFF", "AU", "W64", "RF64", "NIST")}
    wav, flac, mp3 = made["WAV"], made["FLAC"], encode(tone(1.0), kind="MP3")
    high = encode(tone(1.0, 44_100), 44_100, "MP3")
    uncounted, uncounted_44 = (data[data.index(data[:2], 40) :] for data in (mp3, high))
    vorbis, opus = (encode(tone(3), kind="OGG", codec=codec) for codec in ("VORBIS", "OPUS"))
    long_comment = commented(sound, "x" * 70_000)
    broken = as_float(sound).copy()
    broken[100] = np.nan
    huge = np.where(np.arange(len(sound)) == 99, 1e30, as_float(sound)[:, 0]).astype(np.float32)
    page_of_ogg = b"OggS\0\2" + bytes(20) + b"\1"
    cut = {
        f"cut.{kind.lower()}": Case(data[: len(data) // 2], "truncated", "bytes of samples are promised")
        for kind, data in made.items()
        if kind not in ("FLAC", "MP3")
    }
    return (
        cut
        | {
            "cut.flac": Case(flac[: len(flac) // 2], "damaged", "cut off"),
            "cut-by-a-byte.flac": Case(flac[:-1], "damaged", "cut off"),
            "cut.mp3": Case(mp3[:-50], "truncated", "middle of a frame"),
            "cut-between-frames.mp3": Case(
                mp3[: mp3.rfind(mp3[:2], 0, -200)], "truncated", "says that it has 30 frames"
            ),
            "cut.ogg": Case(vorbis[:-50], "truncated", "middle of a page"),
            "cut-in-the-last-header.ogg": Case(vorbis + b"OggS\0\0", "truncated", "middle of a page"),
            "headers-only.ogg": Case(vorbis[: page(vorbis, 1)], "truncated", "not complete"),
            "cut.opus": Case(opus[: len(opus) // 2], "truncated", "middle of a page"),
            "cut-in-a-long-packet.ogg": Case(long_comment[: page(long_comment, 2)], "truncated", "not complete"),
            "a-page-is-missing.ogg": Case(vorbis[: page(vorbis, 2)] + vorbis[page(vorbis, 3) :], "damaged", "missing"),
            "junk-between-pages.ogg": Case(
                vorbis[: page(vorbis, 2)] + b"junk" + vorbis[page(vorbis, 2) :], "damaged", "no page"
            ),
            "a-bit-is-wrong.ogg": Case(replaced(vorbis, len(vorbis) - 9, "B", vorbis[-9] ^ 1), "damaged", "checksum"),
            "a-bit-is-wrong.opus": Case(replaced(opus, 2000, "B", opus[2000] ^ 1), "damaged", "checksum"),
            "no-frame-begins.mp3": Case(mp3[:1500] + bytes(77) + mp3[1500:], "damaged", "no frame of MP3"),
            "header-only.wav": Case(encode(sound[:0]), "empty", "only a header"),
            "first-half-of-a-header.wav": Case(wav[:20], "damaged"),
            "first-bytes.aiff": Case(made["AIFF"][:22], "damaged"),  # makes libsndfile seek before the first byte
            "header-only.flac": Case(flac[:42], "damaged"),
            "header-only.mp3": Case(id3(500), "damaged", "no sound begins"),
            "empty.wav": Case(b"", "empty", "file is empty"),
            "silence.wav": Case(encode(sound * 0), "silent"),
            "constant.wav": Case(encode(sound * 0 + 3000), "silent"),
            "too-short.wav": Case(encode(tone(0.019)), "too_short", "19.0 ms"),
            "bomb.flac": Case(replaced(flac, 22, ">I", 2**32 - 1), "too_long", "minutes"),
            "unknown-length.flac": Case(replaced(flac, 22, ">I", 0), "unsupported", "ffmpeg"),
            "1-hertz.wav": Case(replaced(wav, 24, "<I", 1), "rate", "1 samples a second"),
            "1-gigahertz.wav": Case(replaced(wav, 24, "<I", 10**9), "rate", "1,000,000,000 samples a second"),
            "99-channels.wav": Case(replaced(wav, 22, "<H", 99), "channels", "99 channels"),
            "no-channels.wav": Case(replaced(wav, 22, "<H", 0), "damaged"),
            "other-codec.wav": Case(replaced(wav, 20, "<H", 0x161), "damaged", "codec"),
            "not-a-number.wav": Case(encode(broken, codec="FLOAT"), "not_finite"),
            "infinite.wav": Case(encode(np.where(np.isnan(broken), np.inf, broken), codec="FLOAT"), "not_finite"),
            "absurdly-loud.wav": Case(encode(huge, codec="FLOAT"), "damaged", "full scale is 1"),
            "two.wav": Case(wav + wav, "several"),
            "two.flac": Case(flac + flac, "several"),
            "two.mp3": Case(mp3 + mp3, "several"),
            "two-rates.mp3": Case(mp3 + high, "several"),
            "two-rates-without-counts.mp3": Case(uncounted + uncounted_44, "several"),
            "two-with-tags.mp3": Case(id3(50) + mp3 + id3(50) + mp3, "several"),
            "two.ogg": Case(vorbis + opus, "several"),
            "two.au": Case(made["AU"] + made["AU"], "several"),
            "two.sph": Case(made["NIST"] + made["NIST"], "several"),
            "raw.wav": Case(wav[44:], "not_audio", "raw samples need a header"),
            "text.wav": Case(b"a recording of a dog" * 9, "not_audio"),
            "page.wav": Case(b"<!doctype html><title>404</title>", "not_audio", "HTML"),
            "picture.wav": Case(b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1" + bytes(range(256)), "not_audio"),
            "zeros.wav": Case(bytes(500), "not_audio"),
            "phone.wav": Case(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(99), "unsupported", "ffmpeg -i FILE"),
            "video.wav": Case(b"\x1a\x45\xdf\xa3" + bytes(99), "unsupported", "WebM"),
            "windows.wav": Case(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(99), "unsupported", "WMA"),
            "avi.wav": Case(b"RIFF\x99\0\0\0AVI LIST" + bytes(99), "unsupported", "AVI"),
            "amr.wav": Case(b"#!AMR\n" + bytes(99), "unsupported", "AMR"),
            "aac.wav": Case(b"\xff\xf1\x50\x80" + bytes(99), "unsupported", "AAC"),
            "theora.ogg": Case(page_of_ogg + b"\7\x80theora", "unsupported", "a video"),
            "speex.ogg": Case(page_of_ogg + b"\x08Speex   ", "unsupported", "Speex"),
        }
    )
