"""Ray, connected as params.yaml says: on this machine, or a cluster that this machine belongs to.

Ray is imported here alone and in `features.ray_executor`, and only if `cluster.address` asks for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from headstart.cluster_config import Cluster
from headstart.errors import RAY_EXTRA, UserError, one_line
from headstart.machine import cores
from headstart.quiet import discard_stderr

LOOPBACK = "127.0.0.1"
SECONDS_WITHOUT_HEAD, SECONDS_TO_END = 15, 10


def _import_ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"params.yaml: cluster.address needs Ray, {RAY_EXTRA}; or set it to local")
    # Ray reads these when it is imported: it would report to its makers, and print lines of its own.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)

    return ray


@contextmanager
def connect(settings: Cluster) -> Iterator[Any]:
    """Connect to the Ray that `settings` name, and yield the module `ray`; a Ray `here` ends with the block.

    Raises:
        UserError: if Ray is not installed, or cannot be reached or started.
    """
    ray = _import_ray()
    options: dict[str, Any] = {"address": settings.address}
    if settings.address == "here":
        # Bound to loopback, as it has no login; without the dashboard, which nobody looks at for minutes.
        options = {"address": "local", "num_cpus": cores(), "include_dashboard": False, "_node_ip_address": LOOPBACK}
    try:
        with discard_stderr():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise UserError(
            f"params.yaml: cluster.address {settings.address}: Ray cannot be "
            f"{'started' if settings.address == 'here' else 'reached'} ({one_line(error)}); "
            "see `ray status` on this machine, or set it to local"
        ) from error
    try:
        yield ray
    finally:
        # In a thread of its own: without the head Ray would wait for it, and then end this process.
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(SECONDS_TO_END)


def while_alive(ray: Any, items: Iterable[Any]) -> Iterator[Any]:
    """Yield what `items` yields, as long as the head of the cluster can be reached.

    Ray itself waits for a head that is gone, and ends this process without a word after a minute.

    Raises:
        ConnectionError: if the head cannot be reached for SECONDS_WITHOUT_HEAD.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=2)

    def read() -> None:
        try:
            for item in items:
                ready.put(("item", item))
            ready.put(("end", None))
        except Exception as error:
            ready.put(("error", error))

    threading.Thread(target=read, daemon=True).start()
    seen = time.monotonic()
    while True:
        try:
            kind, value = ready.get(timeout=1)
        except queue.Empty:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                seen = time.monotonic()
            if time.monotonic() - seen > SECONDS_WITHOUT_HEAD:
                raise ConnectionError(f"its head at {host}:{port} cannot be reached") from None
            continue
        seen = time.monotonic()
        if kind == "end":
            return
        if kind == "error":
            raise value
        yield value


def nodes(ray: Any) -> list[dict[str, Any]]:
    """Return the machines that have CPUs, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def on_each_node(ray: Any, function: Callable[[Any], Any], argument: Any) -> list[tuple[str, Any]]:
    """Return the address of each machine that has CPUs, with what `function` returns there for `argument`.

    Raises:
        UserError: if a machine cannot run it.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_calls=1)(function)
    waiting = []
    for node in nodes(ray):
        there = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        waiting.append((node["NodeManagerAddress"], there.remote(argument)))
    results = []
    for address, future in waiting:
        try:
            results.append((address, ray.get(future)))
        except ray.exceptions.RayError as error:
            raise UserError(f"cluster: {address} cannot take part: {one_line(error)}") from error
    return results


def count_workers(ray: Any, settings: Cluster) -> int:
    """Return how many workers the cluster has room for, `cluster.workers` at most.

    Raises:
        UserError: if not for a single one, or for fewer than `cluster.workers`.
    """
    room, asked = 0, f"{settings.cpus_per_worker} CPUs and {settings.gpus_per_worker:g} GPUs each"
    for node in nodes(ray):
        has = node["Resources"]
        fits = [has["CPU"] // settings.cpus_per_worker]
        if settings.gpus_per_worker:
            fits.append(has.get("GPU", 0) // settings.gpus_per_worker)
        room += int(min(fits))
    wanted = settings.workers or 1
    if room < wanted:
        raise UserError(
            f"params.yaml: cluster.workers {settings.workers or 'null'}: the cluster has room for {room} workers of "
            f"{asked}; lower cluster.workers, cpus_per_worker or gpus_per_worker, or add machines"
        )
    return settings.workers or room
