"""Make data/docstrings.csv: text,label from the docstrings of installed packages; the label is the library.

A text is the first paragraph of a docstring. Names of the libraries are masked, since they would give the label away,
and a text that stands in two libraries is left out. The same packages give the same bytes; Git ignores the file.
Command: python data/make_docstrings.py
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pretraining.docstrings import docstrings, paragraphs

CSV = Path(__file__).parent / "docstrings.csv"
AT_MOST = 250  # texts of a library
MASK = "LIBRARY"
# The words by which each of them is known.
NAMES = {
    "aiohttp": ["aiohttp"],
    "fsspec": ["fsspec"],
    "hypothesis": ["hypothesis"],
    "jinja2": ["jinja", "jinja2"],
    "keras": ["keras"],
    "matplotlib": ["matplotlib", "mpl", "mpl_toolkits", "pyplot", "plt"],
    "mlflow": ["mlflow"],
    "networkx": ["networkx", "nx"],
    "numpy": ["numpy", "np"],
    "pandas": ["pandas", "pd"],
    "pillow": ["pillow", "pil"],
    "pydantic": ["pydantic", "pydantic_core"],
    "scikit-learn": ["scikit-learn", "scikit", "sklearn"],
    "scipy": ["scipy"],
    "sqlalchemy": ["sqlalchemy"],
    "tensorflow": ["tensorflow", "tf"],
}
_WORDS = sorted((name for names in NAMES.values() for name in names), key=len, reverse=True)
_NAME = re.compile(rf"(?<![a-z0-9])({'|'.join(_WORDS)})(?![a-z0-9])", re.I)


def collect() -> list[tuple[str, str]]:
    """Return text and label of each example, sorted by label."""
    found: dict[str, list[str]] = {}
    libraries_of: dict[str, set[str]] = defaultdict(set)
    for library in sorted(NAMES):
        first = (paragraphs(docstring)[:1] for docstring in docstrings(library))
        texts = {_NAME.sub(MASK, text) for some in first for text in some}
        found[library] = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
        for text in texts:
            libraries_of[text.casefold()].add(library)
    rows = []
    for library, texts in found.items():
        unique = [text for text in texts if len(libraries_of[text.casefold()]) == 1]
        rows += [(text, library) for text in sorted(unique[:AT_MOST])]
    return rows


def make(file: Path) -> None:
    """Write the table."""
    partial = file.with_name(f".{file.stem}.partial{file.suffix}")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("text", "label"), *collect()])
    os.replace(partial, file)


if __name__ == "__main__":
    make(CSV)
