"""The typed form of params.yaml, checked once before anything slow is imported.

Command: python -m pipeline.params    # checks params.yaml and the data source, prints one line
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pipeline.backbones import BACKBONES
from pipeline.errors import UserError, did_you_mean

PARAMS_FILE = Path("params.yaml")


def _number(value: Any) -> Any:
    """Lets `1e-4` through, which YAML 1.1 reads as text, and keeps true and false from passing as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
Integer = Annotated[int, BeforeValidator(_number)]
Share = Annotated[Number, Field(gt=0, lt=1)]
LearningRate = Annotated[Number, Field(gt=0, le=1)]
Epochs = Annotated[Integer, Field(ge=1, le=10_000)]
ImageBatch = Annotated[Integer, Field(ge=1, le=4096)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Section):
    source: Annotated[str, Field(min_length=1)]


class Prepare(_Section):
    val_fraction: Share
    test_fraction: Share
    max_bad_fraction: Annotated[Number, Field(ge=0, le=1)]


class Extract(_Section):
    image_size: Annotated[Integer, Field(ge=1, le=4096)] | None
    pooling: Literal["avg", "max", "flatten"]
    batch_size: ImageBatch


class TrainHead(_Section):
    hidden: list[Annotated[Integer, Field(ge=1, le=65_536)]]
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    learning_rate: LearningRate
    batch_size: Annotated[Integer, Field(ge=1, le=65_536)]
    epochs: Epochs


class FineTune(_Section):
    unfreeze: Annotated[Number, Field(ge=0, le=1)]
    augment: Annotated[Number, Field(ge=0, lt=1)]
    learning_rate: LearningRate
    batch_size: ImageBatch
    epochs: Epochs


class Evaluate(_Section):
    top_k: Annotated[Integer, Field(ge=2, le=1000)]


class Params(_Section):
    """params.yaml: a section per stage beside what several stages share."""

    backbone: str
    weights: Annotated[str, Field(min_length=1)]
    seed: Annotated[Integer, Field(ge=0, lt=2**32)]
    data: Data
    prepare: Prepare
    extract: Extract
    train_head: TrainHead
    fine_tune: FineTune
    evaluate: Evaluate

    def leaves(self) -> dict[str, Any]:
        """Every leaf under its dotted key, e.g. `train_head.dropout`, in the order of the file."""
        return {
            (f"{key}.{name}" if name else key): leaf
            for key, value in self.model_dump().items()
            for name, leaf in (value.items() if isinstance(value, dict) else [("", value)])
        }


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check `path`.

    Raises:
        UserError: naming the file, the key, the rule and the value of everything that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run from the folder that holds {path.name}") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold keys and values, got {type(raw).__name__}")
    if raw.get("weights", "") is None:  # `weights: null` is how YAML spells none
        raw["weights"] = "none"
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, detail) for detail in error.errors())) from error
    _check_across(path, params)
    return params


def _check_across(path: Path, params: Params) -> None:
    """Rules that a single key cannot see."""
    if params.backbone not in BACKBONES:
        raise UserError(
            f"{path}: backbone {params.backbone!r} is unknown{did_you_mean(params.backbone.lower(), BACKBONES)} "
            "`python -m pipeline.backbones` prints the table."
        )
    row = BACKBONES[params.backbone]
    if params.extract.image_size is not None and params.extract.image_size < row.min_size:
        raise UserError(
            f"{path}: extract.image_size must be at least {row.min_size} for {params.backbone}, "
            f"got {params.extract.image_size}"
        )
    if params.prepare.val_fraction + params.prepare.test_fraction >= 1:
        raise UserError(
            f"{path}: prepare.val_fraction + prepare.test_fraction must be below 1, so that images are left to "
            f"train on, got {params.prepare.val_fraction} + {params.prepare.test_fraction}"
        )


def _explain(path: Path, detail: ErrorDetails) -> str:
    """One line for one of pydantic's findings: file, key, rule, value."""
    location = [part for part in detail["loc"] if isinstance(part, int) or part.isidentifier()]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if detail["type"] == "extra_forbidden":
        section = _field(location[:-1])
        known = section.model_fields if section else ()
        return f"{path}: {key} is not a known key{did_you_mean(str(location[-1]), known) or '; remove it'}"
    if detail["type"] == "missing":
        return f"{path}: {key} is missing; add it, the comments of the committed {path.name} give its range"
    got = detail["input"]
    return f"{path}: {key} must be {_rule(location)}, got {got!r}"


def _field(location: list[Any]) -> Any:
    """The section class at `location`, or None."""
    section: Any = Params
    for part in location:
        field = section.model_fields.get(part)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return None
    return section


def _rule(location: list[Any]) -> str:
    """What the key at `location` takes, in words, e.g. `in [0, 1)`, from the JSON schema of its type."""
    names = [part for part in location if isinstance(part, str)]
    schema: dict[str, Any] = _field(names[:-1]).model_json_schema(mode="validation")
    rule = schema["properties"][names[-1]]
    if "$ref" in rule:
        return "a section with keys of its own"
    if "anyOf" in rule:
        alternatives = rule["anyOf"]
        return " or ".join(_rule_of(alternative) for alternative in alternatives)
    if "items" in rule:
        inside = any(isinstance(part, int) for part in location)
        return _rule_of(rule["items"]) if inside else f"a list, each item {_rule_of(rule['items'])}"
    return _rule_of(rule)


def _rule_of(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema["type"] in ("integer", "number"):
        opening, low = ("[", schema["minimum"]) if "minimum" in schema else ("(", schema["exclusiveMinimum"])
        closing, high = ("]", schema["maximum"]) if "maximum" in schema else (")", schema["exclusiveMaximum"])
        kind = "an integer " if schema["type"] == "integer" else ""
        return f"{kind}in {opening}{low:g}, {high:g}{closing}" if high < 10**6 else f"{kind}in {opening}{low}, {high}{closing}"
    return {"string": "a text", "null": "null"}[schema["type"]]


def main() -> int:
    try:
        params = load_params()
        if not Path(params.data.source).exists():
            raise UserError(
                f"{PARAMS_FILE}: data.source {params.data.source!r} does not exist; "
                "give the path of a folder, an archive or a manifest"
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{PARAMS_FILE}: good. Backbone {params.backbone}, data {params.data.source}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
