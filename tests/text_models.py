"""A small BERT and DeBERTa with random weights, as Hugging Face keeps them, for tests; and a table of texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, run_stages, write_params

pytest.importorskip("keras_hub", exc_type=ImportError)
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer

WORDS = {
    "weather": ["sun", "rain", "wind", "storm", "cloud", "snow", "warm", "cold"],
    "money": ["bank", "card", "cash", "coin", "pay", "cost", "price", "loan"],
    "food": ["bread", "soup", "rice", "fruit", "cheese", "salt", "tea", "milk"],
}
COMMON = ["the", "a", "is", "was", "my", "in", "of", "and", "it", "very"]
DIM, HEADS, LAYERS, INNER, LONGEST = 12, 2, 2, 16, 24


def write_bert(folder: Path, seed: int = 0, longest: int = LONGEST, **config: object) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a BERT; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [letter for one in "abcdefghijklmnopqrstuvwxyz!.?" for letter in (one, f"##{one}")]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *COMMON,
        *(word for words in WORDS.values() for word in words),
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    tokenizer.enable_truncation(7)  # as many have it, for their own purposes
    tokenizer.enable_padding(length=7)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (len(vocabulary), DIM),
        "embeddings.position_embeddings.weight": (longest, DIM),
        "embeddings.token_type_embeddings.weight": (2, DIM),
        "pooler.dense.weight": (DIM, DIM),
        "pooler.dense.bias": (DIM,),
    }
    norms = ["embeddings"]
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}."
        dense = dict.fromkeys(("attention.self.query", "attention.self.key", "attention.self.value"), (DIM, DIM))
        dense |= {
            "attention.output.dense": (DIM, DIM),
            "intermediate.dense": (INNER, DIM),
            "output.dense": (DIM, INNER),
        }
        for name, shape in dense.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        norms += [f"{layer}attention.output", f"{layer}output"]
    spread = {"embeddings.word_embeddings.weight": 1.0}
    weights = {name: rng.normal(0, spread.get(name, 0.2), shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.LayerNorm.weight"] = rng.uniform(0.5, 1.5, DIM).astype(np.float32)
        weights[f"{name}.LayerNorm.bias"] = rng.normal(0, 0.1, DIM).astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    known = {
        "model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": DIM, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "max_position_embeddings": longest,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(known | config), encoding="utf-8")
    return folder


def write_deberta(folder: Path, **config: object) -> Path:
    """Write config.json, model.safetensors and spm.model of a DeBERTa V3 with random weights; returns the folder."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentences = [" ".join(words) for words in (*WORDS.values(), COMMON)] * 20
    special = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(folder / "spm"), vocab_size=45, minloglevel=2,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, **special,
    )  # fmt: skip
    (folder / "spm.vocab").unlink()
    rng, buckets = np.random.default_rng(0), 6
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (48, DIM)}
    shapes["encoder.rel_embeddings.weight"] = (2 * buckets, DIM)
    norms = ["embeddings", "encoder"]
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}."
        for name in ("query", "key", "value"):
            shapes[f"{layer}attention.self.{name}_proj.weight"] = (DIM, DIM)
        shapes[f"{layer}attention.output.dense.weight"] = (DIM, DIM)
        shapes[f"{layer}intermediate.dense.weight"] = (INNER, DIM)
        shapes[f"{layer}output.dense.weight"] = (DIM, INNER)
        norms += [f"{layer}attention.output", f"{layer}output"]
    weights = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, array in list(weights.items()):
        if name.startswith("encoder.layer"):
            weights[name.replace("weight", "bias")] = rng.normal(0, 0.2, len(array)).astype(np.float32)
    for name in norms:
        weights[f"{name}.LayerNorm.weight"] = rng.uniform(0.5, 1.5, DIM).astype(np.float32)
        weights[f"{name}.LayerNorm.bias"] = rng.normal(0, 0.1, DIM).astype(np.float32)
    save_file({f"deberta.{name}": array for name, array in weights.items()}, folder / "model.safetensors")
    known = {
        "model_type": "deberta-v2", "vocab_size": 48, "hidden_size": DIM, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "max_position_embeddings": LONGEST,
        "position_buckets": buckets, "relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True,
        "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0, "hidden_act": "gelu",
        "layer_norm_eps": 1e-7, "max_relative_positions": -1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(known | config), encoding="utf-8")
    return folder


# Params of a run of seconds on a table of texts, see `write_texts`.
TEXTS = {**SMALL, "data.source": "texts.csv", "backbone": "./bert", "extract.size": LONGEST}

# More of them, with which fine-tuning is selected.
TUNED = {"train_head.hidden": [], "train_head.dropout": 0, "train_head.epochs": 5, "fine_tune.learning_rate": 0.002}
TUNED |= {"fine_tune.epochs": 3, "fine_tune.unfreeze": 1}


def write_texts() -> None:
    """Put such a table, and a BERT, into the current folder."""
    write_bert(Path("bert"), hidden_dropout_prob=0.1)
    make_table(24).to_csv("texts.csv", index=False)


def finish(folder: Path, table: pd.DataFrame) -> None:
    """Put a BERT, a table of texts and what all five stages make of them into `folder`, which is the current one."""
    write_bert(folder / "bert")
    table.to_csv(folder / "words.csv", index=False)
    changes = {"data.source": "words.csv", "backbone": "./bert", "extract.size": LONGEST, "extract.batch_size": None}
    changes |= {"train_head.hidden": None, "train_head.epochs": 20, "train_head.learning_rate": 0.001}
    changes |= {"fine_tune.unfreeze": "none"}
    write_params(Path("params.yaml"), **{**SMALL, **changes})
    run_stages("prepare", "extract", "train_head", "fine_tune", "evaluate")


EVIL = '<img src=x onerror="1"> bank card'


def make_split_table() -> pd.DataFrame:
    """Return such a table with a column of splits, and EVIL under a wrong label in test."""
    table = make_table()
    table.loc[len(table)] = [EVIL, "food"]  # an error, unless the network is odd
    table["split"] = "train"
    table.loc[table.index % 4 == 0, "split"] = "test"
    table.loc[table.index % 4 == 1, "split"] = "val"
    table.loc[table.index[-1], "split"] = "test"
    return table


def make_table(count: int = 30, seed: int = 0) -> pd.DataFrame:
    """Return a table text,label of `count` different texts a class, mostly of its words, of three to twelve words."""
    rng = np.random.default_rng(seed)
    rows = set()
    for label, words in WORDS.items():
        found: set[str] = set()
        while len(found) < count:
            length = rng.integers(3, 13)
            found.add(" ".join(rng.choice(words if rng.random() < 0.8 else COMMON) for _ in range(length)))
        rows |= {(text, label) for text in found}
    return pd.DataFrame(sorted(rows), columns=["text", "label"]).drop_duplicates("text")
