"""Check that a sound file is whole. libsndfile reads one that was cut off as a shorter one, and says nothing."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from headstart.errors import ItemError

W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
NIST = b"NIST_1A\n"
_NIST_SIZES = (b"sample_count", b"channel_count", b"sample_n_bytes")
UNKNOWN_SIZE = 0x7FFF0000  # bytes; a header written before the samples, to a pipe, promises that many or more
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # what begins a FLAC file
_ZEROS = re.compile(rb"\0*")
_OGG_VIDEO = (b"\x80theora", b"BBCD\0")
_SPEEX = b"Speex   "
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Chunked(NamedTuple):
    """How a format lays out its chunks."""

    first: int  # byte where chunks begin
    name: int  # bytes of a chunk's name
    size: int  # bytes of its size
    order: str
    alignment: int
    samples: bytes  # name of the chunk with the samples


_WAVE = _Chunked(12, 4, 4, "little", 2, b"data")
_CHUNKED = {
    b"RIFF": _WAVE,
    b"RF64": _WAVE,
    b"RIFX": _WAVE._replace(order="big"),
    b"FORM": _WAVE._replace(order="big", samples=b"SSND"),
    W64[:4]: _Chunked(40, 16, 8, "little", 8, b"data"),
}


def sound_bytes(data: bytes) -> bytes:
    """Return what is to be decoded of a sound file: all of it, or what libsndfile takes for samples and are some.

    Raises:
        ItemError: truncated; several, if recordings stand one after the other, of which only the first would be read;
            unsupported; damaged.
    """
    data = data[skip_tags(data) :]  # places in files are counted from where the sound begins
    magic = data[:4]
    if magic in _CHUNKED:
        end = _check_chunks(data, _CHUNKED[magic])
        return data[:end] if magic == W64[:4] else data  # chunks behind the samples would be heard
    elif magic == b".snd":
        _check_au(data)
    elif magic == NIST[:4]:
        return _check_nist(data)
    elif magic == b"fLaC":
        return _check_flac(data)
    elif magic == b"OggS":
        _check_ogg(data)
    elif is_mpeg_frame(magic):
        return _mpeg_frames(data)
    return data


def skip_tags(data: bytes) -> int:
    """Return where the sound begins behind ID3 tags, and the zeros that may follow them."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size + 10 * bool(data[start + 5] & 0x10)  # with a footer
    zeros = _ZEROS.match(data, start) if start else None
    return zeros.end() if zeros else start


def _check_chunks(data: bytes, layout: _Chunked) -> int:
    """Return where the samples end."""
    end = len(data)
    for name, start, size in _chunks(data, layout):
        if name == data[: layout.name]:
            raise _several()
        if name[:4] == layout.samples and size < UNKNOWN_SIZE:
            end = start + size
            if end > len(data):
                raise _truncated(size, len(data) - start)
    return end


def _chunks(data: bytes, layout: _Chunked) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and size of each chunk; a second file behind the first is a chunk too."""
    place, header, long_size = layout.first, layout.name + layout.size, None
    while place + header <= len(data):
        name = data[place : place + layout.name]
        size = int.from_bytes(data[place + layout.name : place + header], layout.order)  # type: ignore[arg-type]
        if layout.size == 8:  # of W64, which counts the header
            size -= header
        if name == b"ds64":  # of RF64: sizes that take more than 32 bits
            long_size = int.from_bytes(data[place + 16 : place + 24], "little")
        elif name == layout.samples and size == 0xFFFFFFFF and long_size is not None:
            size = long_size
        yield name, place + header, size
        place += header + max(0, size)
        place += -place % layout.alignment


def _check_au(data: bytes) -> None:
    start, size = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
    if size >= UNKNOWN_SIZE:
        return
    if start + size > len(data):
        raise _truncated(size, len(data) - start)
    if data[start + size :].startswith(b".snd"):
        raise _several()


def _check_nist(data: bytes) -> bytes:
    if b"embedded-" in data[:1024]:
        raise ItemError("unsupported", "SPHERE compressed by shorten; convert it: sph2pipe -f wav FILE.sph FILE.wav")
    found = [re.search(rb"%s -i (\d{1,12})" % key, data[:1024]) for key in _NIST_SIZES]
    start, size = int(data[8:16]) if data[8:16].strip().isdigit() else 0, 1
    if not start or not all(found):
        return data
    for number in found:
        size *= int(number[1]) if number else 0
    if start + size > len(data):
        raise _truncated(size, len(data) - start)
    if data[start + size :].startswith(NIST):
        raise _several()
    return data[: start + size]


def _check_flac(data: bytes) -> bytes:
    if _FLAC.match(data) and not int.from_bytes(data[21:26], "big") & 0xFFFFFFFFF:
        detail = "FLAC that does not say how long it is, as programs write it to a pipe; write it anew"
        raise ItemError("unsupported", f"{detail} (ffmpeg -i in.flac out.flac)")
    if _FLAC.search(data, 4):
        raise _several()
    return data


def _check_ogg(data: bytes) -> None:
    place, began, unfinished = 0, False, False
    numbers: dict[bytes, int] = {}  # of the last page, by stream
    while data[place : place + 4] == b"OggS":
        page, place = place, place + 27
        header = data[page:place]
        lacing = data[place : place + header[-1]] if len(header) == 27 else b""
        start = place + len(lacing)
        place = start + sum(lacing)
        if len(header) < 27 or len(lacing) < header[-1] or place > len(data):
            raise ItemError("truncated", "cut off in the middle of a page of Ogg")
        first = header[5] & 2  # page of a stream
        if first and began:
            raise _several()
        if first and data[start:place].startswith(_OGG_VIDEO):
            raise ItemError("unsupported", "a video; convert its sound to FLAC (ffmpeg -i in.ogv -vn out.flac)")
        if first and data.startswith(_SPEEX, start):
            raise ItemError("unsupported", "Speex is not supported; convert it to FLAC (ffmpeg -i in.spx out.flac)")
        began |= not first
        if _ogg_checksum(header[:22] + bytes(4) + data[page + 26 : place]) != header[22:26]:
            raise ItemError("damaged", f"damaged: the page of Ogg at byte {page:,} has another checksum")
        number = int.from_bytes(header[18:22], "little")
        if numbers.get(header[14:18], number - 1) != number - 1:
            raise ItemError("damaged", f"damaged: pages of Ogg are missing at byte {page:,}")
        numbers[header[14:18]] = number
        unfinished = lacing.endswith(b"\xff")
    if b"OggS" in data[place:]:
        raise ItemError("damaged", f"damaged: no page of Ogg begins at byte {place:,}")
    if unfinished or not began or (place < len(data) and b"OggS".startswith(data[place:])):
        raise ItemError("truncated", "cut off: its last page of Ogg is not complete")


def _ogg_checksum(page: bytes) -> bytes:
    """Return the CRC of a page: that of zlib with all bits in reverse order, and without its inversions."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED)


