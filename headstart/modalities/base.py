"""What a modality owns: how bytes become arrays, what makes two examples copies, how one is shown.

Everything else in Headstart asks a modality and knows of no pixels, words or samples. A new modality is a subclass,
registered in `modalities/__init__.py`; the defaults here are enough for arrays without near copies or augmentation.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from blake3 import blake3

if TYPE_CHECKING:
    import keras
    import pandas as pd

Batch = dict[str, np.ndarray]  # a batch under the names of the encoder's inputs, the first axis being the examples


def batch_length(batch: Batch) -> int:
    """How many examples a batch has."""
    return len(next(iter(batch.values())))


def pad_batch(batch: Batch, size: int) -> Batch:
    """`batch` with its last example repeated until it has `size` of them: an all-zero example may be no example."""
    missing = size - batch_length(batch)
    if missing <= 0:
        return batch
    return {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in batch.items()}


class AugmentationSettings(Protocol):
    """The params that say how examples may be changed: those of `extract` and of `fine_tune`."""

    @property
    def crop(self) -> float | None: ...

    @property
    def flip(self) -> bool | None: ...

    @property
    def jitter(self) -> float: ...


@dataclass(frozen=True)
class Augmentation:
    """What may happen to an example; a modality adds fields of its own.

    Views of an example are counted: 0 is the example as it is, and view n is the same wherever it is made.
    """

    def key(self) -> str:
        """All of it as text, to make fingerprints from."""
        return repr(sorted(asdict(self).items()))


class StillRecognized(Protocol):
    def __call__(self, augmentation: Augmentation, view: int) -> bool:
        """Whether the head still classifies nearly all examples correctly that it did before, on that view of them."""


class Modality:
    """An example's life from bytes to a batch. Instances have no state: they are used by threads and processes.

    Attributes:
        name: what `data.kind` says.
        noun: what messages call an example, in the singular.
        suffixes: of files that are meant as examples, in lower case.
        unsupported: suffixes of files that are meant as examples but cannot be read, with what to do.
        mixes: whether inputs can be averaged, as mixup does.
        columns: the measures that the manifest keeps, with their dtypes.
        column: what a request to the model server calls an example.
        descriptor_dim: length of the vectors of `describe`; 0: there is no search for near copies.
    """

    name: str
    noun: str = "example"
    suffixes: Sequence[str] = ()
    unsupported: dict[str, str] = {}  # noqa: RUF012  never changed
    mixes: bool = True
    columns: dict[str, str] = {}  # noqa: RUF012  never changed
    column: str = "data"
    descriptor_dim: int = 0

    # --- which files, and what is known of them

    def recognizes(self, head: bytes, suffix: str) -> bool:
        """Whether a file that begins with `head` (64 bytes, or all of a shorter one) is of this modality.

        Args:
            suffix: of its name, in lower case, perhaps one of `unsupported`, perhaps empty.
        """
        return False

    def decode(self, data: bytes) -> Any:
        """The example in a file.

        Raises:
            ItemError: with a reason to count by, if the bytes are not a whole example.
        """
        raise ValueError(f"modality {self.name} cannot decode")

    def item_id(self, item: Any) -> str:
        """A name made of the decoded content, 32 hexadecimal digits: equal for equal examples in other formats."""
        return blake3(np.ascontiguousarray(item).tobytes()).hexdigest(length=16)

    def measures(self, item: Any) -> dict[str, float]:
        """Figures of an example by name, e.g. its width; always the same names."""
        return {}

    def sketch(self, item: Any) -> np.ndarray:
        """A small array of fixed shape that `describe` works on, so that large examples need not be kept in memory."""
        return np.zeros(0, np.uint8)

    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Descriptors and further measures of n examples.

        Args:
            sketches: (n, ...), stacked.

        Returns:
            (n, descriptor_dim) float16 of length 1, or of zeros if there is nothing to compare: near copies lie within
            `prepare.near_distance` of each other; and (n,) float32 by name.
        """
        return np.zeros((len(sketches), self.descriptor_dim), np.float16), {}

    def reject(self, measures: dict[str, float], settings: Any) -> tuple[str, str] | None:
        """Reason and detail if an example is not to be used.

        Args:
            settings: the section `prepare` of params.yaml.
        """
        return None

    def outlier_measures(self, examples: pd.DataFrame) -> dict[tuple[str, str | None], tuple[pd.Series, float]]:
        """What examples are compared by to find outliers: names of the low and the high end, values, and the least
        range that counts as one (if all examples are alike, few are outliers).
        """
        return {}

    def histograms(self, examples: pd.DataFrame) -> dict[str, tuple[pd.Series, str]]:
        """What the page about the data draws: values and a format for their ends, by title."""
        return {}

    # --- what networks see

    def load(self, data: bytes, size: int) -> np.ndarray:
        """The array that stands for an example in a batch; the only way from bytes to a network's input.

        Raises:
            ItemError: as `decode`.
        """
        return np.asarray(self.decode(data))

    def views(
        self, data: bytes, size: int, augmentation: Augmentation | None, key: str, numbers: Iterable[int]
    ) -> Iterator[np.ndarray]:
        """Views of an example by their numbers, as `load` gives them; 0 is the example as it is.

        Args:
            augmentation: None: all views are the example as it is.
            key: makes the views of this example its own.
        """
        plain = self.load(data, size)
        for _ in numbers:
            yield plain

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """One batch of what `load` and `views` give; pads, with masks, if their shapes differ."""
        return {"input": np.stack(arrays)}

    def spec(self, size: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """Shape of an example and dtype of each array of a batch, by name."""
        raise ValueError(f"modality {self.name} has no input")

    def front(self, size: int) -> keras.Model:
        """What stands in models/model.keras before the backbone: whole examples -> inputs of `spec`."""
        import keras

        inputs = {name: keras.Input(shape, name=name) for name, (shape, _) in self.spec(size).items()}
        return keras.Model(inputs, inputs, name="front")

    def augmentation(self, settings: AugmentationSettings) -> Augmentation | None:
        """The augmentation that params ask for in full; None if this modality has none."""
        return None

    def choose_augmentation(
        self, settings: AugmentationSettings, still_recognized: StillRecognized
    ) -> Augmentation | None:
        """The augmentation for fine-tuning: what params leave open is as strong as the examples can bear."""
        return self.augmentation(settings)

    def probes(self, size: int) -> list[bytes]:
        """Known examples of many kinds: what comes of them tells whether loading is still the same."""
        return []

    # --- where people look

    def parse_request(self, value: Any) -> bytes:
        """The bytes of an example in a request to the model server.

        Raises:
            ItemError: if it is not of the form that the server takes.
        """
        return str(value).encode()

    def show(self, data: bytes) -> str:
        """A small picture, quotation or player of an example as HTML, safe to put into a page; empty if impossible."""
        return html.escape(data[:80].decode("utf-8", "replace"))
