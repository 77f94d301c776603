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
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from blake3 import blake3

from headstart import paths
from headstart.errors import one_line
from headstart.features.engines.base import NetworkInfo, Spec
from headstart.lockfile import Workspace, md5_of

MAX_FILES = 8  # of those used last; the others are removed
LIBRARIES = ("keras", "numpy", "openvino")  # and TensorFlow, which has several names
CODE = ("headstart/backbones", "headstart/features/engines", "headstart/framework.py")  # what makes a graph
_PROJECT = Path(__file__).parents[3]
_CHECK_BYTES = 32


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
        content = memoryview(file.read_bytes())
    except OSError:
        return None
    with contextlib.suppress(OSError):  # it may be on a disk that cannot be written
        os.utime(file)  # used last
    try:
        if blake3(content[_CHECK_BYTES:]).digest() != content[:_CHECK_BYTES]:
            raise ValueError("its checksum is another one")
        header, _, rest = bytes(content[_CHECK_BYTES:]).partition(b"\n")
        about = json.loads(header)
        return Graph(NetworkInfo(**about["info"]), rest[: about["xml_bytes"]], rest[about["xml_bytes"] :])
    except (KeyError, TypeError, ValueError) as error:
        print(f"{file}: damaged ({error}) and removed; the network is converted again", file=sys.stderr)
        file.unlink(missing_ok=True)
        return None


def write(file: Path, info: NetworkInfo, model: Any) -> None:
    """Keep a converted network, an openvino.Model; if that fails, a line on stderr says so."""
    import openvino

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent) as temporary:
            xml, weights = Path(temporary) / "graph.xml", Path(temporary) / "graph.bin"
            openvino.serialize(model, xml, weights)
            header = json.dumps({"info": info._asdict(), "xml_bytes": xml.stat().st_size}).encode()
            content = b"".join([header, b"\n", xml.read_bytes(), weights.read_bytes()])
            partial = Path(temporary) / "graph"
            partial.write_bytes(blake3(content).digest() + content)
            os.replace(partial, file)
        kept = sorted(file.parent.glob("*.graph"), key=lambda other: other.stat().st_mtime)
        for old in kept[:-MAX_FILES]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: OpenVINO's own
        print(
            f"{file}: cannot be written ({one_line(error)}); the next run converts the network again", file=sys.stderr
        )
