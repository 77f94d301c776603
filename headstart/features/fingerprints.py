"""Fingerprints of what cannot be listed: how examples are loaded, and how an engine rounds, seen in what comes out.

A change of the processor or of the code that changes no bit changes no fingerprint; one that does is noticed.
"""

from __future__ import annotations

from blake3 import blake3

from headstart.features.engines import Engine
from headstart.modalities import Augmentation, Modality
from headstart.modalities.base import batch_length

COMPUTED = 4  # examples that go through the network
LARGEST = 256  # what holds for examples of this size holds for larger ones


def loading(modality: Modality, size: int) -> str:
    """Fingerprint the arrays that examples of many kinds become, 32 hexadecimal digits."""
    size, digest = min(size, LARGEST), blake3(modality.name.encode())
    for data in modality.probes(size):
        digest.update(modality.load(data, size).tobytes())
    return digest.hexdigest(length=16)


def augmenting(modality: Modality, size: int, augmentation: Augmentation | None) -> str:
    """Fingerprint augmented views, 32 hexadecimal digits."""
    size, digest = min(size, LARGEST), blake3(modality.name.encode())
    for data in modality.probes(size)[:1]:
        for view in modality.views(data, size, augmentation, "probe", range(1, 4)):
            digest.update(view.tobytes())
    return digest.hexdigest(length=16)


def computing(engine: Engine, modality: Modality, size: int) -> str:
    """Fingerprint the features that `engine` computes of known examples, 32 hexadecimal digits."""
    arrays = [modality.load(data, size) for data in modality.probes(min(size, LARGEST))[:COMPUTED]]
    digest = blake3(engine.name.encode())
    starts = range(0, len(arrays), engine.batch_size)
    batches = [modality.batch(arrays[start : start + engine.batch_size]) for start in starts]
    for batch, features in zip(batches, engine.map(batches), strict=True):
        digest.update(features[: batch_length(batch)].tobytes())
    return digest.hexdigest(length=16)
