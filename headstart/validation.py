"""Files of keys and values, checked against pydantic models; each error names file, key, rule and value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler, Strict, ValidationError
from pydantic_core import CoreSchema, ErrorDetails

from headstart.errors import UserError, did_you_mean

RULE = "rule"  # the key of a JSON schema that holds the words of a Rule
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with libyaml
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class Section(BaseModel):
    """Keys with their types, each described by the string below it; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class Rule:
    """The rule in words, for a type whose validator or constraints do not say it well."""

    text: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), RULE: self.text}


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


class _UniqueKeysLoader(SAFE_LOADER):  # type: ignore[misc, valid-type]
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
    schema, seen = section.model_json_schema(), set()
    for detail in error.errors():
        found, location = _locate(schema, detail["loc"])
        if detail["type"] == "invalid_key":  # no text, such as 1 or null, which pydantic shows as a place in a list
            location = [*location[:-1], json.dumps(detail["input"], default=str)]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        own_words = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
        if key not in seen:
            seen.add(key)
            yield key, own_words or f"must be {describe(found)}, got {detail['input']!r}", detail


def _explain_unknown(
    section: type[Section], key: str, detail: ErrorDetails, declared: str, renamed: Mapping[str, str]
) -> str:
    if key in renamed:
        return f"was renamed to {renamed[key]}"
    *parents, name = detail["loc"]
    known = _locate(section.model_json_schema(), parents)[0]["properties"]
    return f"is not a known key{did_you_mean(str(name), known) or f'; remove it, or declare it in {declared}'}"


def describe(schema: dict[str, Any]) -> str:
    """Say which values a JSON schema takes, e.g. `in [0, 1) or null`, `an integer in [1, 9]`, `'avg' or 'max'`."""
    *others, last = _alternatives(schema)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(schema: dict[str, Any]) -> list[str]:
    choices = schema.get("anyOf", [])
    if RULE in schema:
        return [schema[RULE], "null"] if {"type": "null"} in choices else [schema[RULE]]
    if choices:
        return [words for choice in choices for words in _alternatives(choice)]
    if "enum" in schema or "const" in schema:
        return [repr(value) for value in schema.get("enum", [schema.get("const")])]
    words = {"boolean": ["true", "false"], "string": ["a non-empty string"], "null": ["null"]}
    words |= {"array": ["a list of values"], "object": ["a section with keys of its own"]}
    words |= {"integer": [f"an integer in {_interval(schema)}"], "number": [f"in {_interval(schema)}"]}
    return words[schema.get("type", "object")]


def _interval(schema: dict[str, Any]) -> str:
    # A constraint behind a validator, such as that of Int, keeps pydantic's own name.
    lows = {"minimum": "[", "ge": "[", "exclusiveMinimum": "(", "gt": "("}
    highs = {"maximum": "]", "le": "]", "exclusiveMaximum": ")", "lt": ")"}
    low = next((f"{bracket}{schema[name]}" for name, bracket in lows.items() if name in schema), "(-inf")
    high = next((f"{schema[name]}{bracket}" for name, bracket in highs.items() if name in schema), "inf)")
    return f"{low}, {high}"


def _locate(root: dict[str, Any], location: Sequence[int | str]) -> tuple[dict[str, Any], list[int | str]]:
    """Return the schema at `location` and the keys that lead there, without the alternatives that pydantic adds."""
    schema = root
    for depth, part in enumerate(location):
        choices = [choice for choice in schema.get("anyOf", [schema]) if choice != {"type": "null"}]
        if len(choices) > 1:
            return schema, list(location[:depth])
        (schema,) = choices
        if "properties" in schema:
            schema = schema["properties"].get(str(part), {})
        else:  # a list or a dict
            schema = schema.get("items") or schema.get("additionalProperties") or {}
        schema = root["$defs"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
    return schema, list(location)
