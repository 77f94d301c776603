"""Encoders of speech by KerasHub against the implementation at Hugging Face, see `references/make.py`.

That they do not depend on batches, can be split, exported and loaded: tests/test_sound_backbones.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras_hub", exc_type=ImportError)
from conftest import run_stages, write_params
from reference_models import expected, sounds, weights_of, write_model, write_preset
from safetensors.numpy import save_file
from sound_models import SOUNDS, write_recordings

from headstart import paths
from headstart.backbones import get_backbone, hub_networks, listing
from headstart.backbones.base import BACKBONE_LAYER
from headstart.backbones.depths import widths
from headstart.backbones.splitting import select_blocks, set_trainable
from headstart.config import load_params
from headstart.errors import UserError
from headstart.framework import keras
from headstart.modalities import get_modality

TRAINED_AT = 2  # seconds


@pytest.fixture(scope="module")
def moonshine(tmp_path_factory) -> Path:
    return write_model("moonshine", tmp_path_factory.mktemp("moonshine"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model("whisper", tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def encoder(folder) -> keras.Model:
    return get_backbone(str(folder)).build("pretrained", TRAINED_AT, "avg", 0)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def features(encoder: keras.Model, heard: list[np.ndarray]) -> np.ndarray:
    return np.asarray(encoder(get_modality("audio").batch(heard), training=False))


def outputs_of(encoder: keras.Model, names: list[str]) -> list[np.ndarray]:
    """Return what layers of the network make of all `sounds`."""
    base = encoder.get_layer(BACKBONE_LAYER)
    inside = keras.Model(encoder.inputs, base._inbound_nodes[-1].input_tensors)(get_modality("audio").batch(sounds()))
    return [
        np.asarray(one) for one in keras.Model(base.inputs, [base.get_layer(name).output for name in names])(inside)
    ]


def test_spectrum_and_blocks_are_those_of_the_reference(encoder):
    wanted = expected("whisper")
    spectrum, *states = outputs_of(encoder, ["log_mel", "block1_out", "block2_out", "block3_top"])
    ends = np.concatenate([spectrum[-1, :20], spectrum[-1, -20:]])
    np.testing.assert_allclose(ends.T, wanted["spectrum"], atol=1e-4)
    for number, state in enumerate(states, 1):
        assert_close(state[1, ::10], wanted[f"hidden/{number}"])


def test_features_are_those_of_the_reference_also_of_shorter_sounds(folder, encoder):
    row = get_backbone(str(folder))
    assert (row.modality, row.default_size) == ("audio", TRAINED_AT)
    assert_close(features(encoder, sounds()), expected("whisper")["2/features"])
    # It hears the beginning of what is longer.
    assert_close(features(row.build("pretrained", 1, "avg", 0), sounds()), expected("whisper")["1/features"])


def test_presets_of_kerashub(tmp_path, encoder):
    row = get_backbone(str(write_preset("whisper", tmp_path)))
    assert (row.modality, row.default_size) == ("audio", TRAINED_AT)
    assert_close(features(row.build("pretrained", TRAINED_AT, "avg", 0), sounds()), expected("whisper")["2/features"])
    spectrum, last = outputs_of(encoder, ["log_mel", "block3_top"])
    whole = hub_networks.from_preset(tmp_path, True)
    theirs = keras.Model(whole.input["encoder_features"], whole.output["encoder_sequence_output"])
    assert_close(np.asarray(theirs(spectrum)), last)


def test_files_with_a_classifier_or_without_decoder_have_other_names(tmp_path, folder):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    arrays = {name.removeprefix("model."): array for name, array in weights_of("whisper").items()}
    save_file(arrays | {"projector.weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    found = get_backbone(str(tmp_path)).build("pretrained", TRAINED_AT, "avg", 0)
    assert_close(features(found, sounds()), expected("whisper")["2/features"])


def test_random_weights_have_the_positions_of_a_new_whisper(folder):
    base = get_backbone(str(folder)).build("none", TRAINED_AT, "avg", 0).get_layer(BACKBONE_LAYER)
    (table,) = base.get_layer("positions").get_weights()
    assert table.shape == (100, 32)
    np.testing.assert_allclose(table[7, [0, 15, 16, 31]], [np.sin(7), 7e-4, np.cos(7), 1], atol=1e-6)


def test_blocks_and_depths(folder, encoder):
    row = get_backbone(str(folder))
    blocks = row.blocks(encoder)
    assert [block.name for block in blocks] == ["stem", "block1", "block2", "block3"]
    base = encoder.get_layer(BACKBONE_LAYER)
    set_trainable(base, select_blocks(blocks, "all"), 1.0)
    frozen = {layer.name for layer in base.layers if layer.weights and not layer.trainable_variables}
    base.trainable = False
    assert frozen == {"spectrum", "mel", "positions"}
    deep = row.build("pretrained", TRAINED_AT, "avg", 0, "half")
    assert widths(deep) == {"last": [64], "half": [64]}
    found = features(deep, sounds())
    assert_close(found[:, :64], expected("whisper")["2/features"])
    _, state = outputs_of(encoder, ["block1_out", "block2_out"])
    assert_close(found[2, 64:], np.concatenate([state[2].mean(axis=0), state[2].std(axis=0)]))


# --- Moonshine


def test_moonshine_has_blocks_and_features_of_the_reference(moonshine):
    """Also if sounds of other lengths are in the batch."""
    row, wanted = get_backbone(str(moonshine)), expected("moonshine")
    assert (row.modality, row.default_size) == ("audio", 5)
    found = row.build("pretrained", 5, "avg", 0)
    assert_close(features(found, sounds()), wanted["features"])
    assert [block.name for block in row.blocks(found)] == ["stem", "block1", "block2", "block3"]
    for number, state in enumerate(outputs_of(found, ["block1_out", "block2_out", "block3_top"]), 1):
        state = state[1, ::10][: len(wanted[f"hidden/{number}"])]
        assert_close(state, wanted[f"hidden/{number}"])
    base = found.get_layer(BACKBONE_LAYER)
    set_trainable(base, select_blocks(row.blocks(found), "all"), 1.0)
    assert len(base.trainable_variables) == len(weights_of("moonshine"))
    base.trainable = False


def test_presets_of_moonshine(tmp_path):
    row = get_backbone(str(write_preset("moonshine", tmp_path)))
    found = row.build("pretrained", 5, "avg", 0)
    assert_close(features(found, sounds()), expected("moonshine")["features"])
    whole = hub_networks.from_preset(tmp_path, True)
    inputs = [whole.input["encoder_input_values"], whole.input["encoder_padding_mask"]]
    theirs = keras.Model(inputs, whole.output["encoder_sequence_output"])
    sound = sounds()[-1][None, :, None]  # of whole steps
    (last, _) = outputs_of(found, ["block3_top_inside", "block3_top"])
    own = np.asarray(theirs([sound, np.ones(sound.shape[:2], bool)]))
    assert_close(own, last[-1:, : own.shape[1]])


def test_moonshine_at_several_depths(moonshine):
    deep = get_backbone(str(moonshine)).build("pretrained", 5, "avg", 0, "half")
    assert widths(deep) == {"last": [96], "half": [96]}
    together = features(deep, sounds())
    assert_close(together[:, :96], expected("moonshine")["features"])
    for number, sound in enumerate(sounds()):
        assert_close(features(deep, [sound])[0], together[number])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, r"config\.json: Moonshine's encoder cannot be built without hidden_size, "),
        ({"encoder_hidden_act": "relu"}, r"config\.json: encoder_hidden_act must be 'gelu' for Moonshine, got 'relu'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.8}}, r"config\.json: Moonshine's encoder must rotate an even"),
        ({"encoder_num_hidden_layers": 2}, r"an encoder of recordings of it \(.*it also has layers\.2\."),
    ],
)
def test_files_that_are_no_moonshine(change, message, moonshine, tmp_path):
    write_model("moonshine", tmp_path)
    config = json.loads((moonshine / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        get_backbone(str(tmp_path)).build("pretrained", 5, "avg", 0)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extract.pooling": "flatten"}, r"extract\.pooling must be avg or max for .*, got flatten"),
        (
            {"extract.size": 3},
            r"extract\.size must be at most 2 \(seconds\) for .*, which has no positions beyond, got 3",
        ),
        ({"weights": "a.h5"}, r"weights must be pretrained or none for .*, got 'a\.h5'"),
    ],
)
def test_params_that_do_not_fit(changes, message, folder, tmp_path):
    write_params(tmp_path / "params.yaml", **changes)
    with pytest.raises(UserError, match=message):
        get_backbone(str(folder)).check(load_params(tmp_path / "params.yaml"))


def test_without_the_extra_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_networks.importlib.util, "find_spec", lambda name: None)
    write_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"backbone whisper-tiny-en needs KerasHub, .* install .*hub"):
        get_backbone("whisper-tiny-en").check(load_params(tmp_path / "params.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, r"config\.json: Whisper's encoder cannot be built without num_mel_bins, d_model, "),
        ({"activation_function": "relu"}, r"config\.json: activation_function must be gelu for Whisper, got 'relu'"),
        ({"d_model": 48}, "KerasHub cannot make an encoder of recordings of it"),
        ({"encoder_layers": 4}, r"an encoder of recordings of it \(.*layers\.3\."),
        ({"encoder_layers": 2}, r"an encoder of recordings of it \(.*it also has layers\.2\."),
    ],
)
def test_files_that_are_no_such_network(change, message, folder, tmp_path):
    write_model("whisper", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        get_backbone(str(tmp_path)).build("pretrained", TRAINED_AT, "avg", 0)


def test_the_table_has_it(capsys):
    listing.run([])
    lines = {line.split()[0]: line.split()[1:6] for line in capsys.readouterr().out.splitlines() if "-tiny-en " in line}
    assert lines == {
        "whisper-tiny-en": ["audio", "768", "8.2", "M", "30"],
        "moonshine-tiny-en": ["audio", "576", "7.7", "M", "5"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dim"), [("whisper", 128), ("moonshine", 192)])
def test_encoders_of_speech_go_through_all_stages(family, dim, tmp_path, monkeypatch):
    folder = write_model(family, tmp_path / family)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_recordings()
    changes = {"backbone": str(folder), "weights": "pretrained", "extract.batch_size": None}
    write_params(Path("params.yaml"), **{**SOUNDS, **changes})
    run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")
    meta = json.loads(paths.FEATURES_META.read_text())
    assert (meta["kind"], meta["size"], meta["feature_dim"]) == ("audio", TRAINED_AT, dim)
    assert json.loads(paths.report("fine_tune").read_text())["settings"]["trunk_cache"]
    assert json.loads(paths.report("evaluate").read_text())["whole_images"]["mean_difference"] < 0.01
    model = keras.models.load_model(paths.MODEL)
    assert not {type(layer).__module__.split(".")[0] for layer in model._flatten_layers()} - {"keras"}
