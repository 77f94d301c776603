"""Run an encoder on the machines of a Ray cluster: each worker loads examples and has an engine of its own.

The driver has the manifest and the feature store, and sends out what the store lacks: names of views, in blocks. A
worker that dies is replaced, and its block is computed again; what has arrived is in the store.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from headstart import paths, ray_cluster
from headstart.cluster_config import Cluster
from headstart.config import Params, load_params
from headstart.data.files import read_unchanged
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_manifest
from headstart.errors import UserError
from headstart.features.encoders import Encoder, choose_depth
from headstart.features.engines import Engine, OutOfMemoryError
from headstart.features.engines.base import NetworkInfo
from headstart.features.ray_worker import Job, Machine, Worker, describe_machine, versions
from headstart.features.views import ViewLoader, Views
from headstart.modalities import load_modality
from headstart.paths import is_address

BLOCKS_PER_WORKER, LARGEST_BLOCK = 16, 2048  # views
MOST_BYTES = 2**31  # of examples that are sent through Ray where a machine cannot read the source


class RemoteEngine(Engine):
    """What is known here of the engines of the workers, which have the same results."""

    def __init__(self, facts: dict[str, Any], workers: int) -> None:
        super().__init__(NetworkInfo(*facts["info"]), facts["batch_size"], 0)
        self.name, self.libraries, self.arithmetic = facts["name"], facts["libraries"], facts["arithmetic"]
        self._device = f"{workers} workers, {facts['device_name']} each"

    @property
    def device_name(self) -> str:
        return self._device


class RayExecutor:
    """Sends blocks of views to the workers.

    Args:
        ray: the module, connected.
        job: what they need to know, of class Job for class Worker.
        cluster: what each of them takes.
        workers: how many of them.
        sends: whether examples are sent along, since a machine cannot read the source.
        worker: the class of the workers.
    """

    def __init__(
        self,
        ray: Any,
        job: Any,
        cluster: Cluster,
        workers: int,
        sends: bool = False,
        worker: type = Worker,
    ) -> None:
        self._ray, self._job, self._cluster = ray, job, cluster
        self._workers, self._sends, self._worker = workers, sends, worker

    def fingerprint(self, engine: Engine, recipe: dict[str, Any], loader: ViewLoader) -> dict[str, Any]:
        """Return what shapes features on the workers: the same on all."""
        inputs: dict[str, Any] = self._job.inputs
        return inputs

    def run(
        self, chosen: Sequence[int], views: Views, engine: Engine
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        """Yield views with their features as they arrive; a worker that dies is replaced, its block computed again."""
        if not len(chosen):
            return
        cluster, data = self._cluster, self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        blocks = [self._ray.put(block) for block in self._blocks(chosen, views, engine.batch_size)]
        dataset = data.from_pandas_refs(blocks).map_batches(
            self._worker,
            fn_constructor_args=(self._job,),
            batch_size=None,
            batch_format="pandas",
            compute=data.ActorPoolStrategy(
                min_size=1,  # if others use the cluster, it begins with those that there is room for
                initial_size=self._workers,
                max_size=self._workers,
                max_tasks_in_flight_per_actor=2,  # no worker hoards blocks while others wait
            ),
            num_cpus=cluster.cpus_per_worker,
            num_gpus=cluster.gpus_per_worker,
        )
        batches = dataset.iter_batches(batch_size=None, batch_format="numpy")
        try:
            for batch in ray_cluster.while_alive(self._ray, batches):
                if batch["oom"].any():
                    raise OutOfMemoryError(int(batch["oom"].max()), str(batch["error"][0]))
                if batch["error"][0]:
                    raise UserError(str(batch["error"][0]))
                yield batch["view"].tolist(), batch["features"]
        except self._ray.exceptions.RayTaskError:
            raise  # a mistake in our code, not of the cluster
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise UserError(
                f"the cluster failed ({ray_cluster.explain(error)}); what has arrived is in the feature store: the "
                "same command goes on from there"
            ) from error

    def _blocks(self, chosen: Sequence[int], views: Views, batch_size: int) -> Iterator[pd.DataFrame]:
        size = int(np.clip(-(-len(chosen) // (BLOCKS_PER_WORKER * self._workers)), batch_size, LARGEST_BLOCK))
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            block = pd.DataFrame(views.names(part), columns=["path", "file_hash", "number"])
            block["view"] = np.asarray(part)
            if self._sends:
                again = block.path.eq(block.path.shift())  # views of an example are next to each other
                names = zip(block.path, block.file_hash, again, strict=True)
                source = views.loader.source
                block["data"] = [b"" if known else read_unchanged(source, *name) for *name, known in names]
            yield block


@contextmanager
def open_ray(
    encoder: Encoder, manifest: pd.DataFrame, batch_size: int | None
) -> Iterator[tuple[RayExecutor, RemoteEngine]]:
    """Connect to the cluster of `encoder.params`, and see that its machines give the same features.

    Raises:
        UserError: if it cannot be reached, or if a machine has other versions, gives other features or cannot read the
            data; the message names it.
    """
    params = encoder.params
    with ray_cluster.connect(params.cluster) as ray:
        workers = ray_cluster.count_workers(ray, params.cluster)
        job, machines = ask_machines(ray, encoder, manifest, batch_size)
        inputs = check_machines(machines)
        unread = [each for each in machines if each.unread]
        if unread:
            check_sendable(params, manifest, unread)
        count = f"{len(machines)} machine{'' if len(machines) == 1 else 's'}"
        print(f"extract: {workers} workers on {count} of the cluster {params.cluster.address}", flush=True)
        executor = RayExecutor(ray, replace(job, inputs=inputs), params.cluster, workers, bool(unread))
        yield executor, RemoteEngine(machines[0].facts, workers)


def ask_machines(
    ray: Any, encoder: Encoder, manifest: pd.DataFrame, batch_size: int | None
) -> tuple[Job, list[Machine]]:
    """Return what the workers need to know, and what each machine of the cluster answers to that."""
    first = manifest.iloc[0]
    job = Job(
        params=localize(encoder.params).model_dump(),
        kind=encoder.prepared.name,
        reading=encoder.prepared.reading,
        depth=encoder.depth,
        batch_size=batch_size,
        root=os.getcwd(),
        example=(first.path, first.file_hash),
        versions=versions(),
    )
    answers = ray_cluster.on_each_node(ray, describe_machine, job, encoder.params.cluster.gpus_per_worker)
    return job, [replace(answer, name=f"{answer.name} at {address}") for address, answer in answers]


def check_machines(machines: Sequence[Machine]) -> dict[str, Any]:
    """Return what shapes features on all of the machines; raises UserError if one cannot take part or differs."""
    for each in machines:
        if each.error:
            raise UserError(f"cluster: {each.name} {each.error}")
    one, *others = machines
    inputs: dict[str, Any] = one.facts["inputs"]
    for other in others:
        differing = [key for key, value in inputs.items() if other.facts["inputs"].get(key) != value]
        if differing:
            raise UserError(
                f"cluster: {one.name} and {other.name} compute different features ({', '.join(differing)}); use "
                "machines of one kind, or name an engine that all have by extract.engine"
            )
    return inputs


def localize(params: Params) -> Params:
    """Return params whose paths start from the root of the file system, as a worker needs them."""
    places = {name: getattr(params.data, name) for name in ("source", "root")}
    whole = {name: os.path.abspath(place) for name, place in places.items() if place and not is_address(place)}
    weights = params.weights if params.weights in ("pretrained", "none") else os.path.abspath(params.weights)
    return params.model_copy(update={"weights": weights, "data": params.data.model_copy(update=whole)})


def check_sendable(params: Params, manifest: pd.DataFrame, unread: Sequence[Machine]) -> None:
    """Say that examples are sent along, since some machines cannot read them; raises UserError if they are too many."""
    names = ", ".join(each.name for each in unread)
    if is_address(params.data.source):
        raise UserError(f"cluster: {names} cannot read data.source {params.data.source!r}: {unread[0].unread}")
    with open_examples(params.data, load_modality()) as source:
        total = sum(source.state(path)[0] for path in manifest.path)
    if total > MOST_BYTES:
        raise UserError(
            f"cluster: {names} cannot read data.source {params.data.source!r} ({unread[0].unread}), and {total:,} "
            f"bytes are too many to send along (at most {MOST_BYTES:,}); put them where all machines see them, or at "
            "an address"
        )
    print(f"extract: {names} cannot read data.source {params.data.source!r}: examples are sent along, {total:,} bytes")


def check_cluster() -> int:
    """Print what each machine of the cluster has; return how many cannot take part.

    Raises:
        UserError: if there is no cluster, or prepare has not run.
    """
    params = load_params()
    settings = params.cluster
    if settings.address == "local":
        raise UserError("params.yaml: cluster.address is local: no cluster to check; see docs/cluster.md")
    if not paths.READING.is_file():
        raise UserError(f"{paths.READING} does not exist; run `dvc repro prepare`, then check again")
    manifest, modality = load_manifest(), load_modality()
    encoder = Encoder(params, modality, choose_depth(params.extract, manifest))
    with ray_cluster.connect(settings) as ray:
        for node in ray_cluster.nodes(ray):
            has = node["Resources"]
            print(f"{node['NodeManagerAddress']}: {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs")
        workers = ray_cluster.count_workers(ray, settings)
        _, machines = ask_machines(ray, encoder, manifest, params.extract.batch_size)
        for each in machines:
            reads = (
                f"cannot read {params.data.source} ({each.unread})" if each.unread else f"reads {params.data.source}"
            )
            found = each.error or f"same versions as here, {each.facts['name']} on {each.facts['device_name']}, {reads}"
            print(f"{each.name}: {found}")
        failed = sum(each.error is not None for each in machines)
        if not failed:
            check_machines(machines)
            print(f"room for {workers} workers, which give the same features")
        return failed
