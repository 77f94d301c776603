"""The model server: how fast it is beside `mlflow models serve`, and what hostile clients cost it.

speed   images/s and latency with 1 and 16 clients that send one photograph each, of `headstart serve`, of `mlflow
        models serve`, and of a loop without HTTP, for networks with random weights.
abuse   clients send PNGs of 88 megapixels and half a megabyte, others images of 33 megapixels, which are accepted, and
        100 sockets drip headers and bodies; the peak of the server's memory, the slowest /ping, and how long it takes
        to end.

Command: python benchmarks/serving.py speed|abuse [--seconds 10] [--backbone tiny mobilenetv2]
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from headstart.modalities import get_modality
from headstart.modalities.image.probes import pattern

ROOT = Path(__file__).parent.parent
JSON = {"Content-Type": "application/json"}
CLIENTS = 1, 16
HOSTILE, DRIPPING = 64, 100
DRIP = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\n"


def save_random(backbone: str, file: Path) -> None:
    """Write a classifier with random weights, of five classes."""
    from headstart.backbones import get_backbone
    from headstart.framework import keras
    from headstart.training import networks

    keras.utils.set_random_seed(0)
    size = get_backbone(backbone).default_size
    encoder = get_backbone(backbone).build("none", size, "avg", 0)
    head = networks.build_head(encoder.output_shape[1], 5, [])
    network = networks.join(get_modality("image").front(size), encoder, head)
    networks.save(network, file, list("abcde"), modality="image", size=size)


def encode(image: Image.Image, kind: str, **options: int) -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def request_body(data: bytes) -> bytes:
    """Return a request for one image."""
    return json.dumps({"instances": [{"image": base64.b64encode(data).decode()}]}).encode()


@contextmanager
def serving(*command: str | Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run a server; yields its process and port when it answers /ping."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", *map(str, command), "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            wait_for_ping(port, process, Path(log.name))
            yield process, port
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def wait_for_ping(port: int, process: subprocess.Popen, log: Path) -> None:
    """Return when the server answers /ping."""
    while True:
        try:
            ask(port, "/ping")
            return
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}:\n{log.read_text()}") from None
            time.sleep(0.2)


def ask(port: int, path: str, body: bytes | None = None, timeout: float = 30) -> int:
    """Send a request on a connection of its own; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST" if body else "GET", path, body, JSON)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def load(port: int, body: bytes, clients: int, seconds: float) -> list[float]:
    """Send requests from `clients` threads at once for some seconds; return the latency of each, in seconds."""
    until = time.perf_counter() + seconds

    def client(_: int) -> list[float]:
        connection, latencies = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
        while (start := time.perf_counter()) < until:
            connection.request("POST", "/invocations", body, JSON)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise SystemExit(f"status {answer.status}: {text[:500]!r}")
            latencies.append(time.perf_counter() - start)
        connection.close()
        return latencies

    with ThreadPoolExecutor(clients) as pool:
        return [latency for latencies in pool.map(client, range(clients)) for latency in latencies]


def show(name: str, latencies: list[float], seconds: float, images: int = 1) -> None:
    """Print a line of the table."""
    ordered = sorted(latencies)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    rate = images * len(ordered) / seconds
    print(f"{name:<40} {rate:7.0f} {statistics.median(ordered) * 1e3:9.1f} {p95 * 1e3:9.1f}", flush=True)


def bare_loop(model: Path, data: bytes, batch_size: int, seconds: float) -> list[float]:
    """Load and predict in a loop; return the seconds of each batch."""
    from headstart.training import networks

    classifier = networks.load_classifier(model)
    modality, latencies = classifier.modality, []

    def batch() -> None:
        arrays = [modality.load(data, classifier.size) for _ in range(batch_size)]
        classifier.predict(modality.batch(arrays), batch_size)

    batch()
    until = time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        batch()
        latencies.append(time.perf_counter() - start)
    return latencies


