"""What encoders by KerasHub share, whatever they take: their config, how they are built and identified.

KerasHub and its companions are the extra `hub`; they are imported when a network is built or its files are read.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.backbones import hub_downloads, hub_files
from headstart.backbones.base import Backbone
from headstart.backbones.hub_files import CONFIG, Origin
from headstart.config import PARAMS_FILE, Params
from headstart.errors import HUB_EXTRA, UserError, one_line
from headstart.modalities import get_modality

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class HubBackbone(Backbone):
    """A network by KerasHub.

    Attributes:
        origin: where its files come from.
    """

    origin: Origin

    def check(self, params: Params) -> None:
        super().check(params)
        if params.weights not in ("pretrained", "none"):
            raise UserError(
                f"{PARAMS_FILE}: weights must be pretrained or none for {self.name}, got {params.weights!r}; to use "
                "weights of your own, give the folder that they lie in as the backbone"
            )
        if not importlib.util.find_spec("keras_hub"):
            raise UserError(
                f"{PARAMS_FILE}: backbone {self.name} needs KerasHub, which is not installed; install {HUB_EXTRA}"
            )

    def weights_path(self, size: int) -> Path:
        return hub_files.weights_file(self.origin.folder())

    def consent(self) -> str:
        return hub_files.consent(self.origin)

    def fetch(self) -> Path:
        folder = hub_downloads.fetch(self.origin)
        hub_downloads.check_weights(self.origin, folder)
        return folder

    def identify(self, weights: str, size: int, seed: int) -> str | None:
        folder = self.origin.folder()
        try:
            values = f"seed {seed}" if weights == "none" else hub_downloads.check_weights(self.origin, folder)
            config = hub_files.check(self.origin, folder, [CONFIG])[CONFIG]
            versions = [importlib.metadata.version(name) for name in self.libraries]
            return f"{self} {values} {config} {self._read(folder)} {versions}"
        except (OSError, UserError, importlib.metadata.PackageNotFoundError):  # `build` reports them
            return None

    def _read(self, folder: Path) -> Any:
        """Return what else of its files shapes the network."""
        return ""

    def _load(self, folder: Path, weights: str) -> keras.Model:
        """Return KerasHub's network; raises as `build`."""
        if weights == "pretrained":
            hub_downloads.check_weights(self.origin, folder)
        try:
            return self._convert(folder, read_config(folder), weights == "pretrained")
        except UserError:
            raise
        except Exception as error:  # of many kinds
            noun = get_modality(self.modality).noun
            raise UserError(
                f"{folder}: KerasHub cannot make an encoder of {noun}s of it ({one_line(error)[:300]}); its list of "
                "models: https://keras.io/keras_hub/presets"
            ) from error

    def _convert(self, folder: Path, config: dict[str, Any], pretrained: bool) -> keras.Model:
        """Return KerasHub's network; raises many kinds of errors."""
        return from_preset(folder, pretrained)


def from_preset(folder: Path, pretrained: bool) -> keras.Model:
    """Return the network that KerasHub makes of a folder; raises many kinds of errors."""
    import keras_hub

    from headstart.framework import keras

    return keras_hub.models.Backbone.from_preset(
        str(folder), load_weights=pretrained, dtype=keras.config.dtype_policy().name
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a model; raises UserError if it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG}: not readable JSON ({one_line(error)}); download it again") from error
