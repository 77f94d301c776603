"""DeBERTa V3, of whose network, converter and tokenizer a part is ours: against transformers and SentencePiece."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from text_models import LONGEST, write_deberta

from headstart import model_archive
from headstart.backbones import get_backbone, hub_downloads
from headstart.backbones.splitting import find_split, select_blocks
from headstart.errors import UserError
from headstart.features.engines import open_engine
from headstart.modalities import get_modality
from headstart.modalities.text.probes import SENTENCES
from headstart.serving.runtimes import FORMATS

sentencepiece = pytest.importorskip("sentencepiece")

# Texts of 24, 9, 17 and 3 tokens, and the mean of what transformers 5.24 gives for each, with the same weights:
# DebertaV2Model(DebertaV2Config(**config)).eval()(tokens, attention_mask=tokens != 0).last_hidden_state
LENGTHS = [24, 9, 17, 3]
TOKENS = np.random.default_rng(1).integers(4, 45, (4, LONGEST)).astype(np.int32)
TOKENS[np.arange(LONGEST) >= np.array(LENGTHS)[:, None]] = 0
FEATURES = [
    [-0.5506979, 0.2045823, -0.9119646, -0.8510624, -1.1697684, 0.4575817,
     0.0601157, 0.6714111, 0.7924472, 1.5406945, -0.4083441, 0.1292327],
    [-0.1249029, -0.04862, -1.7038282, 0.1137496, -0.6370883, -0.5997066,
     -1.3696137, 1.4201135, 0.9083417, -0.4772609, -0.4115607, 1.6040901],
    [-0.7020538, 0.0827232, -0.6969562, -0.9946331, -1.3311576, 0.8654338,
     0.244582, 0.6964069, 0.7704492, 2.2085502, -0.6343711, 0.0477525],
    [-0.269586, 0.4331773, -0.1720153, -0.9245854, -1.5475698, 0.9655688,
     0.5229596, 0.1341997, 0.2397646, 2.6377929, -0.4738143, -0.7582328],
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_deberta(tmp_path_factory.mktemp("models") / "deberta")


@pytest.fixture(scope="module")
def encoder(folder) -> keras.Model:
    return get_backbone(str(folder)).build("pretrained", LONGEST, "avg", 0)


def error_of(features: np.ndarray) -> float:
    return np.abs(features - FEATURES).max() / np.abs(FEATURES).max()


def test_features_are_those_of_transformers(encoder):
    assert error_of(encoder.predict_on_batch({"tokens": TOKENS})) < 1e-6


def test_openvino_computes_them_too_in_streams(folder, encoder):
    """With a constant in the place of the zeros by the tokens it was wrong by a tenth."""
    spec = get_modality("text", get_backbone(str(folder)).reading()).spec(LONGEST)
    engine = open_engine("openvino", lambda: encoder, spec, "float32", None, "t")
    together = engine({"tokens": TOKENS})
    alone = [engine({"tokens": row[None, :length]}) for row, length in zip(TOKENS, LENGTHS, strict=True)]
    assert error_of(together) < 1e-6
    assert (together == np.concatenate(alone)).all()


@pytest.mark.slow
def test_a_saved_model_loads_with_keras_and_keras_hub_alone(encoder, tmp_path):
    encoder.save(tmp_path / "model.keras")
    assert model_archive.read_texts(tmp_path / "model.keras")  # it names no code
    np.save(tmp_path / "tokens.npy", TOKENS)
    code = """
import keras, keras_hub, numpy, sys
model = keras.models.load_model("model.keras")
numpy.save("found.npy", model.predict({"tokens": numpy.load("tokens.npy")}, verbose=0))
assert "headstart" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert error_of(np.load(tmp_path / "found.npy")) < 1e-6


@pytest.mark.slow  # test_openvino_computes_them_too_in_streams holds the operations
@pytest.mark.parametrize("name", ["onnx", "openvino", "saved_model"])
def test_exports_answer_as_keras_does(encoder, tmp_path, name):
    form = FORMATS[name]
    for package in form.packages:
        pytest.importorskip(package)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    model = keras.Model(tokens, encoder({"tokens": tokens}))
    model(TOKENS[:1])
    form.write(model, tmp_path / form.file)
    assert error_of(form.run(tmp_path / form.file, TOKENS)) < 1e-6


def test_tokens_are_those_of_sentencepiece(folder):
    modality = get_modality("text", get_backbone(str(folder)).reading())
    known = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    for text in ("the bank is warm", " soup  and\ttea\n", "My CARD: ½ of ﬁve™ !", *SENTENCES):
        found = modality.load(text.encode(), LONGEST)
        expected = [known.bos_id(), *known.encode(text)[: LONGEST - 2], known.eos_id()]
        assert found.tolist() == expected, text


def test_presets_of_keras_hub_are_read(folder, encoder, tmp_path):
    """In their own folders: other names of weights, settings and vocabulary."""
    from headstart.backbones.deberta import convert
    from headstart.backbones.hub_networks import read_config

    preset = tmp_path / "preset"
    convert(folder / "config.json", read_config(folder), folder / "model.safetensors").save_to_preset(str(preset))
    (preset / "assets/tokenizer").mkdir(parents=True)
    (preset / "assets/tokenizer/vocabulary.spm").write_bytes((folder / "spm.model").read_bytes())
    row = get_backbone(str(preset))
    assert row.reading() == get_backbone(str(folder)).reading()
    assert error_of(row.build("pretrained", LONGEST, "avg", 0).predict_on_batch({"tokens": TOKENS})) < 1e-6
    assert get_backbone("deberta-v3-small").origin.names(tmp_path)[-1] == "assets/tokenizer/vocabulary.spm"


def test_its_layers_are_named_and_no_activations_are_cached(folder, encoder):
    """The embeddings of all distances would pass with them, for each text."""
    blocks = get_backbone(str(folder)).blocks(encoder)
    names = ["embeddings", *(f"disentangled_attention_encoder_layer_{number}" for number in range(2))]
    assert [block.name for block in blocks] == names
    assert find_split(encoder.get_layer("backbone"), select_blocks(blocks, 1), LONGEST) is None


def test_other_networks_are_refused(tmp_path, folder, monkeypatch):
    other = write_deberta(tmp_path / "other", position_biased_input=True)
    with pytest.raises(UserError, match=r"config\.json: position_biased_input must be False for KerasHub, got True"):
        get_backbone(str(other)).build("pretrained", LONGEST, "avg", 0)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(hub_downloads, "find_ways", lambda origin: pytest.fail("nothing is to be downloaded"))
    with pytest.raises(UserError, match=r"'hf:microsoft/deberta-v3-small': .* as a pickle, .*; use deberta-v3-small"):
        get_backbone("hf:microsoft/deberta-v3-small").reading()
