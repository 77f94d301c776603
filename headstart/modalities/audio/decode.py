"""Recognize and decode sound files: mono samples at 16 kHz. No TensorFlow."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from headstart.errors import AUDIO_EXTRA, ItemError, UserError
from headstart.modalities.audio import containers
from headstart.modalities.audio.steps import RATE

if TYPE_CHECKING:
    from types import ModuleType

SUFFIXES = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".sph"),
)
_CONVERT = "convert {} to FLAC (ffmpeg -i {} -vn out.flac)"
_SOUND = (".m4a", ".m4b", ".aac", ".wma", ".amr", ".awb", ".3ga", ".caf", ".ape", ".wv", ".tta", ".mpc", ".dsf", ".dff")
_MORE_SOUND = (".ac3", ".dts", ".mka", ".spx", ".ra")
_VIDEO = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".mpg", ".mpeg", ".3gp", ".flv", ".ogv", ".ogx")
# Meant as recordings, but not supported: these are quarantined, not ignored.
UNSUPPORTED = {
    **{suffix: _CONVERT.format("them", f"in{suffix}") for suffix in (*_SOUND, *_MORE_SOUND, *_VIDEO)},
    **dict.fromkeys((".pcm", ".raw"), "give them a header (ffmpeg -f s16le -ar RATE -ac CHANNELS -i in.raw out.flac)"),
    **dict.fromkeys((".mid", ".midi"), "notes are not sound; render them to FLAC"),
}
_OTHER_CONTENT = (  # what else lies under the names of recordings: where it begins, with what, and what it is
    (4, b"ftyp", "MP4 (M4A, or video)"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA or WMV"),
    (8, b"AVI ", "AVI, a video,"),
    (0, b"#!AMR", "AMR"),
    (0, b"caff", "CAF"),
    (0, b"FLV\x01", "FLV, a video,"),
    (0, b"\x00\x00\x01\xba", "MPEG, a video,"),
    *((0, start, "AAC") for start in (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8", b"ADIF")),
    (0, b"MThd", "MIDI"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
)
_OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"fishead")

# Limits on what a header says, before anything is decoded.
MIN_SECONDS, MAX_SECONDS = 0.02, 1800  # a step of the networks; half an hour
MIN_RATE, MAX_RATE = 1000, 1_000_000  # heart sounds, bats
MAX_CHANNELS = 32
MAX_VALUES = 2**28  # of all channels together: 1 GiB as float32
MAX_PEAK = 2.0**32  # of float samples: some programs write integers of 32 bits as floats
STEP = 2.0**-15  # between two values of 16 bits
LARGE_OFFSET = 0.01  # of full scale; a smaller DC offset stays
# Power of the mean of channels as a share of their mean power; of n independent ones it is 1 / n.
CANCELLED = 0.02


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording as its file has it.

    Attributes:
        values: (n, channels) float32 as in the file.
        samples: (n,) float32 in [-1, 1] at the same rate: the mean of the channels, or the loudest one if they cancel
            each other out; without DC offset; if louder than full scale, scaled down to it.
        rate: samples a second.
        peak: of the samples before they are scaled.
        offset: the DC offset that was removed, 0 if it was too small to be.
        out_of_phase: whether the channels cancel each other out.
    """

    values: np.ndarray
    samples: np.ndarray
    rate: int
    peak: float
    offset: float
    out_of_phase: bool

    def resampled(self) -> np.ndarray:
        """Return the samples at RATE, (m,) float32 in [-1, 1]."""
        if self.rate == RATE:
            return self.samples
        samples = _import("soxr").resample(self.samples, self.rate, RATE, "HQ")
        return np.clip(samples, -1, 1, out=samples)


def recognizes(head: bytes, suffix: str = "") -> bool:
    """Whether a file that begins with `head`, 64 bytes, is a sound file of a supported kind by its content."""
    if head[:4] in (b"RIFF", b"RF64", b"RIFX"):
        return head[8:12] == b"WAVE"
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC")
    if head[:4] == b"OggS":
        return head[28:].startswith(_OGG_CODECS)
    if head[:3] == b"ID3":
        return len(head) >= 10 and head[3] in (2, 3, 4) and max(head[6:10]) < 0x80
    if head[:4] == b".snd":
        return 24 <= int.from_bytes(head[4:8], "big") < 2**20
    return head.startswith((b"fLaC", containers.W64, containers.NIST)) or containers.is_mpeg_frame(head)


def decode(data: bytes) -> np.ndarray:
    """Decode a recording, (n,) float32 in [-1, 1] at RATE; raises ItemError as `read`."""
    return read(data).resampled()


def read(data: bytes) -> Recording:
    """Read a recording with all its channels.

    Raises:
        ItemError: empty, not_audio, unsupported, truncated, damaged, several (recordings in one file), too_short,
            too_long, rate, channels, not_finite or silent, if the bytes are not a complete recording with any sound.
        UserError: if a library is not installed.
    """
    values, rate = _read_values(data)
    with np.errstate(invalid="ignore"):
        low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ItemError("not_finite", "it holds samples that are not numbers (NaN or infinite)")
    loudest = max(-low, high)
    if loudest > MAX_PEAK:
        raise ItemError("damaged", f"damaged: a sample is {loudest:.3g}, where full scale is 1")
    samples, out_of_phase = _mix(values)
    if values.shape[1] > 1:
        low, high = float(samples.min()), float(samples.max())
    if high - low < STEP:
        raise ItemError("silent", "silence: all samples are equal")
    offset = float(samples.mean())
    if abs(offset) > LARGE_OFFSET * max(1, loudest):
        samples = samples - np.float32(offset)
    else:
        offset = 0.0
    peak = max(offset - low, high - offset)
    if peak > 1:
        samples = samples / np.float32(peak)
    return Recording(values, samples, rate, peak, offset, out_of_phase)


