"""What both pages have in common: one HTML file without network access or scripts, every value escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from headstart import paths
from headstart.errors import ItemError
from headstart.evaluation.results import naming, parse_figures
from headstart.modalities import Modality

NOT_THERE = Markup('<span class="none">not available</span>')

Read = Callable[[str], bytes]


def render(template: str, **values: Any) -> str:
    """Render a file of templates/; all `values` are escaped except `Markup`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
    environment.filters["prose"] = lambda text: Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))
    environment.filters["plain"] = lambda value: value if isinstance(value, str) else json.dumps(value)
    return environment.get_template(template).render(values)


def thumbnails(read: Read, modality: Modality) -> Callable[[str], Markup]:
    """Return what shows a file by its path as HTML: a picture, a quotation or a player, or a note that there is none.

    Args:
        read: returns the bytes of a file, or raises ItemError.
    """

    @cache
    def show(path: str) -> Markup:
        try:
            return Markup(modality.show(read(path))) or NOT_THERE
        except ItemError:
            return NOT_THERE

    return show


def read_report(stage: str) -> dict[str, Any]:
    """Read reports/STAGE.json.

    Raises:
        UserError: if it holds something else.
    """
    file = paths.report(stage)
    return parse_figures(file.read_bytes(), str(file))


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV file of figures.

    Raises:
        UserError: if it holds something else.
    """
    with naming(str(file)):
        return pd.read_csv(file).astype(float)
