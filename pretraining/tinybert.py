"""Distil the backbone `tinybert` from MiniLM on docstrings, and write its folder.

The student learns the sentence vectors of the teacher. Its vocabulary is a part of the teacher's, and its embeddings
start as what the teacher makes of each token alone, reduced by PCA (as Model2Vec does, https://github.com/MinishLab/model2vec).

Reads:   the docstrings of the packages in requirements.lock; minilm-l6 (`headstart backbones fetch minilm-l6`).
Writes:  pretraining/tinybert/, or --out: config.json, model.safetensors (float16), tokenizer.json.
Command: nice python -m pretraining.tinybert [--steps 450] [--texts 5000] [--static] [--out FOLDER]

With --static it also trains a static embedding, the mean of a vector for each token, to compare with: FOLDER-static.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tqdm import tqdm

from headstart.backbones import get_backbone
from headstart.features.engines import open_engine
from headstart.framework import keras, tf
from headstart.modalities import get_modality
from pretraining.docstrings import docstrings, paragraphs

HERE = Path(__file__).parent
TEACHER = "minilm-l6"
PACKAGES = (
    "aiohttp",
    "keras",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "pydantic",
    "scikit-learn",
    "scipy",
    "sqlalchemy",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 7400  # tokens
COMMON = 5500  # of these, the most frequent in English, by the order of BERT's vocabulary
HIDDEN, HEADS, INTERMEDIATE, LONGEST = 160, 5, 640, 128
TOKENS = 32  # of a text in training
BATCH = 192
SALAD = 0.4  # share of the texts in which words are random ones, so that all of the vocabulary is trained
LEARNING_RATE, EMBEDDING_SPREAD = 2e-3, 0.05


def collect(count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` different paragraphs of docstrings, in random order."""
    found = {text for package in PACKAGES for one in docstrings(package) for text in paragraphs(one)}
    texts = sorted(found)
    return [texts[place] for place in rng.permutation(len(texts))[:count]]


def choose_vocabulary(teacher: Tokenizer, texts: list[str]) -> dict[str, int]:
    """Return the student's tokens: special ones, characters of ASCII, those common in English, then in `texts`."""
    ids = teacher.get_vocab()
    by_id = sorted((token for token in ids if token not in SPECIAL and token.isascii()), key=lambda token: ids[token])
    by_id = [token for token in by_id if not token.startswith("[unused")]
    single = [token for token in by_id if len(token.removeprefix("##")) == 1]
    counts = Counter(token for encoding in teacher.encode_batch(texts) for token in encoding.tokens)
    frequent = sorted(by_id, key=lambda token: (-counts[token], ids[token]))
    chosen = dict.fromkeys([*SPECIAL, *single, *by_id[:COMMON], *frequent])
    return {token: number for number, token in enumerate(list(chosen)[:VOCABULARY])}


def make_salads(texts: list[str], vocabulary: dict[str, int], rng: np.random.Generator) -> list[str]:
    """Return texts in which about half of the words are random ones, and short phrases of random words."""
    words = [token for token in vocabulary if token.isalpha() and len(token) > 2]
    salads = []
    for text in texts:
        kept = text.split()[: rng.integers(3, 24)]
        if rng.random() < 0.3:
            kept = kept[: rng.integers(1, 6)]
        salads.append(" ".join(words[rng.integers(len(words))] if rng.random() < 0.5 else word for word in kept))
    return salads


class Teacher:
    """Sentence vectors of the teacher, of unit length."""

    def __init__(self) -> None:
        row = get_backbone(TEACHER)
        self.modality = get_modality(row.modality, row.reading())
        self.tokenizer = Tokenizer.from_str(row.reading()["tokenizer"])
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(TOKENS)
        spec = self.modality.spec(TOKENS)
        self._engine = open_engine(
            "openvino", lambda: row.build("pretrained", TOKENS, "avg", 0), spec, "float32", None, "teacher"
        )

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return (n, dim) float32."""
        tokens = [np.array(encoding.ids, np.int32) for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(tokens)), key=lambda place: -len(tokens[place]))
        size = self._engine.batch_size
        batches = [
            self.modality.batch([tokens[place] for place in order[start : start + size]])
            for start in range(0, len(order), size)
        ]
        bar = tqdm(self._engine.map(batches), total=len(batches), desc="teacher", mininterval=10)
        vectors = np.concatenate(list(bar))
        if not np.isfinite(vectors).all():
            raise ValueError(f"{(~np.isfinite(vectors)).any(axis=1).sum()} of the teacher's vectors are not finite")
        result = np.empty_like(vectors)
        result[order] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return result


def reduce(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the principal components of (n, d) vectors, (n, dim), and kernel and bias that lead back from them.

    Back from components whose spread is 1, as after LayerNorm.
    """
    mean = vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(vectors - mean, full_matrices=False)
    reduced = (vectors - mean) @ axes[:dim].T
    spread = reduced.std()
    return (reduced / spread * EMBEDDING_SPREAD).astype(np.float32), axes[:dim] * spread, mean


