"""Find out what the examples of a source are: images or texts."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from headstart.data.sources import open_source
from headstart.data_config import Data
from headstart.modalities import Modality, get_modality, modalities


def find_modality(data: Data) -> Modality:
    """Return the modality that `data.kind` names, or the one that most files of the source are of; images if none are.

    Raises:
        UserError: if there is no such modality, or the source cannot be opened.
    """
    known = modalities()
    if data.kind:
        return get_modality(data.kind)
    with open_source(data.source, data.root) as source:
        source.scan()
        suffixes = Counter(PurePosixPath(name).suffix.lower() for name in source.files)
    counts = {kind.name: sum(suffixes[suffix] for suffix in (*kind.suffixes, *kind.unsupported)) for kind in known}
    return get_modality(max(counts, key=lambda name: counts[name]))
