"""An HTTP server for the trained model, on this machine, which speaks the protocol of `mlflow models serve`.

    curl http://127.0.0.1:5002/invocations -H 'Content-Type: application/json' \
        --data-binary '{"dataframe_records": [{"image": "BASE64"}]}'      # or [{"text": "..."}]

returns {"predictions": [{"label": ..., "probability": ..., "probabilities": {class: ...}}]}; bad input is answered with
status 400 and the reason. What a client may cost is bounded, see `limits`.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from headstart import paths
from headstart.errors import UserError
from headstart.serving import limits
from headstart.serving.model_file import load_classifier, read_model_info, warn_of_other_model

TIMEOUT, MEMORY = 60.0, 1024  # seconds of a request; MiB of all requests


def serve(
    port: int = 5002,
    host: str = "127.0.0.1",
    model: Path = paths.MODEL,
    timeout: float = TIMEOUT,
    memory: int = MEMORY,
    docs: bool = False,
) -> None:
    """Serve the model until Ctrl-C.

    Args:
        timeout: seconds that a request may take, in which its work is given up.
        memory: MiB that all requests together may take.
        docs: serve pages about the API at /docs and /redoc.

    Raises:
        UserError: if there is no model, or the server cannot bind to the address.
    """
    read_model_info(model)
    warn_of_other_model(model, "serve")
    with bind(host, port) as listener, suppress(KeyboardInterrupt):
        limits.return_memory()
        from headstart.serving.app import make_app
        from headstart.serving.connections import make_server
        from headstart.serving.network import open_network
        from headstart.serving.service import Service

        classifier = load_classifier(model)
        network, words = open_network(classifier)

        def start() -> Service:
            return Service(network, classifier.classes, classifier.modality, classifier.size, memory * 2**20)

        print(f"serve: the network runs by {words}")
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"Serving {model} at http://{address}/invocations, until Ctrl-C", flush=True)
        make_server(make_app(start, timeout, docs)).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address, and does not listen yet.

    Raises:
        UserError: if that is not possible.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol spelled out, else asyncio leaves Nagle's algorithm on, and each answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended does not block it
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot bind to {host}:{port} ({error}); choose another one with --port") from error
    return listener