_MPEG_RATES = (44100, 48000, 32000)
_MPEG_BITRATES = {  # kbit/s, by version 1 and layer
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def is_mpeg_frame(head: bytes) -> bool:
    """Whether four bytes can begin a frame of MP3 or MP2: not text, not UTF-16, not JPEG, not AAC."""
    return _frame_size(head) > 0


def _frame_size(head: bytes) -> int:
    """Return the bytes of a frame of layer 2 or 3 by its header; 0 if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # version 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer not in (2, 3) or bitrate in (0, 15) or rate == 3 or head[3] & 3 == 2:
        return 0
    samples = 144 if version == 3 or layer == 2 else 72  # in bytes at one bit each
    kilobits = _MPEG_BITRATES[version == 3, layer][bitrate]
    return samples * 1000 * kilobits // (_MPEG_RATES[rate] >> (3 - version if version else 2)) + padding


def _stream_kind(head: bytes) -> tuple[int, int]:
    """Return version and layer, and the rate, of a frame: equal in all frames of a recording."""
    return head[1] & 0x1E, head[2] & 0x0C


def _mpeg_frames(data: bytes) -> bytes:
    """Return the frames of an MP3; raises ItemError if one is incomplete, or if they are fewer than it says."""
    place, count, kind = 0, 0, _stream_kind(data[:4])
    while (size := _frame_size(head := data[place : place + 4])) and _stream_kind(head) == kind:
        place, count = place + size, count + 1
    if place > len(data):
        raise ItemError("truncated", "cut off in the middle of a frame of MP3")
    if count < 3:
        raise ItemError("too_short", f"an MP3 of {count} frames")
    tail = data[place:]
    after = skip_tags(tail)
    if is_mpeg_frame(tail[after : after + 4]):
        raise _several()
    if any(is_mpeg_frame(tail[at : at + 4]) and _is_followed(tail, at) for at in _syncs(tail)):
        raise ItemError("damaged", f"damaged: no frame of MP3 begins at byte {place:,}")
    return _check_info(data[:place], count)


def _syncs(tail: bytes) -> Iterator[int]:
    return (found.start() for found in re.finditer(rb"\xff[\xe2-\xff]", tail))


def _is_followed(data: bytes, place: int) -> bool:
    """Whether another frame of the same kind follows the one that seems to begin at `place`."""
    following = place + _frame_size(data[place : place + 4])
    return data[place : place + 2] == data[following : following + 2] and is_mpeg_frame(data[following : following + 4])


def _check_info(frames: bytes, count: int) -> bytes:
    """Check the number of frames that the first one may give instead of sound, and correct the bytes that it gives.

    libsndfile would print a warning about these.
    """
    is_mono, is_first_version = frames[3] >> 6 == 3, frames[1] >> 3 & 3 == 3
    place = 4 + ((17 if is_mono else 32) if is_first_version else (9 if is_mono else 17))
    place += 2 * (not frames[1] & 1)  # a checksum
    if frames[place : place + 4] not in (b"Xing", b"Info"):
        return frames
    flags, place = frames[place + 7], place + 8
    if flags & 1:
        promised, place = int.from_bytes(frames[place : place + 4], "big"), place + 4
        if promised > count:
            detail = f"it says that it has {promised:,} frames of MP3, and has {count - 1:,}"
            raise ItemError("truncated", f"cut off: {detail}")
        if promised + 1 < count:
            raise _several()
    size = len(frames).to_bytes(4, "big")
    if not flags & 2 or frames[place : place + 4] == size:
        return frames
    return frames[:place] + size + frames[place + 4 :]


def _truncated(promised: int, there: int) -> ItemError:
    shown = f"{promised:,} bytes of samples are promised, {max(0, there):,} are there"
    return ItemError("truncated", f"cut off: {shown}")


def _several() -> ItemError:
    return ItemError("several", "several recordings one after the other, of which programs read the first; split it")
