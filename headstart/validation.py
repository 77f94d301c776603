"""Files of keys and values, checked against types, with a message a mistake that names file, key, rule and value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from headstart.errors import UserError, did_you_mean

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class Section(BaseModel):
    """Keys with their types; no others are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Checked = TypeVar("Checked", bound=Section)


def within(kind: type[int] | type[float], interval: str, optional: bool = False) -> BeforeValidator:
    """A check that a value is a finite number of `kind` in `interval`, e.g. `[0, 1)`; None passes where `optional`.

    `1e-4`, which YAML 1.1 reads as text and DVC as a number, passes as the number; other texts do not, nor do true and
    false as 1 and 0.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    noun = "an integer in" if kind is int else "in"
    rule = f"{noun} {interval}" + (" or null" if optional else "")

    def check(value: Any) -> Any:
        if value is None and optional:
            return None
        try:
            readable = isinstance(value, (int, float)) or (isinstance(value, str) and _EXPONENT.fullmatch(value))
            number = kind(float(value)) if readable else None
        except (ValueError, OverflowError):
            number = None
        if number is None or isinstance(value, bool) or number != float(value):
            raise ValueError(rule)
        above = number > low if interval[0] == "(" else number >= low
        below = number < high if interval[-1] == ")" else number <= high
        if not (above and below):
            raise ValueError(rule)
        return number

    return BeforeValidator(check)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The keys and values of a YAML file.

    Raises:
        UserError: where it cannot be read, or holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run from the folder that holds {path.name}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> dict[Any, Any]:
    """As `read_yaml`, of the content of a file that messages call `path`."""
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter for a date that the calendar has not
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold keys and values, got {type(raw).__name__}")
    return raw


def check(section: type[Checked], raw: dict[Any, Any], path: Path, declared: str) -> Checked:
    """The typed form of what stands in `path`.

    Args:
        declared: the module that declares the keys.

    Raises:
        UserError: with a line for everything that is wrong.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(section, path, declared, detail) for detail in error.errors()]
        raise UserError("\n".join(lines)) from error


def _explain(section: type[Section], path: Path, declared: str, detail: ErrorDetails) -> str:
    """One line for one of pydantic's findings: file, key, rule, value."""
    location = list(detail["loc"])
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if detail["type"] == "extra_forbidden":
        known = _inner(section, location[:-1]).model_fields
        advice = did_you_mean(str(location[-1]), known) or f"; remove it, or declare it in {declared}"
        return f"{path}: {key} is not a known key{advice}"
    if detail["type"] == "missing":
        return f"{path}: {key} is missing; add it, the comments of the committed {path.name} give its range"
    value = (
        "" if detail["type"] == "value_error" and isinstance(detail["input"], dict) else (f", got {detail['input']!r}")
    )
    what = rule(detail)
    if "null" not in what and _optional(section, location):
        what += ", or null"
    return f"{path}: {key} must be {what}{value}"


def rule(detail: ErrorDetails) -> str:
    """What a value must be, by one of pydantic's findings."""
    return {
        "value_error": lambda: str(detail["ctx"]["error"]),
        "literal_error": lambda: f"one of {detail['ctx']['expected']}",
        "bool_type": lambda: "true or false",
        "list_type": lambda: (
            "a list of values" if "search" in detail["loc"] else "a list of integers, e.g. [128], or null"
        ),
        "dict_type": lambda: "a section of keys with lists of values, e.g. {dropout: [0, 0.5]}, or {}",
        "model_type": lambda: "a section with keys of its own",
    }.get(detail["type"], lambda: "a text, not empty")()


def _optional(section: type[BaseModel], location: list[Any]) -> bool:
    """Whether null is a value of the key at `location`; False within lists and free keys."""
    try:
        return type(None) in get_args(_inner(section, location))
    except (AttributeError, KeyError):
        return False


def _inner(section: type[BaseModel], location: list[Any]) -> type[BaseModel]:
    """The section at `location` in another one."""
    found: Any = section
    for part in location:
        found = found.model_fields[part].annotation
    return found
