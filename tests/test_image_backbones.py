"""Rows of image encoders by KerasHub: limits on params, and messages about files that cannot be had."""

from __future__ import annotations

import dataclasses
import json

import pytest
from conftest import write_params

from headstart.backbones import BACKBONES, get_backbone, listing
from headstart.backbones.hub_files import Origin
from headstart.config import load_params
from headstart.errors import UserError

pytest.importorskip("keras_hub", exc_type=ImportError)
HUGGING_FACE = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_center_crop": True}
HUGGING_FACE |= {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}  # as deit-small's row says
KERAS_HUB = {"scale": [1 / 255 / one for one in HUGGING_FACE["image_std"]], "image_size": [224, 224]}
KERAS_HUB["offset"] = [-m / d for m, d in zip(HUGGING_FACE["image_mean"], HUGGING_FACE["image_std"], strict=True)]


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


def remarks_of(folder, name: str, processor: dict, config: dict | None = None, **changes: object) -> list[str]:
    """What a row of the table says if its files have that processor."""
    (folder / "config.json").write_text(json.dumps(config or {}))
    if "scale" in processor:
        content = {"class_name": "DeiTImageConverter", "config": processor}
        (folder / "image_converter.json").write_text(json.dumps(content))
    elif processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    write_params(folder / "params.yaml", **{"extract.size": None, **changes})
    row = dataclasses.replace(BACKBONES[name], origin=Origin(str(folder)))
    return row.remarks(load_params(folder / "params.yaml").extract)


@pytest.mark.parametrize(
    ("name", "processor", "config", "expected"),
    [
        ("deit-small", HUGGING_FACE, {}, []),
        ("deit-small", {}, {}, []),  # they say nothing
        (
            "deit-small",
            {**HUGGING_FACE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            {},
            [
                "scaling mean 0.5, 0.5, 0.5 and deviation 0.5, 0.5, 0.5, but mean 0.485, 0.456, 0.406 and deviation "
                "0.229, 0.224, 0.225 is used, as docs/backbones.md has it; -S backbone=FOLDER goes by the files"
            ],
        ),
        (
            "deit-small",
            KERAS_HUB,
            {},
            ["resize stretch, but 0.875 is used, as docs/backbones.md has it; -S extract.resize=stretch goes by"],
        ),
        ("deit-small", {**HUGGING_FACE, "size": 384, "crop_size": 336}, {}, ["size 336, but 224 is used, as "]),
        ("clip-b32", HUGGING_FACE, {}, ["scaling mean 0.485", "resize 0.875, but 1 is used, as "]),
        (
            "coco-resnet50",
            {},
            {"pretrained_cfg": {**{"mean": [0.5] * 3, "std": [1] * 3, "input_size": [3, 800, 800]}, "crop_pct": 0.9}},
            ["scaling mean 0.5, 0.5, 0.5 and deviation 1, 1, 1", "resize 0.9, but stretch", "size 800, but 224"],
        ),
    ],
)
def test_files_that_say_otherwise_than_the_table_are_told(tmp_path, name, processor, config, expected):
    found = remarks_of(tmp_path, name, processor, config)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(f"the files of {name} say {start.replace('FOLDER', str(tmp_path))}")


def test_what_the_params_say_is_no_remark(tmp_path):
    processor = {**HUGGING_FACE, "size": 384, "crop_size": 384}
    (size, resize) = remarks_of(tmp_path, "deit-small", processor)[::-1]
    assert "-S extract.size=384 goes" in size
    assert "-S extract.resize=1 goes" in resize
    assert remarks_of(tmp_path, "deit-small", processor, **{"extract.size": 384}) == [resize]
    assert remarks_of(tmp_path, "deit-small", processor, **{"extract.resize": "stretch"}) == [size]


def test_a_processor_that_cannot_be_read_is_told(tmp_path):
    (line,) = remarks_of(tmp_path, "deit-small", {**HUGGING_FACE, "do_rescale": False})
    assert line.startswith("deit-small is used as docs/backbones.md has it, since its own files are not clear: ")
    assert "preprocessor_config.json" in line


def test_what_stands_for_its_own_files_has_no_remarks(tmp_path):
    from reference_models import write_model

    row = get_backbone(str(write_model("deit", tmp_path)))
    write_params(tmp_path / "params.yaml")
    assert row.remarks(load_params(tmp_path / "params.yaml").extract) == []
