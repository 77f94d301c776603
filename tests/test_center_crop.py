"""Images of any shape become squares: stretched, or as torchvision's Resize and CenterCrop cut them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import write_params
from PIL import Image
from test_pixels import difference, encoded, photo

from headstart.backbones import get_backbone
from headstart.backbones.base import POOL_LAYER
from headstart.config import load_params
from headstart.errors import UserError
from headstart.features.views import ViewLoader, fingerprint_inputs
from headstart.modalities import get_modality
from headstart.modalities.image import evidence
from headstart.modalities.image.augmentation import ImageAugmentation
from headstart.modalities.image.pixels import pixels, resize, seen_part
from headstart.serving import ood
from headstart.serving.export import export
from headstart.serving.model_file import load_classifier
from headstart.serving.network import open_network
from headstart.training import networks

SIZE, SHARE = 32, 0.8  # 40 pixels of the shorter side
IMAGES = get_modality("image")
CROPPED = get_modality("image", {"center_crop": SHARE})
SHAPES = [(500, 333), (333, 500), (301, 301), (20, 30), (8, 8), (300, 1), (1, 300), (1, 1), (2000, 50)]


def reference(image: Image.Image, size: int, share: float) -> np.ndarray:
    """As torchvision computes it, in two steps."""
    shorter = int(size / share + 1e-6)
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, upper, left + size, upper + size)))


@pytest.mark.parametrize("share", [0.875, 0.9, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_center_crop_is_that_of_the_reference(shape, share):
    image = photo(*shape)
    made = resize(np.asarray(image), 224, share)
    assert made.shape == (224, 224, 3)
    assert difference(made, reference(image, 224, share)) < 2  # which rounds to whole pixels


@pytest.mark.parametrize(
    ("sides", "size", "share", "expected"),
    [
        ((640, 480), 224, 0.875, (110, 30, 530, 450)),
        ((480, 641), 224, 0.875, (30, 110, 450, 530)),  # as if there were 640
        ((438, 438), 384, 384 / 438, (27, 27, 411, 411)),  # although 384 / (384 / 438) is less than 438
        ((36, 72), 32, 0.9, (2, 20, 34, 52)),  # 35 pixels would have no middle
        ((7, 9), 32, None, (0, 0, 7, 9)),
    ],
)
def test_the_part_that_is_seen_is_in_the_middle(sides, size, share, expected):
    assert seen_part(*sides, size, share) == pytest.approx(expected)


def test_a_jpeg_is_decoded_large_enough_for_the_part_that_is_seen():
    data = encoded(photo(640, 80), quality=95)
    assert pixels(data, 40).shape == (40, 320, 3)
    narrow = get_modality("image", {"center_crop": 0.5})  # 64 pixels of the shorter side
    assert (narrow.load(data, SIZE) == resize(pixels(data, 80), SIZE, 0.5)).all()
    assert (CROPPED.load(data, SIZE) == resize(pixels(data, 40), SIZE, SHARE)).all()
    assert narrow.memory(data, SIZE) > CROPPED.memory(data, SIZE)
    first, second = narrow.views(data, SIZE, ImageAugmentation(1.0, False, 0.0, mirror=True), "key", [0, 1])
    assert (first == narrow.load(data, SIZE)).all()
    assert (second == first[:, ::-1]).all()


# --- views


def coordinates(width: int, height: int) -> bytes:
    """Return an image whose red says how far right a pixel is, and its green how far down, from 0 to 250."""
    x, y = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    return encoded(Image.fromarray(np.uint8(np.stack([x, y, 0 * x], axis=-1))), "PNG")


def test_views_without_crops_see_the_center_and_random_ones_see_the_whole_image():
    data = coordinates(600, 200)
    plain = CROPPED.load(data, SIZE)
    assert abs(int(plain[..., 0].min()) - 250 * (0.5 - SHARE / 6)) < 5
    mirrored = ImageAugmentation(1.0, False, 0.0, mirror=True)
    first, second = CROPPED.views(data, SIZE, mirrored, "key", [0, 1])
    assert (first == plain).all()
    assert (second == plain[:, ::-1]).all()
    views = np.stack(list(CROPPED.views(data, SIZE, ImageAugmentation(0.3, False, 0.0), "key", range(1, 80)))).astype(
        int
    )
    assert views[..., 0].min() < 10
    assert views[..., 0].max() > 240
    widths, heights = (np.ptp(views[..., channel], axis=(1, 2)) for channel in (0, 1))
    aspects = 3 * widths / heights  # in pixels of the image
    assert 0.68 < aspects.min() < 0.85
    assert 1.2 < aspects.max() < 1.42
    areas = 3 * widths * heights / 250**2
    assert 0.25 < areas.min() < 0.4
    assert areas.max() < 1.01


# --- which way: params, backbones


def way(resize: str | float | None, wanted: dict[str, float]) -> dict[str, float]:
    ranged = get_modality("image", {"value_range": [0, 4095]})
    reading = ranged.for_backbone(wanted, SimpleNamespace(resize=resize)).reading
    assert reading.pop("value_range") == [0, 4095]
    return reading


def test_params_decide_and_else_the_backbone():
    assert way(None, {}) == way("stretch", {"center_crop": 0.9}) == {}
    assert way(None, {"center_crop": 0.9}) == way("crop", {"center_crop": 0.9}) == {"center_crop": 0.9}
    assert way("crop", {}) == {"center_crop": 0.875}
    assert way(1, {"center_crop": 0.9}) == {"center_crop": 1}
    assert get_backbone("tiny").reading() == get_backbone("mobilenetv2").reading() == {}
    assert get_backbone("dinov2-small").reading() == {"center_crop": 0.875}
    assert get_backbone("siglip2-base").reading() == {}
    assert "central square of 0.875" in get_backbone("dinov2-small").in_words()


@pytest.mark.parametrize("value", ["center", 0, 1.5, True, []])
def test_another_value_is_refused(value, tmp_path):
    write_params(tmp_path / "params.yaml", **{"extract.resize": value})
    with pytest.raises(UserError) as raised:
        load_params(tmp_path / "params.yaml")
    rule = "stretch, crop or the share of the shorter side that is seen, in [0.1, 1] or null"
    assert f"params.yaml: extract.resize must be {rule}, got {value!r}" in str(raised.value)


@pytest.mark.parametrize("share", [0, 2, "half", [0.5]])
def test_a_model_with_another_share_is_refused(share):
    with pytest.raises(UserError, match=r"center_crop must be in \[0\.1, 1\]"):
        get_modality("image", {"center_crop": share})


SIDES = {"height": 224, "width": 224}
SCALING = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TIMM = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}


@pytest.mark.parametrize(
    ("name", "content", "share"),
    [
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": SIDES},
            0.875,
        ),
        ("preprocessor_config.json", {"size": 224, "do_center_crop": True, "crop_size": 224}, 1),
        ("preprocessor_config.json", {"size": 224, "do_center_crop": True, "crop_size": 256}, 1),
        ("preprocessor_config.json", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}, 0.95),
        ("preprocessor_config.json", {"size": {"shortest_edge": 384}, "crop_pct": 0.95}, None),
        ("preprocessor_config.json", {"size": SIDES}, None),
        ("preprocessor_config.json", {"size": SIDES, "do_center_crop": False, "crop_size": SIDES}, None),
        ("image_converter.json", {"config": {"scale": 1.0, "crop_to_aspect_ratio": True}}, 1),
        ("image_converter.json", {"config": {"scale": 1.0, "crop_to_aspect_ratio": False}}, None),
        ("config.json", {"pretrained_cfg": TIMM}, 0.9),
        ("config.json", {"pretrained_cfg": {**TIMM, "crop_mode": "squash"}}, None),
        ("config.json", {}, None),
    ],
)
def test_the_files_of_a_model_say_how_it_was_evaluated(name, content, share, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 224}))
    (tmp_path / name).write_text(json.dumps({"image_size": 224, **SCALING, **content}))
    assert get_backbone(str(tmp_path)).center_crop == share


def test_files_that_say_nothing_sensible_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 224}))
    found = {**SCALING, "size": [224, 224], "do_center_crop": True, "crop_size": "all"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="in a way known here how images are to be cut"):
        get_backbone(str(tmp_path))


def test_features_of_both_ways_have_different_fingerprints():
    engine = SimpleNamespace(
        name="toy", weights_sha256="", arithmetic="", device="cpu", network="", batch_size=2, feature_dim=1
    )
    inputs = [
        fingerprint_inputs(engine, {}, ViewLoader(None, get_modality("image", reading), 40))
        for reading in ({}, {"center_crop": 0.875}, {"center_crop": 1.0})
    ]
    assert "reading" not in inputs[0]  # as it was before there was a choice
    assert len({one["loading"] for one in inputs}) == 3


def test_what_is_not_seen_is_told():
    examples = pd.DataFrame({"width": [100, 300], "height": [100, 100]})
    (line,) = CROPPED.unseen(examples, SIZE)
    assert f"{(1 + 1 / 3) / 2 * 0.8**2 * 100:.0f} % of the pixels" in line
    assert "extract.resize=stretch" in line
    assert IMAGES.unseen(examples, SIZE) == get_modality("image", {"center_crop": 1}).unseen(examples[:1], SIZE) == []


# --- the shipped model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The file of a classifier that goes by what stands where."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    features = keras.layers.Flatten(name=POOL_LAYER)(keras.layers.Rescaling(1 / 255)(image))
    encoder = keras.Model({"image": image}, features, name="encoder")
    head = networks.build_head(SIZE * SIZE * 3, 3, [])
    network, file = networks.join(CROPPED.front(SIZE), encoder, head), tmp_path_factory.mktemp("model") / "model.keras"
    about = {"modality": "image", "size": SIZE, "reading": CROPPED.reading}
    networks.save(network, file, ["blue", "green", "red"], **about)
    return file


def files() -> list[bytes]:
    shapes = [(64, 40), (40, 80), (40, 40), (20, 30), (90, 41), (24, 1)]
    return [encoded(photo(*shape, seed), "PNG") for seed, shape in enumerate(shapes)]


def test_all_ways_to_run_the_shipped_model_agree(model):
    classifier = load_classifier(model)
    assert classifier.modality.reading == {"center_crop": SHARE}
    arrays = [classifier.modality.load(data, SIZE) for data in files()]
    expected = classifier.predict(classifier.modality.batch(arrays))
    whole = [classifier.network(classifier.modality.whole(data)[None].astype(np.float32)) for data in files()]
    difference = np.abs(np.concatenate(whole) - expected)
    assert difference[:-1].max() < 0.002
    assert difference[-1].max() < 0.02  # a row of pixels: Keras cuts one out before it enlarges it
    stretched = classifier.predict(classifier.modality.batch([IMAGES.load(data, SIZE) for data in files()]))
    assert np.abs(stretched[:2] - expected[:2]).min(axis=1).max() > 0.02  # it would show
    served, _ = open_network(classifier)
    assert np.allclose(served(arrays), expected, atol=1e-4)
    _, scored = ood.Scorer(classifier).score(arrays, 32)
    assert np.allclose(scored, expected, atol=1e-5)


@pytest.mark.parametrize("format", ["openvino", "saved_model"])
def test_exports_say_what_is_cut_out(format, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export(format, tmp_path / "export", model)
    assert json.loads((tmp_path / "export/reading.json").read_text()) == {"center_crop": SHARE}
    assert f"image (N, {'any, any' if format == 'saved_model' else f'{SIZE}, {SIZE}'}, 3)" in capsys.readouterr().out


def test_maps_lie_over_the_part_that_is_seen(monkeypatch):
    drawn: list[Image.Image] = []
    keep: Callable[[Image.Image], str] = lambda image: drawn.append(image) or ""  # noqa: E731
    monkeypatch.setattr(evidence, "as_html", keep)
    data = encoded(Image.new("RGB", (160, 80), "black"), "PNG")
    network = SimpleNamespace(maps=lambda arrays, classes: (np.ones((1, 1, 4, 4), np.float32), "evidence"))
    for modality, left, right in ((CROPPED, 48, 112), (IMAGES, 0, 160)):
        drawn.clear()
        legend = modality.explain([data], SIZE, np.array([[0]]), network).legend
        assert ("does not see what is pale" in legend) == (modality is CROPPED)
        _, overlay = drawn
        row = np.asarray(overlay)[40]
        hot = row[:, 0] > row[:, 2] + 50  # more red than blue
        assert np.flatnonzero(hot).tolist() == list(range(left, right))
        assert (row[~hot] > 150).all()
