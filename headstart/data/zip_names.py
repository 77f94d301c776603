"""Names in a .zip that does not say how they are encoded: some programs write UTF-8 so, or a country's code page."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Sequence
from zipfile import ZipInfo

UTF8_FLAG = 0x800
_PUNCTUATION = "（）【】「」・、。～！？＿－　"  # noqa: RUF001  usual in Japanese names


def decoded_names(infos: Sequence[ZipInfo]) -> list[str]:
    """Return the name of each member.

    Names without a mark of their encoding, which Python reads as code page 437, are read as UTF-8 or as code page 932
    (Windows in Japan) if all of them can be, for 932 if that gives Japanese text, too.
    """
    unmarked = [info.orig_filename for info in infos if not info.flag_bits & UTF8_FLAG]
    unmarked = [name for name in unmarked if not name.isascii()]
    for encoding in ("utf-8", "cp932"):
        with contextlib.suppress(UnicodeError):
            found = {name: name.encode("cp437").decode(encoding) for name in unmarked}
            if encoding == "utf-8" or _is_japanese(found.values()):
                return [found.get(info.orig_filename, info.orig_filename) for info in infos]
    return [info.orig_filename for info in infos]


def _is_japanese(names: Iterable[str]) -> bool:
    """Whether most characters beyond ASCII are kana or kanji beside no ASCII letter; misread, `schön` has one there."""
    score = 0
    for name in names:
        for before, letter, after in zip(f" {name[:-1]}", name, f"{name[1:]} ", strict=True):
            if letter.isascii() or letter in _PUNCTUATION:
                continue
            is_kana_or_kanji = unicodedata.category(letter) in ("Lo", "Lm")
            touches = any(other.isascii() and other.isalpha() for other in (before, after))
            score += 1 if is_kana_or_kanji and not touches else -1
    return score > 0
