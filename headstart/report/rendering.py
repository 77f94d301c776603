"""What both pages have in common: one HTML file without network access or scripts, every value escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from headstart.errors import UserError


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


def read_json(file: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        UserError: if the file holds something else.
    """
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); run `dvc checkout --force {file}` or `dvc repro`") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a JSON object; run `dvc checkout --force {file}` or `dvc repro`")
    return values
