"""Fingerprints of code by its results: how examples are loaded and augmented, and how an engine rounds.

Another processor, library or version of the code has the same fingerprint if it gives the same bits, and only then.
"""

from __future__ import annotations

from blake3 import blake3

from headstart.features.engines import Engine
from headstart.modalities import Augmentation, Modality
from headstart.modalities.base import batch_length

COMPUTED = 4  # probes that go through the network
LARGEST = 256  # size of probes; larger ones would take long and show no more


def loading(modality: Modality, size: int) -> str:
    """Fingerprint how examples of many kinds are loaded, 32 hexadecimal digits."""
    size, digest = min(size, LARGEST), blake3(modality.name.encode())
    for data in modality.probes(size):
        digest.update(modality.load(data, size).tobytes())
    return digest.hexdigest(length=16)


def augmenting(modality: Modality, size: int, augmentation: Augmentation | None) -> str:
    """Fingerprint how augmented views are made, 32 hexadecimal digits."""
    size, digest = min(size, LARGEST), blake3(modality.name.encode())
    for data in modality.probes(size)[:1]:
        for view in modality.views(data, size, augmentation, "probe", range(1, 4)):
            digest.update(view.tobytes())
    return digest.hexdigest(length=16)


def computing(engine: Engine, modality: Modality, size: int) -> str:
    """Fingerprint the features that `engine` computes, 32 hexadecimal digits."""
    arrays = [modality.load(data, size) for data in modality.probes(min(size, LARGEST))[:COMPUTED]]
    digest = blake3(engine.name.encode())
    starts = range(0, len(arrays), engine.batch_size)
    batches = [modality.batch(arrays[start : start + engine.batch_size]) for start in starts]
    for batch, features in zip(batches, engine.map(batches), strict=True):
        digest.update(features[: batch_length(batch)].tobytes())
    return digest.hexdigest(length=16)
