"""The networks that OpenVINO has converted, kept on this machine: converting one takes seconds, most of them to load
TensorFlow.

A file for each network, beside DVC's own temporary files: a checksum, a line of JSON, and what OpenVINO writes. They
can be deleted at any time; networks are then converted again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from blake3 import blake3

from headstart import paths
from headstart.errors import one_line
from headstart.features.engines.base import NetworkInfo, Spec
from headstart.lockfile import Workspace, md5_of

MAX_FILES = 8  # of those used last; the others are removed
MAX_AGE_SECONDS = 86400  # of what killed runs have left behind
LIBRARIES = ("keras", "numpy", "openvino")  # and TensorFlow, which has several names
CODE = ("headstart/backbones", "headstart/features/engines", "headstart/framework.py")  # what makes a graph
_PROJECT = Path(__file__).parents[3]
_CHECK_BYTES = 32
_PARTIAL = "partial-"  # the beginning of the names of folders in which files are written


class Graph(NamedTuple):
    """A converted network: what is known about it, and the two files that OpenVINO writes."""

    info: NetworkInfo
    xml: bytes
    weights: bytes


def folder() -> Path:
    """Return the folder of the files."""
    return paths.cache_path("graphs")


def find_file(network: str, spec: Spec) -> Path:
    """Return where the graph of a network is kept; another version of a library or of the code has another one.

    Args:
        network: names everything that shapes it, but code and libraries.
        spec: of its inputs.
    """
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    code = {place: md5_of(Workspace(_PROJECT), place) for place in CODE}
    inputs = json.dumps([network, spec, versions, tensorflow_version(), code], sort_keys=True)
    return folder() / f"{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.graph"


def tensorflow_version() -> str:
    return importlib.metadata.version("tensorflow")


def read(file: Path) -> Graph | None:
    """Return the graph in `file`; None if there is none. A damaged one is removed, and a line on stderr says so."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # it may be on a disk that cannot be written
        os.utime(file)  # used last
    try:
        if blake3(memoryview(content)[_CHECK_BYTES:]).digest() != content[:_CHECK_BYTES]:
            raise ValueError("its checksum is another one")
        end = content.index(b"\n", _CHECK_BYTES) + 1
        about = json.loads(content[_CHECK_BYTES:end])
        weights = end + about["xml_bytes"]
        return Graph(NetworkInfo(**about["info"]), content[end:weights], content[weights:])
    except (KeyError, TypeError, ValueError) as error:
        remove(file, error)
        return None


def remove(file: Path, error: Exception) -> None:
    """Remove a file that is damaged, and say so on stderr."""
    print(f"{file}: damaged ({one_line(error)}) and removed; the network is converted again", file=sys.stderr)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


def write(file: Path, info: NetworkInfo, model: Any) -> None:
    """Keep a converted network, an openvino.Model; if that fails, a line on stderr says so."""
    import openvino

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=_PARTIAL, dir=file.parent) as temporary:
            xml, weights = Path(temporary) / "graph.xml", Path(temporary) / "graph.bin"
            openvino.serialize(model, xml, weights)
            header = json.dumps({"info": info._asdict(), "xml_bytes": xml.stat().st_size}).encode()
            content = b"".join([header, b"\n", xml.read_bytes(), weights.read_bytes()])
            partial = Path(temporary) / "graph"
            partial.write_bytes(blake3(content).digest() + content)
            os.replace(partial, file)
    except (OSError, RuntimeError) as error:  # RuntimeError: OpenVINO's own
        print(
            f"{file}: cannot be written ({one_line(error)}); the next run converts the network again", file=sys.stderr
        )
    _prune(file.parent)


def _prune(place: Path) -> None:
    """Remove all but MAX_FILES files, and what killed runs have left behind. Another process may do the same."""
    used = {}
    for file in (*place.glob("*.graph"), *place.glob(f"{_PARTIAL}*")):
        with contextlib.suppress(OSError):
            used[file] = file.stat().st_mtime
    graphs = sorted((file for file in used if file.suffix), key=lambda file: used[file])
    for old in graphs[:-MAX_FILES]:
        with contextlib.suppress(OSError):
            old.unlink(missing_ok=True)
    for file, last in used.items():
        if not file.suffix and time.time() - last > MAX_AGE_SECONDS:
            shutil.rmtree(file, ignore_errors=True)
