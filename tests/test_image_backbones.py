"""Rows of image encoders by KerasHub: limits on params, and messages about files that cannot be had."""

from __future__ import annotations

import pytest
from conftest import write_params

from headstart.backbones import get_backbone, hub_files, listing
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


def test_a_gated_model_says_how_to_give_consent(tmp_path, monkeypatch, capsys):
    def refused(origin, folder, names):
        raise OSError("403 Client Error")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(hub_files, "_from_hugging_face", refused)
    with pytest.raises(
        UserError, match=r"403 Client Error.*\n(.*\n)+To download it, accept its licence at .* HF_TOKEN"
    ):
        get_backbone("dinov3-small").fetch()
    with pytest.raises(UserError, match=r"hf:owner/nothing .*\n(.*\n)+Is the name right\? .*HF_TOKEN"):
        get_backbone("hf:owner/nothing")
    listing.print_backbones()
    assert "dinov3-small needs a consent: accept its licence" in capsys.readouterr().out
