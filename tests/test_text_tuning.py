"""Fine-tuning of text encoders: their two parts, and that caching and being stopped change no result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from test_fine_tune import add_head, fine_tune
from text_models import DIM, LAYERS, LONGEST, TUNED, make_table, write_bert

from headstart import paths
from headstart.backbones import get_backbone
from headstart.backbones.base import BACKBONE_LAYER, Backbone
from headstart.backbones.splitting import find_split, lower_model, select_blocks, set_trainable, upper_model, work_below
from headstart.config import load_params
from headstart.data.layouts import open_examples
from headstart.errors import UserError
from headstart.features.activations import Activations, RawExamples
from headstart.features.engines import open_engine
from headstart.features.views import ViewLoader
from headstart.modalities import Modality, get_modality
from headstart.training import networks, planning
from headstart.training.batches import Batches
from headstart.training.defaults import resolve_fine_tune


@pytest.fixture(scope="module")
def bert(extracted_texts) -> Backbone:
    return get_backbone(str(extracted_texts / "bert"))


@pytest.fixture(scope="module")
def modality(bert) -> Modality:
    return get_modality("text").with_reading(bert.reading())


@pytest.fixture(scope="module")
def with_head(tmp_path_factory, extracted_texts) -> Path:
    return add_head(tmp_path_factory.mktemp("head") / "here", extracted_texts, TUNED)


@pytest.fixture
def here(tmp_path: Path, with_head, monkeypatch) -> Path:
    """Texts with features and a head."""
    shutil.copytree(with_head, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the split


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("pooled", ["mean", "cls"])
def test_both_parts_give_the_features_of_the_whole_alone_and_padded(bert, modality, pooling, pooled):
    object.__setattr__(bert, "pooled", pooled)
    encoder = bert.build("pretrained", LONGEST, pooling, 0)
    object.__setattr__(bert, "pooled", "mean")
    base = encoder.get_layer(BACKBONE_LAYER)
    split = find_split(base, select_blocks(bert.blocks(encoder), 1), LONGEST)
    lower, upper = lower_model(encoder, split), upper_model(encoder, split)
    assert split.size == LONGEST * (DIM + 1)
    texts = [modality.load(text.encode(), LONGEST) for text in make_table(4).text]
    batch = modality.batch(texts)
    rows = np.asarray(lower(batch, training=False))
    assert rows.shape == (len(texts), split.size)
    expected = np.asarray(encoder(batch, training=False))
    for chosen in (range(len(texts)), *([n] for n in range(len(texts)))):
        parts = split.unpack(rows[list(chosen)].astype(np.float32))
        longest = max(len(texts[n]) for n in chosen)
        assert {array.shape[1] for array in parts.values()} == {longest}
        assert np.asarray(upper(parts, training=False)) == pytest.approx(expected[list(chosen)], abs=1e-5)
    alone = np.asarray(lower({"tokens": texts[0][None]}, training=False))
    assert alone == pytest.approx(rows[:1], abs=1e-5)
    assert (rows[0].reshape(LONGEST, -1)[len(texts[0]) :] == 0).all()


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_a_batch_may_be_filled_up_beyond_the_longest_text(tmp_path, engine):
    """To a multiple of 16, see Tokens.fill, if extract.size is none."""
    row, size = get_backbone(str(write_bert(tmp_path / "bert", longest=64))), 40
    modality = get_modality("text").with_reading(row.reading())
    encoder = row.build("pretrained", size, "avg", 0)
    split = find_split(encoder.get_layer(BACKBONE_LAYER), select_blocks(row.blocks(encoder), 1), size)
    batch = modality.batch([modality.load(text, size) for text in (b"card " * 50, b"bank card")])
    assert batch["tokens"].shape == (2, 48)
    lower = open_engine(engine, lambda: lower_model(encoder, split), modality.spec(size), "float32", None, "t")
    rows = lower(batch)
    assert rows.shape == (2, split.size)
    found = upper_model(encoder, split)(split.unpack(rows), training=False)
    assert np.asarray(found) == pytest.approx(np.asarray(encoder(batch, training=False)), abs=1e-5)


def test_layers_are_named_and_learn_at_rates_of_their_own(bert):
    encoder = bert.build("pretrained", LONGEST, "avg", 0)
    base, blocks = encoder.get_layer(BACKBONE_LAYER), bert.blocks(encoder)
    names = ["embeddings", *(f"transformer_layer_{number}" for number in range(LAYERS))]
    assert [block.name for block in blocks] == names
    assert [block.name for block in select_blocks(blocks, "transformer_layer_1")] == names[2:]
    assert [block.name for block in select_blocks(blocks, "embeddings")] == names
    scales = set_trainable(base, select_blocks(blocks, 2), 0.5)
    assert len(scales) == len(encoder.trainable_variables)
    assert {variable.path.split("/")[0] for variable in encoder.trainable_variables} == set(names[1:])
    assert dict(zip((v.path.split("/")[0] for v in encoder.trainable_variables), scales, strict=True)) == {
        "transformer_layer_0": 0.25,
        "transformer_layer_1": 0.5,
    }


def test_tables_of_embeddings_are_no_work(bert):
    encoder = bert.build("pretrained", LONGEST, "avg", 0)
    base, blocks = encoder.get_layer(BACKBONE_LAYER), bert.blocks(encoder)
    split = find_split(base, select_blocks(blocks, 1), LONGEST)
    assert work_below(base, split) == pytest.approx(1 - 1 / LAYERS)
    assert find_split(base, select_blocks(blocks, LAYERS), LONGEST) is None


def test_batches_are_sorted_by_tokens_and_not_by_characters(extracted_texts, modality, monkeypatch):
    monkeypatch.chdir(extracted_texts)
    manifest = pd.read_parquet(paths.MANIFEST)
    with open_examples(load_params().data, modality) as source:
        lengths = RawExamples(manifest, ViewLoader(source, modality, 10)).lengths
        expected = [min(10, len(modality.load(source.read(path), LONGEST))) for path in manifest.path]
    assert lengths.tolist() == expected
    assert not (manifest.characters.argsort() == lengths.argsort()).all()


# --- the stage


@pytest.mark.slow
def test_texts_are_never_mixed(here, monkeypatch):
    seen = []
    original = Batches.__init__

    def record(self, inputs, *arguments, **options):
        original(self, inputs, *arguments, **options)
        seen.append((type(inputs), self._mixup))

    monkeypatch.setattr(Batches, "__init__", record)
    fine_tune(trunk_cache="on", mixup=1.0, epochs=1)
    assert {kind for kind, _ in seen} == {Activations}
    assert {share for _, share in seen} == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"folds": 2, "refit": True, "confidence": 0, "epochs": 1, "trunk_cache": "on"},
        {"precision": "bfloat16", "word_dropout": 0.2, "trunk_cache": "on", "refit": True, "confidence": 0},
        {"unfreeze": "all", "layer_decay": 0.7, "word_dropout": 0.2, "ema": 0.5},
    ],
    ids=str,
)
def test_all_of_fine_tuning_works_for_texts(here, capsys, changes):
    report = fine_tune(**changes)
    assert report["settings"]["folds"] == changes.get("folds", 0)
    assert report["settings"]["views"] == (2 if "word_dropout" in changes else 0)
    assert report["settings"].get("word_dropout") == changes.get("word_dropout")
    assert report["finished"]
    assert "gave_up" in report
    classifier = networks.load_classifier(paths.MODEL)
    known = [text.encode() for text in make_table(24).text]
    batch = classifier.modality.batch([classifier.modality.load(one, classifier.size) for one in known[:8]])
    assert classifier.predict(batch).sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_gradients_are_accumulated_over_parts_of_a_batch_of_texts(here, monkeypatch, capsys):
    from headstart.framework import tf
    from headstart.training import trainer

    monkeypatch.setattr(keras.layers.Dropout, "call", lambda self, inputs, training=False: inputs)
    original, failed = trainer.Trainer.fit, []

    def fit(self, *arguments, **options):
        if not failed:
            failed.append(self.parts)
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return original(self, *arguments, **options)

    expected = fine_tune(trunk_cache="on")
    monkeypatch.setattr(trainer.Trainer, "fit", fit)
    found = fine_tune(trunk_cache="on")
    assert "accumulating gradients over 2 parts" in capsys.readouterr().out
    assert found["tuned_val_loss"] == pytest.approx(expected["tuned_val_loss"], abs=1e-4)


def test_activations_are_of_the_network_that_the_files_describe(here, monkeypatch):
    """With the same weights: a graph that OpenVINO has made of the other network is not taken for it."""
    seen = []

    def open_engine(*given: object) -> None:
        seen.append(given[-1])
        raise UserError("not needed any more")

    def find_network() -> None:
        with pytest.raises(UserError, match="not needed any more"):
            fine_tune(trunk_cache="on", epochs=1)

    monkeypatch.setattr(planning, "open_engine", open_engine)
    find_network()
    config = Path("bert/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "relu"}))
    find_network()
    one, other = seen
    assert one != other


# --- defaults


@pytest.mark.parametrize(
    ("name", "of_images", "of_texts"), [("learning_rate", 3e-4, 3e-5), ("label_smoothing", 0.1, 0)]
)
def test_what_suits_the_backbone_is_used_unless_params_say_otherwise(name, of_images, of_texts):
    settings = load_params(Path(__file__).parent.parent / "params.yaml").fine_tune
    assert getattr(settings, name) is None
    assert getattr(resolve_fine_tune(settings, get_backbone("mobilenetv2")), name) == of_images
    assert getattr(resolve_fine_tune(settings, get_backbone("bert-base")), name) == of_texts
    for asked in (0.01, 0.0) if name == "label_smoothing" else (0.01,):
        found = resolve_fine_tune(settings.model_copy(update={name: asked}), get_backbone("bert-base"))
        assert getattr(found, name) == asked


@pytest.mark.slow
def test_the_learning_rate_of_the_backbone_is_reported(here):
    assert fine_tune(learning_rate=None, epochs=1)["settings"]["learning_rate"] == 3e-5
