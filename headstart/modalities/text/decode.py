"""Decode texts, and say what makes two of them the same. No TensorFlow."""

from __future__ import annotations

import contextlib
import re
import unicodedata

from blake3 import blake3

from headstart.data.encodings import decode_text
from headstart.errors import ItemError

SUFFIXES = (".txt", ".text")
_CONVERT = "save them as plain text (.txt)"
UNSUPPORTED = dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".pages"), _CONVERT)
# Text by their content, but tables, settings and code: not meant as examples.
_OTHERS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini", ".py", ".sh", ".md")
MAX_CHARACTERS = 250_000  # a novel has about twice as many
# Control characters beyond tabs and line breaks; tokenizers drop them.
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
MAX_BYTES = 4  # of a character
MOST_CONTROL = 0.05  # share of the characters from which on it is no text


class DecodedText(str):
    """A text, and the codec that has read it."""

    codec: str


def decode(data: bytes) -> DecodedText:
    """Decode a text as it is, without spaces around it.

    Raises:
        ItemError: empty; encoding, see `headstart.data.encodings`; not_text, if it holds zero bytes or many control
            characters; too_long.
    """
    found, codec = decode_text(data)
    if "\0" in found:
        raise ItemError("not_text", "it holds zero bytes: not a text, or UTF-16 without a byte order mark")
    text = DecodedText(found.strip().strip("\ufeff"))
    text.codec = codec
    if not text:
        raise ItemError("empty", "there is no text")
    _check_length(text)
    if len(CONTROL.findall(text)) > 1 + MOST_CONTROL * len(text):
        raise ItemError("not_text", "more than a twentieth of it is control characters")
    return text


def encode(text: str) -> bytes:
    """Return the bytes of a text that is given as such.

    Raises:
        ItemError: too_long; not_text, if it holds zero bytes; encoding, if it holds half of a pair of surrogates.
    """
    _check_length(text)
    if "\0" in text:
        raise ItemError("not_text", "it holds zero bytes")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ItemError("encoding", f"character {error.start + 1:,} is half of a pair of surrogates") from error


def _check_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        detail = f"{len(text):,} characters, at most {MAX_CHARACTERS:,} are read; split it"
        raise ItemError("too_long", f"{detail} (in a table: is a quote not closed?)")


def recognizes(head: bytes, suffix: str) -> bool:
    """Whether a file that begins with `head` is a text by its content, and no table, settings or code by its name."""
    if suffix in UNSUPPORTED or suffix in _OTHERS:
        return False
    for cut in range(MAX_BYTES):  # it may end in the middle of a character
        with contextlib.suppress(ItemError):
            decode(head[: len(head) - cut])
            return True
    return False


def normalize(text: str) -> str:
    """Return a text without differences that a reader does not see: Unicode forms, upper and lower case, spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def item_id(text: str) -> str:
    """Hash a text, normalized: BLAKE3, 32 hexadecimal digits."""
    return blake3(normalize(text).encode("utf-8", "surrogatepass")).hexdigest(length=16)
