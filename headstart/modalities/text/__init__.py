"""Texts: UTF-8 files or cells of a table become tokens, (t,) int32."""

from __future__ import annotations

from typing import Any

from headstart.modalities.base import Modality


class TextModality(Modality):
    """Sentences and documents as the tokens of a backbone."""

    name, noun, column, default_backbone = "text", "text", "text", "tinybert"
    suffixes = (".txt",)
    mixes = False

    def decode(self, data: bytes) -> Any:
        return data.decode("utf-8")
