"""What can be said of the params of the data before a run, without reading the data."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from headstart import paths
from headstart.config import Params
from headstart.data.sources import check_source, is_manifest
from headstart.errors import UserError


def check_data(params: Params) -> None:
    """Check data.source, data.root and prepare.group_by; raises UserError naming the key, the rule and the value."""
    source, group_by = params.data.source, params.prepare.group_by
    check_source(source, params.data.root)
    if not paths.is_address(source) and paths.PREPARED.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(
            f"params.yaml: data.source {source!r} contains {paths.PREPARED}/, where prepare writes; put the examples "
            "into a folder of their own, e.g. data/photos"
        )
    if group_by and not is_manifest(source):  # of a manifest it may be a column
        compile_group_by(group_by)


def compile_group_by(pattern: str) -> re.Pattern[str]:
    """Compile the regular expression `prepare.group_by`.

    Raises:
        UserError: if it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what later versions of Python may read differently
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            "params.yaml: prepare.group_by must be a column of the manifest or a regular expression, got "
            f"{pattern!r} ({error})"
        ) from error
