"""Pretrained networks: the registry, how each is built, and where it can be split in two."""

from __future__ import annotations

from headstart.backbones import hub_image_table, hub_names, hub_sounds, hub_text, sound_encoders
from headstart.backbones.base import Backbone
from headstart.backbones.keras_table import ROWS
from headstart.config import PARAMS_FILE, Params
from headstart.errors import UserError, did_you_mean
from headstart.modalities import Modality, get_modality

BACKBONES: dict[str, Backbone] = {
    row.name: row for row in (*ROWS, *hub_image_table.ROWS, *hub_text.ROWS, *sound_encoders.ROWS, *hub_sounds.ROWS)
}


def register(backbone: Backbone) -> None:
    """Register a backbone under its name, so that `backbone` in params.yaml can be that."""
    BACKBONES[backbone.name] = backbone


def get_backbone(name: str) -> Backbone:
    """Return the backbone of that name, or what `hub:PRESET`, `hf:OWNER/NAME[@REVISION]` or a folder stands for.

    Raises:
        UserError: if it is none of these.
    """
    found: Backbone | None = BACKBONES.get(name) or hub_names.find_row(name)
    if found is None:
        raise UserError(
            f"{PARAMS_FILE}: backbone {name!r} is unknown{did_you_mean(name.lower(), BACKBONES) or ';'} "
            "`headstart backbones` prints the table"
        )
    return found


def cached_backbones() -> list[str]:
    """Return the names of the backbones whose pretrained weights for the default size are on this machine."""
    files = {name: row.weights_path(row.default_size) for name, row in BACKBONES.items()}
    return [name for name, file in files.items() if file and file.is_file()]


def check_params(params: Params) -> None:
    """Check what can be said of the backbone without looking at the data; raises as `choose_backbone`."""
    if params.data.kind:
        choose_backbone(params, get_modality(params.data.kind))
    elif params.backbone:
        get_backbone(params.backbone).check(params)


def choose_backbone(params: Params, modality: Modality) -> Backbone:
    """Return the backbone that params name, or the default of the modality, the one of the data.

    Raises:
        UserError: if there is none of that name, it takes other examples, or params do not fit it.
    """
    backbone = get_backbone(params.backbone or modality.default_backbone)
    if backbone.modality != modality.name:
        raise UserError(
            f"{PARAMS_FILE}: backbone {backbone.name} takes {get_modality(backbone.modality).noun}s, but the data are "
            f"{modality.noun}s; choose a backbone for {modality.noun}s: `headstart backbones` prints the table"
        )
    backbone.check(params)
    return backbone
