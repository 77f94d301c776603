"""Which words of a text speak for a class: those without which its score falls.

Each word is left out once (occlusion). Gradients times inputs at the embeddings of the tokens would cost a single pass,
but the words that they put first mattered to the answers of MiniLM no more than words drawn at random.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

import numpy as np

from headstart.modalities.explaining import Explanation

MAX_PARTS = 40  # of a text, each left out once; in longer texts these are several words
LEAST = 0.05  # of the strongest evidence: what is weaker is not marked
_SINGLE = "\u0e01-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Japanese and Chinese have no spaces
_WORD = re.compile(rf"[{_SINGLE}]|[^\s{_SINGLE}]+")

Span = tuple[int, int]  # where a part of a text begins and ends


def explain(
    texts: Sequence[str],
    size: int,
    encode: Callable[[str], np.ndarray],
    scores: Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray],
    classes: np.ndarray,
) -> Explanation:
    """Mark what speaks for each class.

    Args:
        size: tokens that the network reads: words beyond that cannot matter.
        encode: turns a text into tokens.
        scores, classes: see `headstart.modalities.explaining.Evidence`.
    """
    parts = [find_parts(text, size) for text in texts]
    arrays: list[np.ndarray] = []
    rows: list[int] = []
    for row, (text, spans) in enumerate(zip(texts, parts, strict=True)):
        variants = [text, *(text[:start] + text[end:] for start, end in spans)]
        arrays += map(encode, variants)
        rows += [row] * len(variants)
    found, shown, start = scores(arrays, classes[rows]), [], 0
    for text, spans in zip(texts, parts, strict=True):
        whole, *without = found[start : start + len(spans) + 1]
        start += len(spans) + 1
        shown.append(["", *(mark(text, spans, evidence) for evidence in (whole - np.array(without)).T)])
    together = f" Of texts with more than {MAX_PARTS} words several are left out together."
    longest = max((len(spans) for spans in parts), default=0)
    legend = "The stronger a word is marked, the more the score of the class falls if the word is left out."
    return Explanation(shown, legend + together * (longest > MAX_PARTS // 2))


def find_parts(text: str, size: int) -> list[Span]:
    """Return the words among the first `size` ones, or as many of them together as make MAX_PARTS parts."""
    words = [match.span() for match in _WORD.finditer(text)][:size]
    step = -(-len(words) // MAX_PARTS)
    return [(words[at][0], words[min(at + step, len(words)) - 1][1]) for at in range(0, len(words), max(step, 1))]


def mark(text: str, spans: Sequence[Span], evidence: np.ndarray) -> str:
    """Return a text as a quotation in which the stronger parts are marked, as far as it has parts.

    Args:
        evidence: (n,), by how much a score falls without each part.
    """
    strongest, done, pieces = max(float(evidence.max()), 1e-6), 0, []
    for (start, end), value in zip(spans, evidence.tolist(), strict=True):
        word = html.escape(text[start:end])
        if value >= LEAST * strongest:
            strength = round(100 * value / strongest)
            word = f'<mark style="--s:{strength}%" title="{value:.2f}">{word}</mark>'
        pieces += [html.escape(text[done:start]), word]
        done = end
    more = "\N{HORIZONTAL ELLIPSIS}" if text[done:].strip() else ""
    return f'<blockquote dir="auto">{"".join(pieces)}{more}</blockquote>'
