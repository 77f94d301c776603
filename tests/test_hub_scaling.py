"""What the files of an image encoder say about how values are scaled, and those that say it in a way not known here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headstart.backbones.hub_scaling import read_scaling
from headstart.errors import UserError

VALUES = np.array([[0.0, 100.0, 255.0], [30.0, 60.0, 90.0]])  # RGB in [0, 255]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def scaled(folder) -> np.ndarray:
    mean, deviation = map(np.array, read_scaling(folder, {}))
    return (VALUES / 255 - mean) / deviation


def write(folder, config, name="DeiTImageConverter") -> None:
    about = {"module": "keras_hub.layers", "class_name": name, "config": config, "registered_name": name}
    (folder / "image_converter.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"scale": 1 / 255, "offset": None}, VALUES / 255),
        ({"scale": None, "offset": None}, VALUES),
        ({"scale": [0.01, 0.02, 0.03], "offset": [-1, -2, -3]}, VALUES * [0.01, 0.02, 0.03] - [1, 2, 3]),
        ({"scale": 1 / 255, "norm_mean": MEAN, "norm_std": STD}, (VALUES / 255 - MEAN) / STD),
        ({"scale": 1 / 127.5, "offset": -1, "norm_mean": [], "norm_std": None}, VALUES / 127.5 - 1),
        ({"scale": 1 / 127.5, "offset": -1, "norm_mean": [0.5] * 3, "norm_std": [2] * 3}, (VALUES / 127.5 - 1.5) / 2),
        (
            {"scale": 1 / 255, "mean": MEAN, "variance": [one**2 for one in STD], "height": 9, "width": 9},
            (VALUES / 255 - MEAN) / STD,
        ),
    ],
)
def test_every_way_in_which_converters_of_keras_hub_scale(tmp_path, config, expected):
    write(tmp_path, {"name": "x", "trainable": True, "dtype": {}, "image_size": [9, 9], **config})
    assert scaled(tmp_path) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_converters_of_all_image_classifiers_write_nothing_else(tmp_path):
    """And scale as the one class that they come from; of those that this version of KerasHub has."""
    keras_hub = pytest.importorskip("keras_hub", exc_type=ImportError)
    base = keras_hub.layers.ImageConverter
    names = [name for name in dir(keras_hub.models) if name.endswith("ImageClassifierPreprocessor")]
    kinds = {getattr(keras_hub.models, name).image_converter_cls for name in names} - {None}
    kinds |= {getattr(keras_hub.layers, f"{name}ImageConverter") for name in ("CLIP", "SigLIP", "RetinaNet", "DINOV2")}
    assert len(kinds) > 10
    for kind in kinds:
        converter = kind(scale=[0.01, 0.02, 0.03], offset=[-1.0, -2.0, -3.0])
        write(tmp_path, json.loads(json.dumps(converter.get_config(), default=str)), kind.__name__)
        assert scaled(tmp_path) == pytest.approx(VALUES * [0.01, 0.02, 0.03] - [1, 2, 3])
        assert (kind.call, kind.get_config) == (base.call, base.get_config)
    found = np.asarray(converter(np.repeat(VALUES[None].astype("float32"), 2, 0)))[0]
    assert scaled(tmp_path) == pytest.approx(found, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (
            {"patch_size": 2, "scale": 1},
            "Qwen3_5ImageConverter",
            "Qwen3_5ImageConverter is not known here, with patch_size",
        ),
        ({"image_size": [9, 9]}, "BLIP2ImageConverter", "BLIP2ImageConverter is not known here"),
        ({"scale": 0}, "DeiTImageConverter", "float division by zero"),
        ({"scale": [1, 2]}, "DeiTImageConverter", "expected 3 numbers, got 2"),
        ({"scale": 1, "norm_std": "a"}, "DeiTImageConverter", "could not convert"),
    ],
)
def test_a_converter_that_is_not_known_is_one_message(tmp_path, config, name, message):
    write(tmp_path, config, name)
    with pytest.raises(UserError, match=rf"image_converter\.json: .* \({message}.*\); if you know it, copy the folder"):
        read_scaling(tmp_path, {})


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"image_mean": MEAN, "image_std": STD}, (VALUES / 255 - MEAN) / STD),
        ({"rescale_factor": 0.00392156862745098, "image_mean": MEAN, "image_std": STD}, (VALUES / 255 - MEAN) / STD),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, VALUES / 127.5 - 1),
        ({"do_normalize": False, "image_mean": MEAN, "image_std": STD}, VALUES / 255),
    ],
)
def test_what_a_processor_of_hugging_face_says(tmp_path, about, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    assert scaled(tmp_path) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order: it takes BGR"),
        ({"do_rescale": False, "image_mean": MEAN, "image_std": STD}, "rescale_offset or do_rescale is not as usual"),
        ({"image_mean": MEAN}, "no 'image_std'"),
        ([], "'list' object"),
    ],
)
def test_a_processor_that_is_not_known_is_one_message(tmp_path, about, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=rf"preprocessor_config\.json: .* \({message}"):
        read_scaling(tmp_path, {})
