"""The tokenizers of text encoders, read from their files. The library `tokenizers` is of the extra `hub`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headstart.backbones import deberta
from headstart.backbones.hub_files import KERAS_PIECES, KERAS_VOCABULARY, TOKENIZER, need
from headstart.errors import UserError, one_line

VOCABULARY, PIECES = "vocab.txt", "spm.model"


def read_tokenizer(folder: Path) -> tuple[str, int]:
    """Return the tokenizer of a model, the content of a tokenizer.json, and its token for padding.

    Raises:
        UserError: if there is none that the library `tokenizers` can read.
    """
    need("tokenizers")
    from tokenizers import Tokenizer

    try:
        content = _find_tokenizer(folder)
        tokenizer = Tokenizer.from_str(content)
    except UserError:
        raise
    except Exception as error:  # the library's own are plain Exceptions
        raise UserError(f"{folder / TOKENIZER}: not a readable tokenizer ({one_line(error)})") from error
    padding = tokenizer.padding or {}
    known = (padding.get("pad_id"), *(tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>")))
    pad = next((token for token in known if token is not None), None)
    if pad is None:
        raise UserError(f"{folder / TOKENIZER}: it has no token for padding ([PAD] or <pad>)")
    return content, pad


def _find_tokenizer(folder: Path) -> str:
    """Return the tokenizer.json of a model, or one that is made of its vocabulary."""
    file, settings = folder / TOKENIZER, dict[str, Any]()
    if file.is_file():
        content = file.read_text(encoding="utf-8")
        found = json.loads(content)
        if "model" in found:  # else it is KerasHub's own, which has other keys
            return content
        settings = found.get("config", {})
    known = (folder / name for name in (VOCABULARY, KERAS_VOCABULARY, PIECES, KERAS_PIECES))
    vocabulary = next((file for file in known if file.is_file()), None)
    if vocabulary is None:
        raise UserError(
            f"{folder}: there is no tokenizer that can be read here; it must have {TOKENIZER}, {VOCABULARY} or {PIECES}"
        )
    if vocabulary.name in (PIECES, Path(KERAS_PIECES).name):
        return deberta.make_tokenizer(vocabulary)
    about = folder / "tokenizer_config.json"
    if about.is_file():
        settings = json.loads(about.read_text(encoding="utf-8"))
    from tokenizers import BertWordPieceTokenizer

    lowercase = bool(settings.get("do_lower_case", settings.get("lowercase", True)))
    return BertWordPieceTokenizer(str(vocabulary), lowercase=lowercase, strip_accents=None).to_str()