def speed(backbones: list[str], seconds: float) -> None:
    """Print images/s and latency of both servers and of loops."""
    from headstart.serving.mlflow_model import save_model

    photo = encode(Image.fromarray(pattern(500, 375)), "JPEG", quality=90)
    print(f"one JPEG of 500 x 375 pixels, {len(photo) >> 10} KB\n{'':<40} images/s median ms    p95 ms")
    for backbone in backbones:
        with tempfile.TemporaryDirectory() as folder:
            model, mlflow_model = Path(folder, "model.keras"), Path(folder, "mlflow")
            save_random(backbone, model)
            save_model(mlflow_model, model)
            for size in (1, 32):
                name = f"{backbone}, Keras in a loop, {size} a batch"
                show(name, bare_loop(model, photo, size, seconds), seconds, size)
            for name, command in (
                ("headstart serve", ("headstart", "serve", "--model", model)),
                ("mlflow models serve", ("mlflow", "models", "serve", "--env-manager", "local", "-m", mlflow_model)),
            ):
                with serving(*command) as (_, port):
                    load(port, request_body(photo), CLIENTS[-1], 1)  # until all batch sizes are compiled
                    for clients in CLIENTS:
                        latencies = load(port, request_body(photo), clients, seconds)
                        show(f"{backbone}, {name}, {clients} client{'s'[: clients - 1]}", latencies, seconds)


def memory(process: subprocess.Popen, field: str) -> float:
    """Return a figure of /proc/PID/status, in GB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{field}:"))


def repeat(until: float, action: Callable[[], int], seen: Counter) -> None:
    """Do something again and again; count the statuses, or the errors of connections."""
    while time.perf_counter() < until:
        try:
            seen[action()] += 1
        except OSError as error:
            seen[type(error).__name__] += 1


def drip(port: int, until: float, seen: Counter, headers: bytes) -> None:
    """Send a byte a second, after `headers`, until the server closes the connection; then start again."""
    while time.perf_counter() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(headers)
                while time.perf_counter() < until:
                    connection.sendall(b"a")
                    time.sleep(1)
        except OSError:
            seen["closed"] += 1


def abuse(backbones: list[str], seconds: float) -> None:
    """Print what hostile clients cost the server."""
    too_large = request_body(encode(Image.new("RGBA", (11000, 8000), (9, 8, 7, 6)), "PNG"))
    largest = request_body(encode(Image.new("RGB", (7680, 4320), (9, 8, 7)), "PNG"))
    slow = DRIP + b"X: ", DRIP + b"Content-Type: application/json\r\nContent-Length: 60000000\r\n\r\n"
    print(f"requests of {len(too_large) >> 10} KB (88 megapixels) and {len(largest) >> 10} KB (33 megapixels)")
    with tempfile.TemporaryDirectory() as folder:
        save_random(backbones[0], Path(folder, "model.keras"))
        with serving("headstart", "serve", "--model", Path(folder, "model.keras")) as (process, port):
            before, until = memory(process, "VmRSS"), time.perf_counter() + seconds
            statuses: dict[str, Counter] = {"88": Counter(), "33": Counter()}
            pings, dripped = list[float](), Counter[str]()
            threads = [
                threading.Thread(
                    target=repeat, args=(until, lambda body=body: ask(port, "/invocations", body, 60), statuses[name])
                )
                for name, body, count in (("88", too_large, HOSTILE // 2), ("33", largest, HOSTILE // 2))
                for _ in range(count)
            ] + [
                threading.Thread(target=drip, args=(port, until + 30, dripped, slow[number % 2]), daemon=True)
                for number in range(DRIPPING)
            ]
            for thread in threads:
                thread.start()
            while time.perf_counter() < until:
                start = time.perf_counter()
                ask(port, "/ping")
                pings.append(time.perf_counter() - start)
                time.sleep(0.1)
            for thread in threads[:HOSTILE]:
                thread.join()
            for name, seen in statuses.items():
                print(f"{name} megapixels: " + ", ".join(f"{count} x {status}" for status, count in seen.items()))
            after, peak = memory(process, "VmRSS"), memory(process, "VmHWM")
            print(f"memory: {before:.2f} GB before, {peak:.2f} GB at most, {after:.2f} GB after")
            print(f"/ping: {statistics.median(pings) * 1e3:.0f} ms, at most {max(pings) * 1e3:.0f} ms")
            print(f"{DRIPPING} sockets that drip: closed {dripped['closed']} times")
            start = time.perf_counter()
            process.terminate()
            process.wait(60)
            print(f"ended {time.perf_counter() - start:.1f} s after SIGTERM, with {process.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "abuse"])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--backbone", nargs="+", default=["tiny", "mobilenetv2"])
    options = parser.parse_args()
    {"speed": speed, "abuse": abuse}[options.what](options.backbone, options.seconds)


if __name__ == "__main__":
    main()
