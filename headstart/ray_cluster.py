"""Ray, connected as params.yaml says: on this machine, or a cluster that this machine belongs to.

Ray is imported here alone, and only if `cluster.address` asks for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import queue
import re
import secrets
import signal
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

SECONDS_TO_ANSWER, SECONDS_WITHOUT_HEAD, SECONDS_TO_END = 5, 15, 10
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _import_ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"params.yaml: cluster.address needs Ray, {RAY_EXTRA}; or set it to local")
    # Ray reads these when it is imported: it would report to its makers, print lines of its own, and connect to any
    # cluster that it finds if a thread of it is late.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
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
    options: dict[str, Any] = {"address": settings.address}
    if settings.address == "here":
        # By default Ray listens on all interfaces. With this, on Linux too, it binds to loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        options = {"address": "local", "num_cpus": cores(), "include_dashboard": False}
    ray = _import_ray()
    try:
        if ":" in settings.address:  # Ray itself tries for two minutes
            host, _, port = settings.address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
        with discard_stderr(), _same_signals():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise UserError(
            f"params.yaml: cluster.address {settings.address}: Ray cannot be "
            f"{'started' if settings.address == 'here' else 'reached'} ({one_line(error)}); "
            "see `ray status`, and whether RAY_AUTH_TOKEN_PATH names the token of the head; or set it to local"
        ) from error
    try:
        yield ray
    finally:
        # In a thread of its own: without the head Ray would wait for it, and then end this process.
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(SECONDS_TO_END)


@contextmanager
def _same_signals() -> Iterator[None]:
    """Keep the handlers of signals, which Ray replaces by those of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def while_alive(ray: Any, items: Iterable[Any]) -> Iterator[Any]:
    """Yield what `items` yields, as long as the head of the cluster can be reached.

    Ray itself waits for a head that is gone, and ends this process without a word after a minute.

    Raises:
        ConnectionError: if the head cannot be reached for SECONDS_WITHOUT_HEAD.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=2)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((kind, value), timeout=0.1)
                return

    def read() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except Exception as error:
            put("error", error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    seen = time.monotonic()
    try:
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
    finally:
        stopped.set()
        reader.join(1)  # it may wait for a head that is gone


def explain(error: Exception) -> str:
    """Return what an error of Ray is about in one line: the last of its traceback, without colours."""
    lines = [line.strip() for line in COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def nodes(ray: Any) -> list[dict[str, Any]]:
    """Return the machines that have CPUs, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def on_each_node(ray: Any, function: Callable[[Any], Any], argument: Any, gpus: float) -> list[tuple[str, Any]]:
    """Return the address of each machine that has CPUs, with what `function` returns there for `argument`.

    Args:
        gpus: how many the function sees there.

    Raises:
        UserError: if a machine cannot run it.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_calls=1)(function)
    waiting = []
    for node in nodes(ray):
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        has = min(gpus, node["Resources"].get("GPU", 0))
        there = task.options(scheduling_strategy=strategy, num_gpus=has)
        waiting.append((node["NodeManagerAddress"], there.remote(argument)))

    def answers() -> Iterator[tuple[str, Any]]:
        for address, future in waiting:
            try:
                yield address, ray.get(future)
            except ray.exceptions.RayError as error:
                raise UserError(f"cluster: {address} cannot take part: {explain(error)}") from error

    try:
        return list(while_alive(ray, answers()))
    except ConnectionError as error:
        raise UserError(f"cluster: {error}") from error


def count_workers(ray: Any, settings: Cluster) -> int:
    """Return how many workers the cluster has room for, `cluster.workers` at most.

    Raises:
        UserError: if not for a single one, or for fewer than `cluster.workers`.
    """
    room, asked = 0, f"{settings.cpus_per_worker} CPUs and {settings.gpus_per_worker:g} GPUs each"
    for node in nodes(ray):
        has = node["Resources"]
        fits = [has["CPU"] // settings.cpus_per_worker]
        if settings.gpus_per_worker >= 1:
            fits.append(has.get("GPU", 0) // settings.gpus_per_worker)
        elif settings.gpus_per_worker:  # a worker has its share of one GPU
            fits.append(has.get("GPU", 0) * math.floor(1 / settings.gpus_per_worker + 1e-9))
        room += int(min(fits))
    wanted = settings.workers or 1
    if room < wanted:
        raise UserError(
            f"params.yaml: cluster.workers {settings.workers or 'null'}: the cluster has room for {room} workers of "
            f"{asked}; lower cluster.workers, cpus_per_worker or gpus_per_worker, or add machines"
        )
    return settings.workers or room
