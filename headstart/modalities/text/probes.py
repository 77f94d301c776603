"""Known texts, by which a change of tokenizing is noticed."""

from __future__ import annotations

SENTENCES = (
    "The card that I ordered two weeks ago has not arrived yet. What can I do about it?",
    "ok",
    "Return the indices that would sort an array along its last axis; NaN values come last.",
    "Übergrößenträger façade naïve coöperate — “quoted”, 50 % of £3.99 (≈ 4,50 €) at 10:30!",
    "UPPER lower MiXeD http://example.org/a_b?c=d#e user@example.org #tag 0x1F x[i] += y**2",
    "日本語 и русский, العربية, हिन्दी, ελληνικά; 👍🏽 e\u0301 \u200b\ufeff \t\n two  spaces",
    "<p>Some <b>HTML</b> &amp; entities</p>",
    ":-)",
    "supercalifragilisticexpialidocious antidisestablishmentarianism " * 3,
)


def texts(size: int) -> list[bytes]:
    """Return texts of many kinds, the first of them longer than `size` tokens and the second one a word."""
    long = " ".join([SENTENCES[0]] * (size // 16 + 1))
    return [text.encode() for text in (long, *SENTENCES[1:], SENTENCES[0])]
