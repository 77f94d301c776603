"""Files of keys and values, checked against pydantic models; each error names file, key, rule and value."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from headstart.errors import UserError, did_you_mean

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class Section(BaseModel):
    """Keys with their types, each described by the string below it; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class Rule:
    """The rule in words, for a type whose validator or constraints do not say it well."""

    text: str


def read_number(value: Any) -> Any:
    """Read `1e-4`, which is text to YAML 1.1 and a number to DVC, and whole floats such as 1e3 as integers."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, Strict(), BeforeValidator(read_number)]
Float = Annotated[float, Strict(), AllowInfNan(False), BeforeValidator(read_number)]


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read the keys and values of a YAML file.

    Raises:
        UserError: if it cannot be read, or holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run from the folder that holds {path.name}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return parse_yaml(text, path)


class _UniqueKeysLoader(yaml.SafeLoader):
    """Refuses a key that appears twice, as DVC does; YAML itself would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):  # no key of ours; refused later
                continue
            if key.value in keys:
                problem = f"the key {key.value!r} appears twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, path: Path) -> dict[Any, Any]:
    """Read the content of a YAML file that messages call `path`; raises as `read_yaml`."""
    restore = f"restore the file with `git checkout HEAD -- {path}`"
    try:
        raw = yaml.load(text, _UniqueKeysLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {reason}; correct that, or {restore}") from error
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else type(raw).__name__
        raise UserError(f"{path}: must hold keys and values such as `seed: 1`, got {found}; {restore}")
    return raw


def check(
    section: type[AnySection], raw: dict[Any, Any], path: Path, declared: str, renamed: Mapping[str, str] | None = None
) -> AnySection:
    """Return the typed form of the keys and values in `path`.

    Args:
        declared: the module that declares the keys.
        renamed: old keys and their new names, with dots.

    Raises:
        UserError: with a line for each mistake.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = []
        for key, problem, detail in problems(section, error):
            if detail["type"] in ("extra_forbidden", "invalid_key"):
                problem = _explain_unknown(section, key, detail, declared, renamed or {})
            elif detail["type"] == "missing":
                problem = f"is missing; add it as in the committed {path.name}"
            lines.append(f"{path}: {key} {problem}")
        raise UserError("\n".join(lines)) from error


def problems(section: type[BaseModel], error: ValidationError) -> Iterator[tuple[str, str, ErrorDetails]]:
    """Yield the dotted key of each mistake, what is wrong with its value, and pydantic's details; a key only once."""
    seen = set()
    for detail in error.errors():
        annotation, location = _locate(section, detail["loc"])
        if detail["type"] == "invalid_key":  # no text, such as 1 or null, which pydantic shows as a place in a list
            location = [*location[:-1], json.dumps(detail["input"], default=str)]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        own_words = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
        if key not in seen:
            seen.add(key)
            yield key, own_words or f"must be {describe(annotation)}, got {detail['input']!r}", detail


def _explain_unknown(
    section: type[Section], key: str, detail: ErrorDetails, declared: str, renamed: Mapping[str, str]
) -> str:
    if key in renamed:
        return f"was renamed to {renamed[key]}"
    *parents, name = detail["loc"]
    known = _unwrap(_locate(section, parents)[0])[0].model_fields
    return f"is not a known key{did_you_mean(str(name), known) or f'; remove it, or declare it in {declared}'}"


def describe(annotation: Any) -> str:
    """Say which values a type takes, e.g. `in [0, 1) or null`, `an integer in [1, 9]`, `'avg' or 'max'`."""
    *others, last = _alternatives(annotation)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(annotation: Any) -> list[str]:
    base, metadata = _unwrap(annotation)
    rule = next((item.text for item in metadata if isinstance(item, Rule)), None)
    if rule:
        return [rule, "null"] if type(None) in get_args(base) else [rule]
    if get_origin(base) in (Union, types.UnionType):
        return [words for part in get_args(base) for words in _alternatives(part)]
    if get_origin(base) is Literal:
        return [repr(value) for value in get_args(base)]
    if get_origin(base) is list:
        return ["a list of values"]
    simple = {bool: ["true", "false"], str: ["a non-empty string"], type(None): ["null"]}
    simple |= {int: [f"an integer in {_interval(metadata)}"], float: [f"in {_interval(metadata)}"]}
    return simple.get(base, ["a section with keys of its own"])


def _interval(metadata: Sequence[Any]) -> str:
    low, high = "(-inf", "inf)"
    for item in metadata:
        if isinstance(item, annotated_types.Gt):
            low = f"({item.gt}"
        elif isinstance(item, annotated_types.Ge):
            low = f"[{item.ge}"
        elif isinstance(item, annotated_types.Lt):
            high = f"{item.lt})"
        elif isinstance(item, annotated_types.Le):
            high = f"{item.le}]"
    return f"{low}, {high}"


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """Return the bare type of a field or of an Annotated type, and all of its metadata."""
    if isinstance(annotation, FieldInfo):
        base, metadata = annotation.annotation, list(annotation.metadata)
    elif get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
    else:
        return annotation, []
    return base, [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _locate(section: type[BaseModel], location: Sequence[int | str]) -> tuple[Any, list[int | str]]:
    """Return the type at `location` and the keys that lead there; pydantic adds the alternatives of a union to them."""
    annotation: Any = section
    for depth, part in enumerate(location):
        base = _unwrap(annotation)[0]
        if get_origin(base) in (Union, types.UnionType):
            choices = [choice for choice in get_args(base) if choice is not type(None)]
            if len(choices) > 1:
                return annotation, list(location[:depth])
            base = _unwrap(choices[0])[0]
        if isinstance(base, type) and issubclass(base, BaseModel):
            annotation = base.model_fields.get(str(part))
        else:  # of a list or a dict
            annotation = get_args(base)[-1]
    return annotation, list(location)
