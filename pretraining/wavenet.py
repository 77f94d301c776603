"""Pretrain the backbone `wavenet` on synthetic speech and plain sounds, and write its weights.

It learns which of 400 words is spoken, or which kind of plain sound is heard, from the mean of its steps; and at each
step which phoneme was heard a moment ago. Digits and the words of Speech Commands are left out.

Needs:   espeak-ng and flite, see pretraining/speech.py; soundfile and soxr (make setup EXTRAS=audio).
Writes:  pretraining/wavenet/wavenet.safetensors (float16), or --out; while it runs, corpus.npz and checkpoint.keras in
         the folder --cache: the same command resumes from there, whenever it was killed.
Command: nice python -m pretraining.wavenet [--steps 10000] [--batch-size 96] [--each 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import trange

from pretraining import sounds, speech
from pretraining.train import draw_ahead

if TYPE_CHECKING:
    import keras

HERE = Path(__file__).parent
CHECKPOINT_STEPS = 250
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.02

Drawn = tuple[np.ndarray, list[np.ndarray]]


@cache
def _corpus(each: int, seed: int, file: Path) -> sounds.Corpus:
    return sounds.make_corpus(each, seed, file)


def make_batch(step: int, size: int, each: int, seed: int, file: Path) -> Drawn:
    """Draw clips, (size, CLIP) float32, with their words and the phonemes of either program, alike in any process."""
    corpus, random = _corpus(each, seed, file), np.random.default_rng([seed, step])
    clips, labels = zip(*(sounds.draw(corpus, random) for _ in range(size)), strict=True)
    words, *phonemes = (np.stack(column) for column in zip(*labels, strict=True))
    return np.stack(clips), [words.astype(np.int32), *phonemes]


def build(corpus: sounds.Corpus, steps: int, seed: int) -> keras.Model:
    """Build the network with three linear layers: the word, and the phoneme by either program."""
    from headstart.backbones.base import BACKBONE_LAYER
    from headstart.backbones.wavenet import build_wavenet
    from headstart.framework import keras

    keras.utils.set_random_seed(seed)
    base = build_wavenet()
    base.name = BACKBONE_LAYER
    clip = keras.Input((sounds.CLIP,))
    samples = keras.layers.Reshape((-1, sounds.STEP))(clip)
    mask = keras.ops.ones_like(samples[..., :1], dtype="int32")  # clips are never silent
    sequence = base([samples, mask])
    pooled = keras.layers.GlobalAveragePooling1D()(sequence)
    dense, unknown = keras.layers.Dense, sounds.UNKNOWN
    outputs = [
        dense(len(speech.words()) + len(sounds.KINDS), name="word")(pooled),
        dense(len(corpus.names[0]), name="espeak")(sequence),
        dense(len(corpus.names[1]), name="flite")(sequence),
    ]
    model = keras.Model(clip, outputs)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=LEARNING_RATE, warmup_steps=max(1, steps // 20)
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY, global_clipnorm=1.0),
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=unknown) for _ in outputs],
    )
    return model


def train(steps: int, size: int, each: int, seed: int, out: Path, folder: Path) -> None:
    """Run the remaining steps, then write the weights."""
    from safetensors.numpy import save_file

    from headstart.backbones.base import BACKBONE_LAYER
    from headstart.backbones.sound_encoders import named_variables
    from headstart.framework import keras

    folder.mkdir(parents=True, exist_ok=True)
    file, checkpoint = folder / f"corpus-{each}-{seed}.npz", folder / f"checkpoint-{steps}-{size}-{each}-{seed}.keras"
    print(f"wavenet: {each} utterances of each of {len(speech.words())} words", flush=True)
    corpus = sounds.make_corpus(each, seed, file)
    print(f"wavenet: {len(corpus.ends)} utterances, {len(corpus.samples) / speech.RATE:.0f} s", flush=True)
    model = keras.models.load_model(checkpoint) if checkpoint.is_file() else build(corpus, steps, seed)
    start = int(model.optimizer.iterations)
    data = draw_ahead(make_batch, range(start, steps), 1, size, each, seed, file)
    bar = trange(start, steps, initial=start, total=steps, unit=" batches", disable=None)
    try:
        for step, (clips, labels) in zip(bar, data, strict=True):
            logs = model.train_on_batch(clips, labels, return_dict=True)
            if not np.isfinite(logs["loss"]):
                sys.exit(f"wavenet: loss is NaN at batch {step + 1}")
            if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
                partial = checkpoint.with_suffix(".partial.keras")
                model.save(partial)
                partial.replace(checkpoint)
                print(
                    f"batch {step + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in logs.items()), flush=True
                )
                model.reset_metrics()
    finally:
        data.close()
    trained = named_variables(model.get_layer(BACKBONE_LAYER))
    tensors = {name: variable.numpy().astype(np.float16) for name, variable in trained.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    print(f"{out}: {out.stat().st_size:,} bytes, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}")


def main() -> int:
    """Train by the command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.wavenet", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000, help="batches; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=96, help="clips; default: %(default)s")
    parser.add_argument("--each", type=int, default=50, help="utterances of a word; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "wavenet" / "wavenet.safetensors")
    parser.add_argument("--cache", type=Path, default=HERE / "wavenet", help="folder of corpus and checkpoint")
    found = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    train(found.steps, found.batch_size, found.each, found.seed, found.out, found.cache)
    return 0


if __name__ == "__main__":
    sys.exit(main())
