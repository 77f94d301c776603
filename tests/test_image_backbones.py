"""Rows of image encoders by KerasHub: limits on params, and messages about files that cannot be had."""

from __future__ import annotations

import pytest
from conftest import write_params

from headstart.backbones import get_backbone, listing
from headstart.config import load_params
from headstart.errors import UserError

pytest.importorskip("keras_hub", exc_type=ImportError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extract.size": 225}, r"extract\.size must be a multiple of 14 for dinov2-small, .* got 225; use 224 or 238"),
        ({"extract.pooling": "flatten"}, r"extract\.pooling must be avg or max for dinov2-small, got flatten"),
    ],
)
def test_params_that_a_transformer_does_not_take(tmp_path, changes, message):
    write_params(tmp_path / "params.yaml", **changes)
    with pytest.raises(UserError, match=message):
        get_backbone("dinov2-small").check(load_params(tmp_path / "params.yaml"))


def test_a_gated_model_says_how_to_give_consent(capsys):
    listing.print_backbones()
    assert "dinov3-small needs a consent: accept its licence" in capsys.readouterr().out
