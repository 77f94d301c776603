"""Real English that every installation has: docstrings of the packages in requirements.lock; none is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

_OWNERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_TESTS = re.compile(r"(^|/)(tests?|testing|conftest\.py|_vendor|vendored?|third_party|externals?)(/|$)")


def docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of modules, classes and functions of an installed package, but of its tests, in order."""
    distribution = importlib.metadata.distribution(package)
    for file in sorted(str(one) for one in distribution.files or [] if one.suffix == ".py"):
        if _TESTS.search(file):
            continue
        try:
            source = Path(str(distribution.locate_file(file))).read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in texts of others
                tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, _OWNERS) and (text := ast.get_docstring(node, clean=False)):
                yield inspect.cleandoc(text)


def paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of a docstring that are prose, each in a line."""
    found = (" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring))
    return [text for text in found if is_prose(text)]


def is_prose(text: str) -> bool:
    """Whether a paragraph is mostly words of lower case: no signature, table or listing."""
    words = text.split()
    plain = sum(word.strip(".,;:()'\"").isalpha() for word in words)
    return (
        len(words) >= 5 and len(text) <= 600 and plain >= 0.7 * len(words) and not text.startswith((">>>", "..", ":"))
    )
