"""Decode texts, and say what makes two of them the same. No TensorFlow."""

from __future__ import annotations

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
    if len(text) > MAX_CHARACTERS:
        detail = f"{len(text):,} characters, at most {MAX_CHARACTERS:,} are read; split it"
        raise ItemError("too_long", f"{detail} (in a table: is a quote not closed?)")
    if len(CONTROL.findall(text)) > 1 + MOST_CONTROL * len(text):
        raise ItemError("not_text", "more than a twentieth of it is control characters")
    return text


def recognizes(head: bytes, suffix: str) -> bool:
    """Whether a file that begins with `head` is a text by its content, and no table, settings or code by its name."""
    if suffix in UNSUPPORTED or suffix in _OTHERS:
        return False
    try:
        decode(head[: head.rfind(b" ")] if b" " in head else head)  # not in the middle of a character
        return True
    except ItemError:
        return False


def normalize(text: str) -> str:
    """Return a text without differences that a reader does not see: Unicode forms, upper and lower case, spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def item_id(text: str) -> str:
    """Hash a text, normalized: BLAKE3, 32 hexadecimal digits."""
    return blake3(normalize(text).encode("utf-8", "surrogatepass")).hexdigest(length=16)
