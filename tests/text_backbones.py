"""A small text encoder with random weights, and texts of three classes, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TOPICS = {
    "card": "card lost arrived delivery post chip contactless",
    "money": "money transfer account pending sent receive balance",
    "rate": "exchange rate currency euro dollar fee conversion",
}
COMMON = "why is my the not please help what when has been a to for it"
LAYERS, DIM = 4, 16


def make_bert(folder: Path) -> Path:
    """Write the files of a BERT of LAYERS layers as Hugging Face has them, but for the weights; returns the folder."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = " ".join([*TOPICS.values(), COMMON]).split()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{one}" for one in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)))
    config = {
        "model_type": "bert",
        "vocab_size": len(dict.fromkeys(tokens)),
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()  # not read with `weights: none`
    return folder


def make_texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return `count` texts of each class with their labels, of 2 to 20 words."""
    random, common, found = np.random.default_rng(seed), COMMON.split(), []
    for label, topic in TOPICS.items():
        for _ in range(count):
            words = [*random.choice(topic.split(), 2), *random.choice(common, random.integers(0, 19))]
            found.append((" ".join(random.permutation(words)), label))
    return found
