"""The interface of a modality: how bytes become arrays, what makes two examples copies, how an example is shown.

All other code asks the modality and knows nothing of what examples are made of. A new modality is a subclass,
registered in `modalities/__init__.py`; the defaults here are enough for arrays without near copies or augmentation.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from headstart.data.boxes import Cut
from headstart.errors import ItemError
from headstart.modalities.batch import Batch
from headstart.modalities.explaining import Evidence, Explanation

if TYPE_CHECKING:
    import keras
    import pandas as pd

    from headstart.config import Extract, Prepare
    from headstart.fine_tune_config import FineTune


@dataclass(frozen=True)
class Augmentation:
    """How an example may be changed at random; a modality adds fields of its own.

    Views of an example are numbered: 0 is the example as it is, and view n is the same wherever it is made.
    """

    def key(self) -> str:
        """Return all fields as text, for fingerprints."""
        return repr(sorted(asdict(self).items()))


# Whether the head classifies that view correctly for nearly all examples that it knows as they are.
StillRecognized = Callable[[Augmentation, int], bool]


class Modality:
    """A kind of example, from bytes to batches. Instances never change: threads and processes share them.

    Attributes:
        name: what `data.kind` says.
        default_backbone: what `backbone: null` means for this kind of examples.
        noun: what messages call an example, in the singular.
        suffixes: of files that are meant as examples, in lower case.
        unsupported: suffixes of files that are meant as examples but cannot be read, with advice.
        inline: whether a cell of a table can be an example, as UTF-8.
        mixes: whether inputs can be averaged, as mixup does.
        columns: the measures that the manifest keeps, with their dtypes.
        libraries: packages whose versions shape what `load` gives.
        column: what a request to the model server calls an example.
        descriptor_dim: length of the descriptors of `describe`; 0: there is no search for near copies.
        descriptor_dtype: float16 vectors, or uint16 MinHash signatures.
        length: the measure by which examples are sorted into batches, if they are padded; empty: all are equally long.
        estimates: whether that measure only estimates how long an example is for the network, see `load`.
        unit, place: numbers of such an example for 1 in `extract.size`, and for a place of the sequences in a network.
        exported: names of files that `export_files` may return.
        explains: what the results page calls the output of `explain`; empty: there is none.
        reading: how the examples of a data set are read, as `find_reading` returned it; {} before that is known.
    """

    name: str
    default_backbone: str = ""
    noun: str = "example"
    suffixes: Sequence[str] = ()
    unsupported: dict[str, str] = {}  # noqa: RUF012  never changed
    inline: bool = False
    mixes: bool = True
    columns: dict[str, str] = {}  # noqa: RUF012  never changed
    libraries: Sequence[str] = ()
    column: str = "data"
    descriptor_dim: int = 0
    descriptor_dtype: str = "float16"
    length: str = ""
    estimates: bool = False
    unit: int = 1
    place: int = 1
    exported: Sequence[str] = ("reading.json",)
    explains: str = ""
    reading: dict[str, Any] = {}  # noqa: RUF012  never changed

    # --- which files are examples, and what is known about them

    def recognizes(self, head: bytes, suffix: str) -> bool:
        """Whether a file that begins with `head` (64 bytes, or all of a shorter one) is of this modality.

        Args:
            suffix: of its name, in lower case, perhaps one of `unsupported`, perhaps empty.
        """
        return False

    def decode(self, data: bytes) -> Any:
        """Decode the example in a file, by what the file alone says.

        Raises:
            ItemError: with a reason to count by, if the bytes are not a complete example.
        """
        raise ValueError(f"modality {self.name} cannot decode")

    def cutter(self, data: bytes) -> Cut:
        """Decode the example in a file, and return what cuts boxes out of it, each as the bytes of a file.

        Raises:
            ItemError: as `decode`; by what is returned: if the box is not in the example.
        """
        raise ItemError("unsupported", f"boxes cannot be cut out of {self.noun}s; set data.coco to images")

    def item_id(self, item: Any) -> str:
        """Hash the decoded content, 32 hexadecimal digits: the same for the same example in another file format."""
        return blake3(np.ascontiguousarray(item).tobytes()).hexdigest(length=16)

    def measures(self, item: Any) -> dict[str, float]:
        """Return figures of an example by name, e.g. its width; what only some examples have is 0 in the others."""
        return {}

    def sketch(self, item: Any) -> np.ndarray:
        """Return a small array of fixed shape for `describe`, so that large examples need not stay in memory."""
        return np.zeros(0, np.uint8)

    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return descriptors and further measures of n examples.

        Args:
            sketches: (n, ...), stacked.

        Returns:
            (n, descriptor_dim) float16 of length 1, or zeros if there is nothing to compare: near copies are within
            `prepare.near_distance` of each other; or uint16 signatures: near copies differ in at most that share of
            their values; and (n,) float32 by name.
        """
        return np.zeros((len(sketches), self.descriptor_dim), np.float16), {}

    def reject(self, measures: dict[str, float], settings: Prepare) -> tuple[str, str] | None:
        """Return reason and detail if an example is to be left out."""
        return None

    def find_reading(self, examples: pd.DataFrame, settings: Prepare) -> tuple[dict[str, Any], list[str]]:
        """Return how the examples of this data set are to be read, as JSON, and what to print about it, a line each.

        Later stages, predictions and the model server read examples by `with_reading` of it; {}: by their files alone.

        Args:
            examples: a row for each example that is used, of any split, with its measures.
        """
        return {}, []

    def find_leaks(self, examples: pd.DataFrame, read: Callable[[str], bytes]) -> list[str]:
        """Return what to print about labels that examples themselves give away, a line each.

        Args:
            examples: a row for each example that can be used: path, label, item_id.
            read: returns the bytes of an example.
        """
        return []

    def with_reading(self, reading: dict[str, Any]) -> Modality:
        """Return this modality for a data set, by what `find_reading` returned.

        Raises:
            ValueError: if it is something else.
        """
        if reading:
            raise ValueError(f"{self.noun}s are all read alike, not by {reading!r}")
        return self

    def for_backbone(self, wanted: dict[str, Any], settings: Extract) -> Modality:
        """Return this modality, reading as a backbone wants it, see `Backbone.reading`, but for what the params ask."""
        return self.with_reading({**self.reading, **wanted}) if wanted else self

    def unseen(self, examples: pd.DataFrame, size: int) -> list[str]:
        """Return what to print about parts of examples that no network sees, a line each; arguments as of `lengths`."""
        return []

    def outlier_measures(self, examples: pd.DataFrame) -> dict[tuple[str, str | None], tuple[pd.Series, float]]:
        """Return what outliers are found by: names of the low and the high end, values, and the least interquartile
        range to assume, so that a set of nearly equal examples has few outliers.
        """
        return {}

    def histograms(self, examples: pd.DataFrame) -> dict[str, tuple[pd.Series, str]]:
        """Return what the page about the data draws: values, and a format for their ends, by title."""
        return {}

    def categories(self, examples: pd.DataFrame) -> dict[str, pd.Series]:
        """Return what the page about the data counts: a text for each example, by title."""
        return {}

    # --- what networks see

    def load(self, data: bytes, size: int) -> np.ndarray:
        """Load an example as one array of a batch; the only way from bytes to a network's input.

        Raises:
            ItemError: as `decode`.
        """
        return np.asarray(self.decode(data))

    def load_with_remark(self, data: bytes, size: int) -> tuple[np.ndarray, str]:
        """Return what `load` returns, and what is odd about it for a model that was trained by this reading.

        The remark follows `3 of 9 examples `, and is the same for all examples with the same problem; empty: nothing.

        Raises:
            ItemError: as `decode`.
        """
        return self.load(data, size), ""

    def whole(self, data: bytes) -> np.ndarray:
        """Return an example as `front` takes it; raises as `decode`."""
        return np.asarray(self.decode(data))

    def memory(self, data: bytes, size: int) -> int:
        """Return how many bytes of memory `load` takes at most, by the header of a file; raises nothing."""
        return 2 * len(data)

    def views(
        self, data: bytes, size: int, augmentation: Augmentation | None, key: str, numbers: Iterable[int]
    ) -> Iterator[np.ndarray]:
        """Yield views of an example by their numbers, as `load` returns it; 0 is the example as it is.

        Args:
            augmentation: None: all views are the example as it is.
            key: seeds the views of this example.
        """
        plain = self.load(data, size)
        for _ in numbers:
            yield plain

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """Make one batch of what `load` and `views` return; pads, with masks, if their shapes differ."""
        return {"input": np.stack(arrays)}

    def spec(self, size: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """Return the shape of an example and the dtype of each array of a batch, by name."""
        raise ValueError(f"modality {self.name} has no input")

    def lengths(self, examples: pd.DataFrame) -> np.ndarray | None:
        """Return the measure `length` of examples, (N,), one for each row; None if all are equally long."""
        return examples[self.length].to_numpy() if self.length in examples else None

    def front(self, size: int) -> keras.Model:
        """Build what comes before the backbone in models/model.keras: whole examples -> inputs of `spec`."""
        import keras

        inputs = {name: keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in self.spec(size).items()}
        outputs = {name: keras.layers.Identity(dtype=array.dtype)(array) for name, array in inputs.items()}
        return keras.Model(inputs, outputs, name="front")

    def augmentation(self, settings: Extract | FineTune) -> Augmentation | None:
        """Return the augmentation that the params spell out; None if examples stay as they are."""
        return None

    def choose_augmentation(
        self, settings: Extract | FineTune, still_recognized: StillRecognized
    ) -> Augmentation | None:
        """Return the augmentation for fine-tuning: as strong as `still_recognized` allows if a param leaves it open."""
        return self.augmentation(settings)

    def probes(self, size: int) -> list[bytes]:
        """Return known examples of many kinds, by which changes in loading are noticed."""
        return []

    # --- what people see

    def parse_request(self, value: Any) -> bytes:
        """Return the bytes of an example in a request to the model server.

        Raises:
            ItemError: if it does not have the form that the server takes.
        """
        return str(value).encode()

    def format_request(self, data: bytes) -> str:
        """Return an example as `parse_request` takes it."""
        return data.decode("utf-8", "replace")

    def export_files(self, size: int) -> dict[str, str]:
        """Return what else another runtime needs to load examples as `load` does: texts, by the names of `exported`."""
        return {"reading.json": json.dumps(self.reading) + "\n"} if self.reading else {}

    def show(self, data: bytes) -> str:
        """Return a thumbnail, quotation or player as HTML, safe to put into a page; empty if impossible."""
        return html.escape(data[:80].decode("utf-8", "replace"))

    def explain(self, files: Sequence[bytes], size: int, classes: np.ndarray, network: Evidence) -> Explanation:
        """Return what speaks for the classes in question, (n, k) int, in n examples that can be loaded."""
        raise ValueError(f"modality {self.name} explains nothing")
