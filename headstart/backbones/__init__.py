"""Pretrained networks: the registry, how each is built, and where it can be split in two."""

from __future__ import annotations

from headstart.backbones.table import BACKBONES
from headstart.config import PARAMS_FILE, Params
from headstart.errors import UserError, did_you_mean


def check_params(params: Params) -> None:
    """Check the params that depend on the backbone.

    Raises:
        UserError: if the backbone is unknown, or does not take examples of that size.
    """
    if params.backbone not in BACKBONES:
        raise UserError(
            f"{PARAMS_FILE}: backbone {params.backbone!r} is unknown"
            f"{did_you_mean(params.backbone.lower(), BACKBONES) or ';'} `headstart backbones` prints the table"
        )
    row, size = BACKBONES[params.backbone], params.extract.size
    if size is not None and size < row.min_size:
        raise UserError(
            f"{PARAMS_FILE}: extract.size must be at least {row.min_size} for {params.backbone}, got {size}"
        )
    if row.pinned_size and params.weights == "pretrained" and size not in (None, row.default_size):
        raise UserError(
            f"{PARAMS_FILE}: extract.size must be {row.default_size} or null for {params.backbone} with pretrained "
            f"weights, got {size}"
        )
