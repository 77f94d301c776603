"""DeBERTa V3, where KerasHub falls short: it has no converter of Hugging Face's files, and cannot load saved models.

Its vocabulary is one of SentencePiece, of which a tokenizer.json is made.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import HUB_EXTRA, UserError

if TYPE_CHECKING:
    import keras

MODEL_TYPE = "deberta-v2"  # as config.json by Hugging Face calls V2 and V3
# What KerasHub takes for granted of such a file; the first value is what it means if the key is missing.
_ASSUMED: dict[str, tuple[Any, ...]] = {
    "relative_attention": (False, True),
    "share_att_key": (False, True),
    "pos_att_type": ([], ["p2c", "c2p"], ["c2p", "p2c"], "p2c|c2p", "c2p|p2c"),
    "norm_rel_ebd": ("none", "layer_norm"),
    "position_biased_input": (True, False),
    "layer_norm_eps": (1e-7, 1e-7),
    "hidden_act": ("gelu", "gelu"),
    "max_relative_positions": (-1, -1),
    "type_vocab_size": (0, 0),
    "conv_kernel_size": (0, 0),
}


def convert(file: Path, config: dict[str, Any], weights: Path | None) -> keras.Model:
    """Build KerasHub's backbone of what Hugging Face's config.json says.

    Args:
        file: the config.json, for messages.
        weights: model.safetensors; None: random ones.

    Raises:
        UserError: if KerasHub has no such network.
    """
    for key, (default, *allowed) in _ASSUMED.items():
        if config.get(key, default) not in allowed:
            raise UserError(f"{file}: {key} must be {allowed[0]!r} for KerasHub, got {config.get(key, default)!r}")
    from headstart.framework import keras

    dtype = keras.config.dtype_policy().name
    import keras_hub

    network = keras_hub.models.DebertaV3Backbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_sequence_length=config["max_position_embeddings"],
        bucket_size=config["position_buckets"],
        dropout=config.get("hidden_dropout_prob", 0.1),
        dtype=dtype,
    )
    if weights:
        from safetensors.numpy import load_file

        arrays = {name.removeprefix("deberta."): array for name, array in load_file(weights).items()}
        ordered = list(_in_order(arrays, network.num_layers))
        sizes = [variable.shape for variable in network.weights]
        network.set_weights([array.reshape(size) for array, size in zip(ordered, sizes, strict=True)])
    return network


def _in_order(arrays: dict[str, np.ndarray], layers: int) -> Iterator[np.ndarray]:
    """Yield the weights in the order of KerasHub's; PyTorch has the kernels of dense layers transposed."""
    yield arrays["embeddings.word_embeddings.weight"]
    yield from _pair(arrays, "embeddings.LayerNorm")
    yield arrays["encoder.rel_embeddings.weight"]
    yield from _pair(arrays, "encoder.LayerNorm")
    dense = [f"attention.self.{name}_proj" for name in ("query", "key", "value")] + ["attention.output.dense"]
    norms, inner = ["attention.output.LayerNorm", "output.LayerNorm"], ["intermediate.dense", "output.dense"]
    for number in range(layers):
        for name in (*dense, *norms, *inner):
            yield from _pair(arrays, f"encoder.layer.{number}.{name}")


def _pair(arrays: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]


def make_savable(network: keras.Model) -> keras.Model:
    """Return the same network, with layers that Keras can load again: token_ids, padding_mask (N, t) -> (N, t, dim).

    KerasHub's own layer for the embeddings of distances builds a part of itself only when it is called, which is too
    late for weights that are loaded. Here an Embedding and a LayerNormalization do what it does.
    """
    from headstart.framework import keras

    ops, relative = keras.ops, network.relative_embeddings
    tokens, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    sequence = tokens
    for layer in (network.token_embedding, network.embeddings_layer_norm, network.embeddings_dropout):
        sequence = _copy(layer)(sequence)
    dtype, count = relative.dtype_policy, 2 * relative.bucket_size
    table = keras.layers.Embedding(count, relative.hidden_dim, dtype=dtype, name="distances")
    norm = keras.layers.LayerNormalization(epsilon=relative.layer_norm_epsilon, dtype=dtype, name="distances_norm")
    # A zero for each text that only its tokens tell: OpenVINO 2026 is wrong if it finds a constant here, and batches
    # of one size are computed by several threads.
    zeros = ops.minimum(ops.max(tokens, axis=1, keepdims=True), 0)
    distances = norm(table(ops.cumsum(ops.repeat(zeros + 1, count, axis=1), axis=1) - 1))
    for layer in network.transformer_layers:
        sequence = _copy(layer)(sequence, rel_embeddings=distances, padding_mask=mask)
    made = keras.Model([tokens, mask], sequence)
    for layer in network.layers:
        if layer is not relative and layer.weights:
            made.get_layer(layer.name).set_weights(layer.get_weights())
    values, *scales = relative.get_weights()
    table.set_weights([values])
    norm.set_weights(scales)
    return made


def _copy(layer: keras.Layer) -> keras.Layer:
    return type(layer).from_config(layer.get_config())


def make_tokenizer(file: Path) -> str:
    """Return the content of a tokenizer.json of a vocabulary by SentencePiece: [CLS], the text, [SEP].

    Raises:
        UserError: if the file is another kind of vocabulary.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if not importlib.util.find_spec("sentencepiece"):
        raise UserError(f"{file} needs the library sentencepiece, which is not installed; install {HUB_EXTRA}")
    formats: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    found = formats.ModelProto.FromString(file.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in found.pieces]
    numbers = {name: number for number, (name, _) in enumerate(pieces)}
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    if found.trainer_spec.model_type != formats.TrainerSpec.UNIGRAM or not set(names) <= set(numbers):
        raise UserError(
            f"{file}: only vocabularies with {', '.join(names)} and without merges are read; give tokenizer.json"
        )
    tokenizer = Tokenizer(models.Unigram(pieces, numbers["[UNK]"], byte_fallback=False))
    changes = found.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(changes)] if changes else []),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(names)
    around = [(name, numbers[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return tokenizer.to_str()
