"""Types of the section `data` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from headstart.validation import Rule


def _check_watch(value: Any) -> Any:
    if not isinstance(value, list) or not set(map(str, value)) <= {"source", "weights"} or len(set(value)) < len(value):
        raise ValueError
    return value


def _check_splits(value: Any) -> Any:
    if isinstance(value, dict):
        folders = [folder.strip("/") if isinstance(folder, str) else "" for folder in value.values()]
        if "train" not in value or not set(value) <= {"train", "val", "test"} or not all(folders):
            raise ValueError
        if len(set(folders)) < len(folders):
            raise ValueError(f"must name another folder for each split, got {value!r}")
    elif value not in (None, "none"):
        raise ValueError
    return value


Watch = Annotated[list[str], BeforeValidator(_check_watch), Rule("a list of source and weights, or []")]
Splits = Annotated[dict[str, str] | str | None, BeforeValidator(_check_splits), Rule("folders by split, or none")]
