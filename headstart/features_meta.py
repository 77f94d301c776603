"""features/meta.json: what the features were made by, as later stages need it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from headstart import paths
from headstart.errors import damaged


class FeaturesMeta(BaseModel, extra="allow", frozen=True):
    """What features/meta.json says about the encoder of the features; more keys are for people to read.

    Attributes:
        kind: name of the modality.
        feature_dim: length of a feature vector.
        depths: how long the vectors are that each depth adds to the features, in their order; `last` comes first.
    """

    kind: str
    backbone: str
    size: Annotated[int, Field(ge=1)]
    pooling: Literal["avg", "max", "flatten"]
    engine: Literal["openvino", "tensorflow", "jax"]
    weights_sha256: str
    reading: dict[str, Any]
    feature_dim: Annotated[int, Field(ge=1)]
    depths: dict[str, Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]]

    @model_validator(mode="after")
    def _depths_make_up_the_features(self) -> FeaturesMeta:
        if next(iter(self.depths), None) != "last" or self.dim(list(self.depths)[-1]) != self.feature_dim:
            raise ValueError(f"depths must begin with `last` and add up to {self.feature_dim}, got {self.depths}")
        return self

    def dim(self, depth: str) -> int:
        """Return how many features there are down to a depth."""
        names = list(self.depths)
        return sum(sum(self.depths[name]) for name in names[: names.index(depth) + 1])

    def depth_of(self, dim: int) -> str:
        """Return down to which depth there are `dim` features. Raises UserError if there is no such depth."""
        for name in self.depths:
            if self.dim(name) == dim:
                return name
        raise damaged(paths.FEATURES_META, f"has no depth with the {dim} features that the head takes", "extract")


def read_meta() -> FeaturesMeta:
    """Read features/meta.json. Raises UserError if it is not what extract wrote."""
    try:
        return FeaturesMeta.model_validate_json(paths.FEATURES_META.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
        raise damaged(paths.FEATURES_META, problem, "extract") from error
