"""Tell the encodings of texts apart: UTF-8, UTF-16 and Windows-1252, of which Latin-1 is a part.

The rule, in this order:

1. A byte order mark decides: UTF-8, UTF-16 or UTF-32. What lacks it and has many zero bytes is refused.
2. What is valid UTF-8 is UTF-8.
3. What holds hardly any valid sequences of UTF-8 beyond ASCII, has only bytes that Windows-1252 defines, never four of
   them above 127 in a row (one run in a hundred at most), and few of the signs RARE, is Windows-1252: words of Western
   languages mix accents with plain letters, those of other encodings consist of bytes above 127 or begin with such.
4. Anything else is refused: another encoding, or two in one file.
"""

from __future__ import annotations

import codecs
import re

from headstart.errors import ItemError

WINDOWS = "cp1252"
ADVICE = "save it as UTF-8"
_MARKS = (  # UTF-32 before UTF-16, whose mark is the beginning of its own
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ZIP = b"PK\3\4"
RARE = rb"[\x82\x83\x86-\x89\x98]"  # daggers, carets and the like; with them begin syllables in Shift-JIS
MOST_RARE = 10  # one byte above 127 in so many may be such a sign, or valid UTF-8 by accident
_RUN = re.compile(rb"[\x80-\xff]+")
_LONG_RUN = 4  # bytes
_FEW = 100  # one in so many is an accident
MOST_ZEROS = 10  # one byte in so many
_ACCIDENT = re.compile(rb"[\xc4-\xdf][\x85\x91-\x97\xab\xbb]")  # a capital or a sharp s before a quote
_SURROGATES = re.compile("[\udc80-\udcff]")
_BEYOND_ASCII = re.compile("[\x80-\U0010ffff]")


def find_encoding(data: bytes) -> str:
    """Return the name of the codec that reads `data` by the rule above; `utf-8` also for a mix of it with others.

    Raises:
        ItemError: encoding, if there is none.
    """
    for mark, codec in _MARKS:
        if data.startswith(mark):
            return codec
    if data.startswith(_ZIP):
        raise ItemError("encoding", "it is a ZIP archive or a file of an office program; save its text")
    if data.count(b"\0") * MOST_ZEROS > len(data):
        raise ItemError("encoding", f"it looks like UTF-16, but has no byte order mark; {ADVICE}")
    try:
        data.decode()
        return "utf-8"
    except UnicodeDecodeError:
        pass
    lenient = data.decode("utf-8", "surrogateescape")
    stray = len(_SURROGATES.findall(lenient))
    valid = len(_BEYOND_ASCII.findall(lenient)) - stray - len(_ACCIDENT.findall(data))
    if valid > stray:
        return "utf-8"
    runs = _RUN.findall(data)
    long = sum(len(run) >= _LONG_RUN for run in runs)
    rare = len(re.findall(RARE, data))
    if valid * MOST_RARE <= stray and long * _FEW <= len(runs) and rare * MOST_RARE <= sum(map(len, runs)):
        try:
            data.decode(WINDOWS)
            return WINDOWS
        except UnicodeDecodeError:
            pass
    raise ItemError("encoding", f"neither UTF-8 nor UTF-16 nor Windows-1252 (Latin-1), or a mix of them; {ADVICE}")


def decode_text(data: bytes) -> tuple[str, str]:
    """Return a text and the codec that has read it.

    Raises:
        ItemError: encoding, if the rule refuses it.
    """
    codec = find_encoding(data)
    try:
        return data.decode(codec), codec
    except UnicodeDecodeError as error:
        name = codec.removesuffix("-sig").upper()
        raise ItemError("encoding", f"byte {error.start + 1:,} is not {name}, others are; {ADVICE}") from error
