"""Where a vision transformer looks for a class: its attention, and attention rollout."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

pytest.importorskip("keras_hub", exc_type=ImportError)
import tensorflow as tf
from reference_models import expected, images, write_model

from headstart.backbones import attentions, get_backbone
from headstart.backbones.attentions import find_chain
from headstart.backbones.hub_images import CLASS, MEAN
from headstart.modalities import get_modality
from headstart.report import attention
from headstart.report.rollout import rollout
from headstart.training import networks

FAMILIES = ("clip", "deit", "dinov2", "dinov2-registers", "dinov3", "dinov3-gated", "siglip", "vit")
CLASSES = np.array([[0, 2], [1, 2], [1, 0]])


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("models"), {}

    def build(family: str, **changes: str) -> keras.Model:
        if (key := f"{family} {changes}") not in made:
            row = dataclasses.replace(get_backbone(str(write_model(family, root / family))), **changes)
            made[key] = row.build("pretrained", row.default_size, "avg", 0, "half")
        return made[key]

    return build


def batch_for(encoder: keras.Model) -> dict[str, np.ndarray]:
    return {"image": images(encoder.inputs[0].shape[1]).astype(np.float32)}


def head_for(encoder: keras.Model) -> keras.Model:
    keras.utils.set_random_seed(0)
    return networks.build_head(encoder.output_shape[1], 3, [])


def classifier_of(encoder: keras.Model) -> networks.Classifier:
    modality, size = get_modality("image"), encoder.inputs[0].shape[1]
    network = networks.join(modality.front(size), encoder, head_for(encoder))
    return networks.Classifier(network, list("abc"), modality, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_that_of_the_reference(family, encoder_of):
    encoder = encoder_of(family)
    chain, wanted = find_chain(encoder), expected(family)
    tokens = chain.below(batch_for(encoder))
    for number, block in enumerate(chain.blocks, 1):
        tokens, found = block(tokens)
        assert np.asarray(found).sum(axis=-1) == pytest.approx(1, abs=1e-5)
        state = wanted[f"hidden/{number}"]
        assert np.abs(np.asarray(tokens)[0] - state).max() < 1e-5 * np.abs(state).max()
        if number == 2:
            assert np.asarray(found)[0][:, [0, -1]] == pytest.approx(wanted["attention/2"], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rollout_is_what_the_whole_matrices_give(family, encoder_of):
    """Computed as in the paper: all layers at once, matrices of tokens by tokens, in NumPy."""
    encoder = encoder_of(family)
    chain, batch, head = find_chain(encoder), batch_for(encoder), head_for(encoder)
    logits_of = networks.without_softmax(head)
    found = rollout(encoder, chain, logits_of, batch, CLASSES)
    assert found.shape == (3, 2, *chain.grid)
    assert find_chain(encoder).grid == ((5, 5))
    kernel = head.get_layer(networks.LOGITS_LAYER).get_weights()[0].astype(np.float64)
    for place in range(2):
        with tf.GradientTape() as tape:
            states, seen = [tf.identity(chain.below(batch))], []
            tape.watch(states)
            for block in chain.blocks:
                tokens, one = block(states[-1])
                states.append(tokens)
                seen.append(one)
            pooled = [pool(states[after]) for after, pool in chain.pools]
            vectors = [vector for vector, _ in pooled]
            logits = logits_of(tf.concat(vectors, -1))
            score = tf.gather(logits, CLASSES[:, place], batch_dims=1, axis=1) - tf.reduce_mean(logits, axis=1)
        pools = [one for _, one in pooled if one is not None]
        gradients = tape.gradient(score, seen + pools)
        weigh = lambda a, g: np.maximum(np.asarray(a, np.float64) * np.asarray(g), 0).mean(axis=1)  # noqa: E731
        matrices = [weigh(a, g) for a, g in zip(seen + pools, gradients, strict=True)]
        count, total = states[0].shape[1], np.zeros((3, states[0].shape[1]))
        slope = kernel[:, CLASSES[:, place]].T - kernel.mean(axis=1)
        parts = np.split(slope * np.concatenate(vectors, 1), np.cumsum([v.shape[1] for v in vectors])[:-1], axis=1)
        weights = np.array([np.abs(part).sum(axis=1) for part in parts])
        for (after, _), (_, pool), share in zip(chain.pools, pooled, weights / weights.sum(axis=0), strict=True):
            rolled = np.broadcast_to(np.eye(count), (3, count, count))
            for matrix in matrices[:after]:
                rolled = rolled + matrix @ rolled
            if pool is not None:  # SigLIP
                start = matrices[-1][:, 0] / matrices[-1][:, 0].sum(axis=1, keepdims=True)
                total += share[:, None] * np.einsum("nq,nqt->nt", start, rolled)
            elif family == "siglip":  # its other depth: the mean of all tokens
                total += share[:, None] * (rolled.mean(axis=1) - 1 / count)
            else:
                total += share[:, None] * (rolled[:, 0] - np.eye(count)[0])
        assert found[:, place].reshape(3, -1) == pytest.approx(total[:, -25:], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("family", ["dinov3", "siglip"])
def test_it_differs_by_class(family, encoder_of):
    encoder = encoder_of(family)
    maps, words = attention.maps(classifier_of(encoder), batch_for(encoder), CLASSES)
    assert words == "where the backbone looks for a class, by attention rollout"
    assert (maps.min(), maps.max()) == (0, 1)
    assert np.abs(maps[:, 0] - maps[:, 1]).max(axis=(1, 2)).min() > 0.1


@pytest.mark.parametrize(("family", "pooled"), [("vit", CLASS), ("siglip", MEAN)])
def test_a_place_that_all_tokens_look_at_lights_up(family, pooled, encoder_of, monkeypatch):
    """For the classes that what is there speaks for: by the class token, and by the mean of the tokens."""
    encoder = encoder_of(family, pooled=pooled)
    chain, batch = find_chain(encoder), batch_for(encoder)
    plain, logits_of = chain.blocks, networks.without_softmax(head_for(encoder))
    place = chain.grid[0] * 1 + 3

    def planted(step):
        def call(tokens):
            attended = np.full((1, tokens.shape[1]), 0.1 / tokens.shape[1], np.float32)
            attended[0, place - chain.grid[0] * chain.grid[1]] += 0.9
            nothing = 0 * tf.reduce_sum(tokens, axis=2)[:, None, :, None]  # gradients reach it through the tokens
            attended = tf.constant(attended) * tf.ones((1, 2, 1, 1)) + nothing
            # What is looked at pulls all tokens to where the class is.
            return tokens + tf.reduce_mean(attended @ (0.1 * tokens)[:, None], axis=1), attended

        return call

    monkeypatch.setattr("headstart.report.rollout.TOLERANCE", np.inf)
    blocks, classes = [planted(step) for step in plain], np.array([[0, 1, 2]] * 3)
    for maps in rollout(encoder, chain._replace(blocks=blocks), logits_of, batch, classes).reshape(3, 3, -1):
        for_it = maps[:, place] > 0
        assert for_it.any()  # of scores that add up to 0 one rises
        assert set(maps[for_it].argmax(axis=1)) == {place}


@pytest.mark.parametrize("missing", ["kind", "part", "step"])
def test_what_cannot_be_read_falls_back_and_is_told(missing, encoder_of, monkeypatch, capsys):
    encoder = encoder_of("vit")
    if missing == "kind":
        monkeypatch.delitem(attentions._STEPS, "SigLIPEncoderLayer")
        reason = "the attention of a SigLIPEncoderLayer cannot be read"
    elif missing == "part":
        monkeypatch.setitem(attentions._STEPS, "SigLIPEncoderLayer", lambda layer, tokens: layer.attention_2(tokens))
        reason = "'attention_2'"
    else:
        step = attentions._STEPS["SigLIPEncoderLayer"]
        other = lambda layer, tokens: (2 * tokens + step(layer, tokens)[0], step(layer, tokens)[1])  # noqa: E731
        monkeypatch.setitem(attentions._STEPS, "SigLIPEncoderLayer", other)
        reason = "its layers, called one by one, give other features than the network does"
    maps, words = attention.maps(classifier_of(encoder), batch_for(encoder), CLASSES)
    assert maps.shape == (3, 2, 5, 5)
    assert "in the tokens that its last layer reads (attention rollout failed: " in words
    assert reason in words
    assert f"{reason}; it shows gradient times token" in capsys.readouterr().out
