"""Figures of a text: its length, its script, and what else is worth knowing; and what to say of those of a data set."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from headstart.data.encodings import WINDOWS
from headstart.modalities.text.decode import CONTROL, DecodedText

if TYPE_CHECKING:
    import pandas as pd

SCRIPTS = (
    *("none", "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali", "Gurmukhi", "Gujarati"),
    *("Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Myanmar", "Khmer", "Georgian", "Armenian"),
    *("Ethiopic", "Hangul", "Japanese", "Han", "other"),
)
READ_TOKENS = 128  # by a model, unless extract.size says otherwise; a word is a token or more
_PLACES = {name.upper(): place for place, name in enumerate(SCRIPTS)}
_PLACES |= {"CJK": SCRIPTS.index("Han"), "HIRAGANA": SCRIPTS.index("Japanese"), "KATAKANA": SCRIPTS.index("Japanese")}
_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_HTML = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,15}(?:\s[^<>]{0,500})?/?>|&(?:amp|lt|gt|quot|nbsp|#\d{2,6});")


def measure(text: DecodedText) -> dict[str, float]:
    """Return characters, words, script (its place in SCRIPTS), and 1 or 0 for long, html, control and windows.

    They say that a text has READ_TOKENS or more, holds tags or entities, holds control characters, was read as
    Windows-1252. In most models an ideograph is a token; others have a word or more.
    """
    words = len(text.split())
    return {
        "characters": len(text),
        "words": words,
        "long": int(max(words, len(_IDEOGRAPH.findall(text))) > READ_TOKENS - 2),
        "script": script(text),
        "html": int(bool(_HTML.search(text))),
        "control": int(bool(CONTROL.search(text))),
        "windows": int(text.codec == WINDOWS),
    }


def script(text: str) -> int:
    """Return the place in SCRIPTS of the script that most letters are of; kana anywhere make a text Japanese."""
    if text.isascii():
        return int(bool(re.search("[A-Za-z]", text)))
    counts: Counter[int] = Counter()
    for character, count in Counter(text).items():
        counts[_script_of(character)] += count
    counts.pop(0, None)
    if counts[SCRIPTS.index("Japanese")]:
        return SCRIPTS.index("Japanese")
    return max(counts, key=lambda place: counts[place], default=0)


@lru_cache(2**16)
def _script_of(character: str) -> int:
    """Return the place in SCRIPTS by the name of a letter; 0 if it is none."""
    if not character.isalpha():
        return 0
    return _PLACES.get(unicodedata.name(character, "").split(" ")[0], len(SCRIPTS) - 1)


def remarks(examples: pd.DataFrame) -> list[str]:
    """Return what to print about the texts that are used, a line each."""
    count = len(examples)
    found = [
        (examples.html.sum(), "hold HTML tags or entities, which stay as they are"),
        (examples.control.sum(), "hold control characters, which tokenizers drop"),
        (examples.windows.sum(), "are not UTF-8, and were read as Windows-1252 (Latin-1)"),
        (examples.long.sum(), f"are so long that a model which reads {READ_TOKENS} tokens sees their beginning only"),
    ]
    lines = [f"{number:,.0f} of {count:,} texts {what}" for number, what in found if number]
    names = scripts(examples).value_counts()
    if len(names) > 1:
        lines.append("scripts: " + ", ".join(f"{number:,} {name}" for name, number in names.items()))
    return lines


def scripts(examples: pd.DataFrame) -> pd.Series:
    """Return the name of the script of each text."""
    return examples.script.astype(int).map(dict(enumerate(SCRIPTS)))
