"""What runs on a machine of a Ray cluster: it says what it is, and computes the features of blocks of views."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from blake3 import blake3

from headstart import keras_backend, machine
from headstart.config import Params
from headstart.data.files import Source, read_unchanged
from headstart.data.layouts import open_examples
from headstart.errors import UserError, one_line
from headstart.features.encoders import Encoder
from headstart.features.engines import Engine, OutOfMemoryError
from headstart.features.executors import LocalExecutor
from headstart.features.views import ViewLoader, fingerprint_inputs, load_views
from headstart.lockfile import Workspace, md5_of
from headstart.modalities import Batch, get_modality

PACKAGE = Path(__file__).parents[1]
COMPARED = ("keras", "numpy", "openvino", "ray", "tensorflow")  # with these, other versions can round in other ways


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        params: the content of params.yaml.
        kind, reading: the modality of the prepared data.
        root: the folder of the project, which may not exist on another machine.
        example: path and hash of an example, to see whether the data can be read.
        versions: of Python, libraries and our code, which must be the same everywhere.
        inputs: what shapes the features on the machines that were asked; None: they have not answered yet.
    """

    params: dict[str, Any]
    kind: str
    reading: dict[str, Any]
    depth: str
    batch_size: int | None
    root: str
    example: tuple[str, str]
    versions: dict[str, str]
    inputs: dict[str, Any] | None = None

    def encoder(self) -> Encoder:
        """Return the encoder, in the folder of the project if that is here."""
        if os.path.isdir(self.root):
            os.chdir(self.root)
        params = Params.model_validate(self.params)
        os.environ[machine.CORES] = str(params.cluster.cpus_per_worker)
        if not params.cluster.gpus_per_worker:
            os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # Ray hides no GPUs from workers that ask for none
        if params.extract.engine == "jax":
            keras_backend.name = "jax"
        return Encoder(params, get_modality(self.kind, self.reading), self.depth)


@dataclass(frozen=True)
class Machine:
    """What a machine of the cluster says about itself.

    Attributes:
        error: why it cannot take part; None: it can.
        unread: why it cannot read the source; None: it can.
        facts: of its engine: the attributes of `RemoteEngine`, and `inputs`, see `fingerprint_inputs`.
    """

    name: str
    error: str | None = None
    unread: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Sent(Source):
    """Files that came through Ray, by name."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self._files = files

    def read(self, name: str, count: int = -1) -> bytes:
        data = self._files[name]
        return data if count < 0 else data[:count]

    def state(self, name: str) -> tuple[int, str | None]:
        return len(self._files[name]), None


def versions() -> dict[str, str]:
    """Return what must be the same on all machines, by name; of our own code a hash."""
    code = str(md5_of(Workspace(PACKAGE.parent), PACKAGE.name))
    found = {name: importlib.metadata.version(name) for name in COMPARED}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **found, "code of headstart": blake3(code.encode()).hexdigest(length=4)}


def describe_machine(job: Job) -> Machine:
    """Compare this machine with what the job asks for; then open its engine."""
    name, mine = socket.gethostname(), versions()
    for package, wanted in job.versions.items():
        if mine[package] != wanted:
            return Machine(name, f"has {package} {mine[package]}, not {wanted} as here; install the same on all")
    unread = None
    try:
        encoder = job.encoder()
        try:
            with open_examples(encoder.params.data, encoder.modality) as source:
                read_unchanged(source, *job.example)
        except (UserError, OSError) as error:
            unread = one_line(error)
        engine = encoder.open_engine(job.batch_size)
        inputs = shapes_features(encoder, engine)
    except UserError as error:
        return Machine(name, str(error))
    facts = {
        "info": (engine.feature_dim, engine.weights_sha256, engine.depths),
        **{each: getattr(engine, each) for each in ("name", "batch_size", "libraries", "arithmetic", "device_name")},
        "inputs": inputs,
    }
    return Machine(name, None, unread, facts)


def shapes_features(encoder: Encoder, engine: Engine) -> dict[str, Any]:
    """Return what shapes features on this machine, see `fingerprint_inputs`; no example is read for that."""
    return fingerprint_inputs(engine, encoder.recipe(engine), encoder.loader(Sent({})))


@dataclass(frozen=True)
class Block:
    """Views of a block, as `LocalExecutor` takes them: by their places in it."""

    names: Sequence[tuple[str, str, int]]
    loader: ViewLoader

    def load(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """Load the arrays of some of them."""
        return load_views((self.names[place] for place in chosen), self.loader)

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """Return loaded arrays as a batch."""
        return self.loader.modality.batch(arrays)


class Worker:
    """Computes the features of blocks; an actor of Ray Data keeps one of these."""

    def __init__(self, job: Job) -> None:
        encoder = job.encoder()
        self._encoder, self._engine = encoder, encoder.open_engine(job.batch_size)
        self._source = open_examples(encoder.params.data, encoder.modality)
        self._refusal = ""
        # Its machine may have joined the cluster after the others were asked.
        if job.versions != versions():
            self._refusal = f"{socket.gethostname()} has joined the cluster with other versions; remove it"
        elif job.inputs is not None and job.inputs != shapes_features(encoder, self._engine):
            self._refusal = f"{socket.gethostname()} has joined the cluster, and computes other features; remove it"

    def __call__(self, block: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the numbers of the views, with their features; or -1 with an error, where one cannot be computed."""
        sent = "data" in block
        files = {path: data for path, data in zip(block.path, block.data, strict=True) if data} if sent else {}
        source = Sent(files) if sent else self._source
        names = list(zip(block.path, block.file_hash, block.number.tolist(), strict=True))
        work = Block(names, self._encoder.loader(source))
        views, dim = block["view"].to_numpy(), self._engine.feature_dim
        places: list[int] = []
        found = [np.zeros((0, dim), np.float32)]
        error, oom = self._refusal, 0
        try:
            if error:
                raise UserError(error)
            with closing(LocalExecutor().run(range(len(block)), work, self._engine)) as results:
                for some, features in results:
                    places += some
                    found.append(features)
        except UserError as problem:
            error = str(problem)
        except OutOfMemoryError as problem:
            error, oom = str(problem), problem.batch_size
        if error:
            places, found = [], [np.zeros((1, dim), np.float32)]
        return {
            "view": np.array([-1]) if error else views[places],
            "features": np.concatenate(found),
            "error": np.array([error] * (1 if error else len(places)), dtype=object),
            "oom": np.full(1 if error else len(places), oom),
        }
