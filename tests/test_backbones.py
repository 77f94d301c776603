from __future__ import annotations

import keras
import pytest

from headstart.backbones import table
from headstart.backbones.table import BACKBONES, PREPROCESSING, TINY_WEIGHTS, Backbone


def test_every_image_classifier_of_keras_is_in_the_table():
    constructors = {name for name in dir(keras.applications) if name[0].isupper()}
    assert {row.constructor for row in BACKBONES.values()} == constructors


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_fits_keras(name):
    row = BACKBONES[name]
    assert hasattr(getattr(keras.applications, row.module), "preprocess_input")
    assert row.preprocessing in PREPROCESSING
    assert row.min_size <= row.default_size


@pytest.mark.parametrize("name", ["vgg16", "densenet121", "mobilenetv3small", "nasnetmobile", "tiny", "xception"])
def test_feature_width_parameters_and_least_size(name):
    row = BACKBONES[name]

    def build(size: int) -> keras.Model:
        return getattr(keras.applications, row.constructor)(
            include_top=False, weights=None, input_shape=(size, size, 3), **dict(row.arguments)
        )

    model = build(row.min_size)
    assert model.output_shape[-1] == row.feature_dim
    assert round(model.count_params() / 1e6, 1) == row.parameters
    with pytest.raises(ValueError, match="Input size must be at least"):
        build(row.min_size - 1)


def test_the_weights_are_looked_for_where_keras_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    folder = tmp_path / "models"
    mobilenet = BACKBONES["mobilenetv2"]
    prefix = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0"
    assert mobilenet.weights_path(96) == folder / f"{prefix}_96_no_top.h5"
    assert mobilenet.weights_path(100) == folder / f"{prefix}_224_no_top.h5"
    assert BACKBONES["vgg16"].weights_path(64) == folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert table.cached_backbones() == ["tiny"]


def test_no_row_takes_the_name_of_another():
    assert len(BACKBONES) == 1 + len(table._ROWS)


def test_tiny_brings_its_weights():
    tiny: Backbone = BACKBONES["tiny"]
    assert tiny.weights_path(64) == TINY_WEIGHTS
    assert TINY_WEIGHTS.stat().st_size < 4 * 2**20


def test_the_table_is_printed(capsys):
    table.main()
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{printed}" for name in BACKBONES)