def build_student(layers: int, alone: np.ndarray) -> tuple[keras.Model, keras.Model]:
    """Return KerasHub's BERT, and the network to train: tokens (N, t) -> (N, dim of the teacher), of unit length.

    Args:
        alone: what the teacher makes of each token of the student, (n, dim of the teacher).
    """
    import keras_hub

    embeddings, kernel, bias = reduce(alone, HIDDEN)
    network = keras_hub.models.BertBackbone(
        vocabulary_size=len(embeddings), num_layers=layers, num_heads=HEADS, hidden_dim=HIDDEN,
        intermediate_dim=INTERMEDIATE, max_sequence_length=LONGEST, dropout=0.0,
    )  # fmt: skip
    network.get_layer("token_embedding").embeddings.assign(embeddings)
    for name in ("position_embedding", "segment_embedding"):
        for weights in network.get_layer(name).weights:
            weights.assign(np.zeros(weights.shape))  # positions beyond those of training then do no harm
    for layer in network.transformer_layers:
        layer.activation = layer._feedforward_intermediate_dense.activation = keras.activations.gelu
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    mask = keras.ops.not_equal(tokens, 0)
    inputs = {"token_ids": tokens, "segment_ids": keras.ops.zeros_like(tokens)}
    inputs["padding_mask"] = keras.ops.cast(mask, "int32")
    below = keras.Model(network.inputs, network.output["sequence_output"])
    sequence = below([inputs[tensor.name] for tensor in below.inputs])
    pooled = keras.layers.GlobalAveragePooling1D()(sequence, mask=mask)
    back = keras.layers.Dense(kernel.shape[1])
    vectors = back(pooled)
    back.set_weights([kernel, bias])
    return network, keras.Model(tokens, keras.layers.UnitNormalization()(vectors))


