"""Sounds: recordings of many formats become samples at 16 kHz, (n,) float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import ItemError
from headstart.modalities import requests
from headstart.modalities.audio import copies, decode, evidence, measures, picture, probes, steps
from headstart.modalities.audio.augmentation import SoundAugmentation, view
from headstart.modalities.audio.decode import Recording
from headstart.modalities.audio.measures import reject
from headstart.modalities.base import Augmentation, Modality
from headstart.modalities.batch import Batch
from headstart.modalities.explaining import Evidence, Explanation

if TYPE_CHECKING:
    import keras
    import pandas as pd

    from headstart.config import Extract, Prepare
    from headstart.fine_tune_config import FineTune

INPUT = "sound"  # name of the encoder's input, and of a recording in a request to the model server


class AudioModality(Modality):
    """Recordings of speech, music and noises, mono at 16 kHz."""

    name, noun, column, default_backbone = "audio", "recording", INPUT, "wavenet"
    suffixes, unsupported = decode.SUFFIXES, decode.UNSUPPORTED
    mixes = False
    columns = {"seconds": "float32", "rate": "int32"}  # noqa: RUF012  never changed
    libraries = ("soundfile", "soxr")
    descriptor_dim = copies.DIM
    length = "seconds"
    unit, place = steps.RATE, steps.STEP
    explains = "Which moments matter"

    def recognizes(self, head: bytes, suffix: str) -> bool:
        return decode.recognizes(head, suffix)

    def decode(self, data: bytes) -> Recording:
        return decode.read(data)

    def item_id(self, item: Recording) -> str:
        return decode.item_id(item)

    def measures(self, item: Recording) -> dict[str, float]:
        return measures.measure(item)

    def sketch(self, item: Recording) -> np.ndarray:
        return copies.sketch(item.resampled())

    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return copies.describe(sketches), {}

    def reject(self, measures: dict[str, float], settings: Prepare) -> tuple[str, str] | None:
        return reject(measures)

    def find_leaks(self, examples: pd.DataFrame, read: Callable[[str], bytes]) -> list[str]:
        return measures.find_leaks(examples)

    def find_reading(self, examples: pd.DataFrame, settings: Prepare) -> tuple[dict[str, Any], list[str]]:
        return {}, measures.remarks(examples)

    def outlier_measures(self, examples: pd.DataFrame) -> dict[tuple[str, str | None], tuple[pd.Series, float]]:
        return {
            ("short", "long"): (np.log2(examples.seconds.astype(float)), 0.5),
            ("soft", "loud"): (examples.loudness.astype(float), 3.0),
        }

    def histograms(self, examples: pd.DataFrame) -> dict[str, tuple[pd.Series, str]]:
        return {"seconds": (examples.seconds, "{:.2f}"), "loudness, dB": (examples.loudness, "{:.0f}")}

    def categories(self, examples: pd.DataFrame) -> dict[str, pd.Series]:
        return {"samples a second": examples.rate.astype(int).map("{:,}".format)}

    def load(self, data: bytes, size: int) -> np.ndarray:
        """Load a recording, (n,) float32 in [-1, 1] at 16 kHz; of one longer than `size` seconds see `steps.cut`."""
        return steps.cut(decode.decode(data), size)

    def load_with_remark(self, data: bytes, size: int) -> tuple[np.ndarray, str]:
        sound = decode.decode(data)
        if len(sound) <= size * steps.RATE:
            return sound, ""
        windows = "the second in the middle is" if size == 1 else f"{size} windows of a second, spread evenly, are"
        return steps.cut(sound, size), f"are longer than {size} s, of which {windows} heard."

    def views(
        self, data: bytes, size: int, augmentation: Augmentation | None, key: str, numbers: Iterable[int]
    ) -> Iterator[np.ndarray]:
        """Yield views of a recording, as `load` returns it, by their numbers; see `SoundAugmentation`."""
        sound = self.load(data, size)
        for number in numbers:
            changed = sound
            if isinstance(augmentation, SoundAugmentation):
                changed = view(sound, steps.RATE, augmentation, key, number)
            yield changed[: size * steps.RATE]

    def augmentation(self, settings: Extract | FineTune) -> SoundAugmentation | None:
        found = SoundAugmentation(settings.time_shift, settings.gain, settings.noise_snr, settings.speed)
        return None if found == SoundAugmentation(0, 0, None, 0) else found

    def whole(self, data: bytes) -> np.ndarray:
        """Decode a recording, (n,) float32 in [-1, 1] at 16 kHz."""
        return decode.decode(data)

    def memory(self, data: bytes, size: int) -> int:
        return decode.decoding_memory(data)

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """Fill recordings up to the longest, (b, n) float32; the encoder finds the mask by the samples."""
        return {INPUT: steps.fill(arrays)}

    def spec(self, size: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        return {INPUT: ((None,), "float32")}

    def front(self, size: int) -> keras.Model:
        """Build what fills sounds, (N, n) float32 in [-1, 1] at 16 kHz, up to whole steps; long ones are not cut."""
        import keras

        sound = keras.Input((None,), name=INPUT)
        filled = keras.ops.pad(sound, [[0, 0], [0, steps.STEP - 1]])
        whole = keras.ops.extract_sequences(filled, steps.STEP, steps.STEP)
        return keras.Model(sound, {INPUT: keras.layers.Reshape((-1,))(whole)}, name="front")

    def probes(self, size: int) -> list[bytes]:
        return probes.files(size)

    def parse_request(self, value: Any) -> bytes:
        """Return the bytes of a recording, from base64 text."""
        return requests.parse_file(value, "a recording")

    def format_request(self, data: bytes) -> str:
        return requests.format_file(data)

    def show(self, data: bytes) -> str:
        try:
            return picture.show(decode.decode(data))
        except ItemError:
            return ""

    def explain(self, files: Sequence[bytes], size: int, classes: np.ndarray, network: Evidence) -> Explanation:
        return evidence.explain([self.load(data, size) for data in files], network.scores, classes)