def _mix(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the mean of the channels, (n,) float32; the loudest of them, and True, if they cancel each other out."""
    count = values.shape[1]
    if count == 1:
        return values[:, 0], False
    mean = values[:, 0].copy()
    for channel in range(1, count):
        mean += values[:, channel]
    mean /= count
    powers = np.array([values[:, channel].var(dtype=np.float64) for channel in range(count)])
    if mean.var(dtype=np.float64) >= CANCELLED * powers.mean():
        return mean, False
    return np.ascontiguousarray(values[:, powers.argmax()]), True


def _read_values(data: bytes) -> tuple[np.ndarray, int]:
    """Read all samples, (n, channels) float32, and the rate."""
    try:
        with _open(data) as file:
            values = np.empty((file.frames, file.channels), np.float32)
            count = len(file.read(out=values))
            rate = file.samplerate
    except _import("soundfile").LibsndfileError as error:
        raise ItemError("damaged", f"damaged, or cut off: {error.error_string}") from error
    if count < len(values):
        detail = f"{len(values):,} samples are promised, {count:,} can be read"
        raise ItemError("truncated", f"cut off, or damaged: {detail}")
    return values, rate


def _open(data: bytes) -> Any:
    """Open a sound file, of which nothing is decoded yet; raises ItemError if a limit keeps it from being read."""
    soundfile = _import("soundfile")
    if not data:
        raise ItemError("empty", "the file is empty")
    _check_kind(data)
    sound = containers.sound_bytes(data)
    try:
        file = soundfile.SoundFile(_SoundBytes(sound))
    except (soundfile.LibsndfileError, TypeError) as error:  # its own message may be that of another thread
        raise ItemError("damaged", "damaged, or its codec is not supported: the header cannot be read") from error
    try:
        _check_limits(file.frames, file.samplerate, file.channels)
    except ItemError:
        file.close()
        raise
    return file


class _SoundBytes(io.BytesIO):
    """A file in memory; soundfile prints a traceback if seeking raises, as it does before the first byte."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _check_kind(data: bytes) -> None:
    """Check by its content that a file is of a supported kind; raises ItemError if not."""
    start = containers.skip_tags(data)
    if recognizes(data[start : start + 64]) or data.startswith(b"OggS", start):
        return
    for place, magic, what in _OTHER_CONTENT:
        if data.startswith(magic, start + place):
            raise ItemError("unsupported", f"{what} is not supported; {_CONVERT.format('it', 'FILE')}")
    if recognizes(data[:64]):
        raise ItemError("damaged", "damaged: no sound begins where it should")
    text = ", but HTML or XML" if data[:64].lstrip().startswith(b"<") else ""
    raise ItemError("not_audio", f"not a sound file of a supported kind{text}; raw samples need a header")


def _check_limits(frames: int, rate: int, channels: int) -> None:
    if frames == 0:
        raise ItemError("empty", "there are no samples, only a header; or they cannot be read")
    if not MIN_RATE <= rate <= MAX_RATE:
        detail = f"{rate:,} samples a second; from {MIN_RATE:,} to {MAX_RATE:,} are read. Is its header wrong?"
        raise ItemError("rate", detail)
    if channels > MAX_CHANNELS:
        raise ItemError("channels", f"{channels:,} channels, at most {MAX_CHANNELS} are read. Is its header wrong?")
    seconds = frames / rate
    if seconds < MIN_SECONDS:
        raise ItemError("too_short", f"{frames:,} samples, or {1000 * seconds:.1f} ms; at least 20 ms are needed")
    if seconds > MAX_SECONDS or frames * channels > MAX_VALUES:
        length = f"{seconds / 60:,.0f} minutes of {channels} channels at {rate:,} samples a second"
        limit = f"at most {MAX_SECONDS // 60} minutes and {MAX_VALUES:,} samples of all channels are read"
        raise ItemError("too_long", f"{length}, {limit}; split it")


def decoding_memory(data: bytes) -> int:
    """Return how many bytes it takes at most to decode a recording; 0 if its header is refused."""
    try:
        with _open(data) as file:
            return len(data) + 4 * file.frames * (file.channels + 6) + 8 * (file.frames * RATE // file.samplerate)
    except ItemError:
        return 0


def item_id(recording: Recording) -> str:
    """Hash a recording by its rate and mono samples, quantised to 16 bits: BLAKE3, 32 hexadecimal digits.

    The same sound as WAV and as FLAC has the same hash; one that a lossy codec has changed has another.
    """
    digest = blake3(b"%d\n" % recording.rate)
    digest.update(np.clip(np.rint(recording.samples * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes())
    return digest.hexdigest(length=16)


def _import(name: str) -> ModuleType:
    """Import a library that only recordings need."""
    import importlib

    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        message = f"recordings need the library {name}, which is not installed; install {AUDIO_EXTRA}"
        raise UserError(message) from error
