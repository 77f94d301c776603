"""Find labels that stand in the texts of their own class: a leak, if whoever labelled the texts has put them there."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

from headstart.errors import ItemError, readable
from headstart.modalities.text.decode import decode, normalize

if TYPE_CHECKING:
    import pandas as pd

LOOKED_AT = 20_000  # texts, drawn by their hashes
SHARE, TIMES = 0.1, 3  # of the texts of a class that name it, and how much more often than others do
FEWEST = 3  # texts of a class
SHORTEST = 3  # letters of a label
MAX_SHOWN = 3  # classes in the message
_WORDS = re.compile(r"[^\W_]+")


def find_leaks(examples: pd.DataFrame, read: Callable[[str], bytes]) -> list[str]:
    """Return a line if the texts of some classes name their label far more often than others do.

    Args:
        examples: path, label and item_id.
        read: returns the bytes of an example.
    """
    labels = {label: tuple(_WORDS.findall(normalize(label))) for label in examples.label.unique()}
    by_word: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for label, words in labels.items():
        if len("".join(words)) >= SHORTEST and not "".join(words).isdecimal():
            by_word[words[0]].append((label, words))
    sample = examples.sort_values("item_id").head(LOOKED_AT)
    counts = Counter(sample.label)
    own: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for path, label in zip(sample.path, sample.label, strict=True) if by_word else ():
        try:
            words = tuple(_WORDS.findall(normalize(decode(read(path)))))
        except ItemError:  # it has changed since it was inspected
            continue
        named = {
            name
            for place, word in enumerate(words)
            for name, wanted in by_word.get(word, ())
            if words[place : place + len(wanted)] == wanted
        }
        own.update(named & {label})
        other.update(named - {label})
    leaks = []
    for label, number in own.items():
        share, elsewhere = number / counts[label], other[label] / max(1, len(sample) - counts[label])
        if number >= FEWEST and share >= SHARE and share >= TIMES * elsewhere:
            leaks.append((share, elsewhere, label))
    if not leaks:
        return []
    leaks.sort(reverse=True)
    shown = ", ".join(
        f"{readable(label)} in {100 * share:.0f} % of its texts and {100 * elsewhere:.1f} % of others"
        for share, elsewhere, label in leaks[:MAX_SHOWN]
    )
    return [
        f"the texts of {len(leaks)} of {len(labels)} classes name their own label: {shown}. If whoever labelled them "
        "put it there, it is a leak: mask it"
    ]
