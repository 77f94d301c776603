"""Boxes in examples: how a name says where one is, and a source that cuts them out.

`street.jpg#xywh=10,20,30,40&size=640x480` is a box of `street.jpg`, as in W3C's Media Fragments URI 1.0 (2012), with
the size of the image that its coordinates refer to. The name says everything, so that only prepare reads annotations.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, Protocol

from headstart.data.files import MAX_BYTES, Source
from headstart.machine import cores

_NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?)"
_NAME = re.compile(rf"(.+)#xywh={_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}(?:&size=(\d+)x(\d+))?", re.DOTALL)


class Box(NamedTuple):
    """A box, in the units of the image, from its upper left corner.

    Attributes:
        size: width and height of the image that the box was drawn on, None if they are unknown.
    """

    x: float
    y: float
    width: float
    height: float
    size: tuple[int, int] | None = None

    @property
    def is_valid(self) -> bool:
        """Whether it has an area."""
        return all(map(math.isfinite, self[:4])) and self.width > 0 and self.height > 0

    def __str__(self) -> str:
        # A side is never written as 0, which would be no box: prepare says of tiny ones that they are too small.
        sides = (max(self.width, 0.01), max(self.height, 0.01))
        return ",".join(f"{round(value, 2):.10g}" for value in (self.x, self.y, *sides))


Cut = Callable[[Box, float], bytes]  # a box and the margin around it, as a share of its longer side


class Cutter(Protocol):
    """What this module needs of a modality, see `headstart.modalities.base.Modality.cutter`."""

    def cutter(self, data: bytes) -> Cut: ...


def box_name(path: str, box: Box) -> str:
    """Return the name of a box of the file `path`."""
    return f"{path}#xywh={box}" + (f"&size={box.size[0]}x{box.size[1]}" if box.size else "")


def parse_name(name: str) -> tuple[str, Box | None]:
    """Return the file that `name` means, and the box in it; None: all of the file."""
    match = _NAME.fullmatch(name) if "#xywh=" in name else None
    if not match:
        return name, None
    path, *numbers, width, height = match.groups()
    try:
        x, y, w, h = map(float, numbers)
    except ValueError:  # two points in a number
        return name, None
    box = Box(x, y, w, h, (int(width), int(height)) if width else None)
    return (path, box) if box.is_valid else (name, None)


def is_box(name: str) -> bool:
    """Whether `name` is that of a box."""
    return parse_name(name)[1] is not None


class Cutters:
    """Decodes files whose boxes are cut out, each once for all of its boxes if these are asked for in a row.

    Threads share the files that were decoded last, one for each thread, so that memory is bounded. What cannot be
    decoded is remembered, too.

    Args:
        decode: returns what cuts boxes out of a file.
    """

    def __init__(self, decode: Callable[[str], Cut]) -> None:
        self._decode, self._lock = decode, threading.Lock()
        self._threads: set[int] = set()
        self._kept: dict[Hashable, Future[Cut]] = {}  # what was used last stands last

    def get(self, path: str, version: str) -> Cut:
        """Return what cuts boxes out of this version of a file; raises as `decode`."""
        with self._lock:
            self._threads.add(threading.get_ident())
            known = self._kept.pop((path, version), None)
            while len(self._kept) >= min(len(self._threads), cores()):  # frees the memory before more is needed
                del self._kept[next(iter(self._kept))]
            future = self._kept[path, version] = known or Future()
        if known is None:
            try:
                future.set_result(self._decode(path))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def clear(self) -> None:
        """Free the memory."""
        with self._lock:
            self._kept.clear()


class Crops(Source):
    """Reads the boxes of the files of another source, each as a file of its own; other names as that source does.

    Args:
        source: closed with this one.
        kind: the modality, which alone knows what a box cuts out.
        margin: what is added on each side of a box, as a share of its longer side.
    """

    def __init__(self, source: Source, kind: Cutter, margin: float) -> None:
        super().__init__()
        self._source, self._kind, self._margin = source, kind, margin
        self._cutters = Cutters(self._decode)
        self.files, self.folders = source.files, source.folders
        self.linked, self.refused, self.ignored = source.linked, source.refused, source.ignored

    def scan(self) -> Crops:
        self._source.scan()  # fills the lists that this one shares
        return self

    def read(self, name: str, count: int = -1) -> bytes:
        path, box = parse_name(name)
        if not box:
            return self._source.read(name, count)
        data = self._cutter(path)(box, self._margin)
        return data if count < 0 else data[:count]

    def _decode(self, path: str) -> Cut:
        return self._kind.cutter(self._source.read(path))

    def _cutter(self, path: str) -> Cut:
        version = self._source.state(path)[1]
        return self._decode(path) if version is None else self._cutters.get(path, version)

    def state(self, name: str) -> tuple[int, str | None]:
        path, box = parse_name(name)
        size, version = self._source.state(path)
        if not box:
            return size, version
        # What most modalities need; it only bounds how many examples are in memory at once.
        around = 2 * self._margin * max(box.width, box.height)
        size = int(min(3 * (box.width + around) * (box.height + around), MAX_BYTES))
        return size, version and f"{version} margin {self._margin:g}"

    def watch(self) -> None:
        self._source.watch()

    def opener(self) -> Callable[[], Source] | None:
        opener = self._source.opener()
        return opener and partial(_reopen, opener, self._kind, self._margin)

    def close(self) -> None:
        self._cutters.clear()
        self._source.close()


def _reopen(opener: Callable[[], Source], kind: Cutter, margin: float) -> Crops:
    return Crops(opener(), kind, margin)
