"""The table of backbones against Keras, and what `headstart backbones` prints."""

from __future__ import annotations

import keras
import pytest
from conftest import write_params

from headstart.backbones import BACKBONES, cached_backbones, check_params, get_backbone
from headstart.backbones.keras_applications import TINY_WEIGHTS, KerasApplication
from headstart.backbones.keras_table import CAFFE, INSIDE, ROWS, TF, TORCH
from headstart.backbones.listing import print_backbones
from headstart.config import Params, load_params
from headstart.errors import UserError

NAMES = [row.name for row in ROWS]


def test_every_image_classifier_of_keras_is_in_the_table():
    constructors = {name for name in dir(keras.applications) if name[0].isupper()}
    assert {row.constructor for row in ROWS} == constructors
    assert len(set(NAMES)) == len(ROWS) == len(constructors) + 1  # tiny


@pytest.mark.parametrize("name", NAMES)
def test_a_row_fits_keras(name):
    row = get_backbone(name)
    assert isinstance(row, KerasApplication)
    assert hasattr(getattr(keras.applications, row.module), "preprocess_input")
    assert row.preprocessing in (TF, CAFFE, TORCH, INSIDE)
    assert row.min_size <= row.default_size


@pytest.mark.parametrize(
    "name",
    ["vgg16", "mobilenetv3small", "tiny", "xception"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "nasnetmobile")],
)
def test_feature_width_parameters_and_minimum_size(name):
    row = get_backbone(name)

    def build(size: int) -> keras.Model:
        return getattr(keras.applications, row.constructor)(
            include_top=False, weights=None, input_shape=(size, size, 3), **dict(row.arguments)
        )

    model = build(row.default_size if row.pinned_size else row.min_size)
    assert model.output_shape[-1] == row.feature_dim
    assert round(model.count_params() / 1e6, 1) == row.parameters
    with pytest.raises(ValueError, match="Input size must be at least"):
        build(row.min_size - 1)


@pytest.fixture
def params(tmp_path, monkeypatch):
    """Checked params with changes."""
    monkeypatch.chdir(tmp_path)

    def make(**changes: object) -> Params:
        write_params(tmp_path / "params.yaml", **changes)
        return load_params()

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "mobilnetv2"}, r"backbone 'mobilnetv2' is unknown; did you mean 'mobilenetv2'"),
        ({"backbone": "xception", "extract.size": 70}, r"extract\.size must be at least 71 for xception, got 70"),
        (
            {"backbone": "nasnetmobile", "extract.size": 96},
            r"extract\.size must be 224 or null for nasnetmobile with pretrained weights, got 96",
        ),
    ],
)
def test_params_that_a_backbone_does_not_take(params, changes, message):
    with pytest.raises(UserError, match=message):
        check_params(params(**changes))
    check_params(params(**{"backbone": "nasnetmobile", "extract.size": 96, "weights": "none"}))


def test_the_weights_are_looked_for_where_keras_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    folder = tmp_path / "models"
    mobilenet = get_backbone("mobilenetv2")
    prefix = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0"
    assert mobilenet.weights_path(96) == folder / f"{prefix}_96_no_top.h5"
    assert mobilenet.weights_path(100) == folder / f"{prefix}_224_no_top.h5"
    assert get_backbone("vgg16").weights_path(64) == folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    found = cached_backbones()  # other tests make further ones known, which need no file
    assert {"tiny", "tinybert", "wavenet"} <= set(found)
    assert not {"mobilenetv2", "vgg16"} & set(found)


def test_tiny_brings_its_weights():
    assert get_backbone("tiny").weights_path(64) == TINY_WEIGHTS
    assert TINY_WEIGHTS.stat().st_size < 4 * 2**20


def test_the_table_is_printed(capsys):
    print_backbones()
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{printed}" for name in BACKBONES)