def train(student: keras.Model, tokens: list[np.ndarray], targets: np.ndarray, steps: int, seed: int) -> None:
    """Train it to give the targets; batches are of texts of similar length."""
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=LEARNING_RATE, warmup_steps=steps // 20)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0)
    optimizer.build(student.trainable_variables)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, targets.shape[1]), tf.float32)]
    )
    def step(batch: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            vectors = student(batch, training=True)
            cosine = tf.reduce_mean(1 - tf.reduce_sum(vectors * target, axis=1))
            # How texts are alike, too: https://arxiv.org/abs/1904.05068
            alike = tf.reduce_mean((vectors @ tf.transpose(vectors) - target @ tf.transpose(target)) ** 2)
            loss = cosine + 10 * alike
        optimizer.apply(tape.gradient(loss, student.trainable_variables), student.trainable_variables)
        return cosine

    rng, lengths = np.random.default_rng(seed), np.array(list(map(len, tokens)))
    queue: list[np.ndarray] = []
    bar, recent = tqdm(range(steps), desc="student", mininterval=10), 0.0
    for number in bar:
        if not queue:
            order = rng.permutation(len(tokens))
            pools = np.array_split(order, max(1, len(order) // (BATCH * 32)))
            sorted_pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
            queue = [batch for pool in sorted_pools for batch in np.array_split(pool, len(pool) // BATCH)]
            rng.shuffle(queue)  # type: ignore[arg-type]
        rows = queue.pop()
        batch = np.zeros((len(rows), lengths[rows].max()), np.int32)
        for place, row in enumerate(rows):
            batch[place, : lengths[row]] = tokens[row]
        loss = float(step(batch, targets[rows]))
        recent = loss if number == 0 else 0.98 * recent + 0.02 * loss
        if number % 50 == 0:
            bar.set_postfix(cosine=f"{1 - recent:.4f}")
    print(f"cosine to the teacher: {1 - recent:.4f}")


def to_safetensors(network: Any) -> dict[str, np.ndarray]:
    """Return the weights of KerasHub's BERT under the names and in the shapes of Hugging Face, float16."""
    weights: dict[str, Any] = {
        "embeddings.word_embeddings.weight": network.get_layer("token_embedding").embeddings,
        "embeddings.position_embeddings.weight": network.get_layer("position_embedding").position_embeddings,
        "embeddings.token_type_embeddings.weight": network.get_layer("segment_embedding").embeddings,
        "embeddings.LayerNorm.weight": network.get_layer("embeddings_layer_norm").gamma,
        "embeddings.LayerNorm.bias": network.get_layer("embeddings_layer_norm").beta,
        "pooler.dense.weight": np.zeros((HIDDEN, HIDDEN)),  # nobody reads it
        "pooler.dense.bias": np.zeros(HIDDEN),
    }
    for number, layer in enumerate(network.transformer_layers):
        prefix, attention = f"encoder.layer.{number}.", layer._self_attention_layer
        for name in ("query", "key", "value"):
            dense = getattr(attention, f"{name}_dense")
            weights[f"{prefix}attention.self.{name}.weight"] = np.reshape(dense.kernel, (HIDDEN, HIDDEN)).T
            weights[f"{prefix}attention.self.{name}.bias"] = np.reshape(dense.bias, HIDDEN)
        output = attention.output_dense
        weights[f"{prefix}attention.output.dense.weight"] = np.reshape(output.kernel, (HIDDEN, HIDDEN)).T
        weights[f"{prefix}attention.output.dense.bias"] = output.bias
        for name, dense in (
            ("intermediate", layer._feedforward_intermediate_dense),
            ("output", layer._feedforward_output_dense),
        ):
            weights[f"{prefix}{name}.dense.weight"] = np.transpose(dense.kernel)
            weights[f"{prefix}{name}.dense.bias"] = dense.bias
        for name, norm in (
            ("attention.output", layer._self_attention_layer_norm),
            ("output", layer._feedforward_layer_norm),
        ):
            weights[f"{prefix}{name}.LayerNorm.weight"] = norm.gamma
            weights[f"{prefix}{name}.LayerNorm.bias"] = norm.beta
    return {name: np.ascontiguousarray(np.asarray(array), np.float16) for name, array in weights.items()}


def save(network: Any, tokenizer: BertWordPieceTokenizer, folder: Path) -> None:
    """Write the folder as Hugging Face has it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_safetensors(network), folder / "model.safetensors")
    config = {
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "layer_norm_eps": 1e-12, "max_position_embeddings": LONGEST, "num_attention_heads": HEADS, "pad_token_id": 0,
        "num_hidden_layers": len(network.transformer_layers), "type_vocab_size": 2,
        "vocab_size": tokenizer.get_vocab_size(),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def main() -> None:
    """Distil and write."""
    parser = argparse.ArgumentParser(description="Distil tinybert from MiniLM.")
    parser.add_argument("--layers", type=int, default=2, help="of the transformer")
    parser.add_argument("--static", action="store_true", help="also a static embedding of the same vocabulary")
    parser.add_argument("--steps", type=int, default=450, help=f"batches of {BATCH} texts")
    parser.add_argument("--texts", type=int, default=5_000, help="paragraphs of docstrings")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "tinybert", metavar="FOLDER")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    teacher, texts = Teacher(), collect(args.texts, rng)
    vocabulary = choose_vocabulary(teacher.tokenizer, texts)
    tokenizer = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    texts += make_salads(texts[: int(SALAD * len(texts))], vocabulary, rng)
    alone = teacher.encode([token.removeprefix("##") for token in vocabulary])
    targets = teacher.encode(texts)
    tokenizer.enable_truncation(TOKENS)
    tokens = [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(texts)]
    tokenizer.no_truncation()
    kinds = {args.layers: args.out} | ({0: args.out.with_name(f"{args.out.name}-static")} if args.static else {})
    for layers, folder in kinds.items():
        network, student = build_student(layers, alone)
        train(student, tokens, targets, args.steps, args.seed)
        save(network, tokenizer, folder)


if __name__ == "__main__":
    main()
