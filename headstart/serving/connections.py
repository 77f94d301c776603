"""Connections of the model server: those that send too slowly are closed, and the server ends when it shall."""

from __future__ import annotations

import asyncio
import os
import threading
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.serving.limits import (
    BODY_SECONDS,
    CHUNK_BYTES,
    GRACE_SECONDS,
    HEADER_SECONDS,
    MAX_CONNECTIONS,
    STOP_SECONDS,
    TINY_CHUNKS,
)

MARGIN = 5.0  # seconds, after which a connection is closed whose client does not read why


class Connection(H11Protocol):
    """A connection that is closed if headers or a body take too long to arrive or to parse, or others are too many."""

    _receiving: tuple[Any, int] | None = None
    _deadline: asyncio.TimerHandle | None = None
    _breaks = _bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._has_tiny_chunks(data):
            self.transport.abort()
        else:
            super().data_received(data)

    def _has_tiny_chunks(self, data: bytes) -> bool:
        """Whether a body comes in chunks that take far longer to parse than to send; `data` is what comes next."""
        in_body = self.conn.their_state is h11.SEND_BODY
        head, _, rest = (b"", b"", data) if in_body else data.partition(b"\r\n\r\n")
        if not in_body:
            self._breaks = self._bytes = 0
        # In the headers of this request, or among the last of them that have just come.
        whole = (
            any(name == b"content-length" for name, _ in self.headers) if in_body else b"content-length" in head.lower()
        )
        self._breaks += 0 if whole else rest.count(b"\r\n")
        self._bytes += len(rest)
        return self._breaks > TINY_CHUNKS + 2 * self._bytes / CHUNK_BYTES

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(MARGIN, self.transport.abort)  # if the client does not read the rest of an answer

    def _watch(self) -> None:
        """Start the time of what is being received if that is something else than before."""
        receiving = self.conn.their_state, id(self.cycle)
        if receiving == self._receiving:
            return
        if self._deadline:
            self._deadline.cancel()
        seconds = {h11.IDLE: HEADER_SECONDS, h11.SEND_BODY: BODY_SECONDS + MARGIN}.get(self.conn.their_state)
        self._deadline = self.loop.call_later(seconds, self.transport.abort) if seconds else None
        self._receiving = receiving


class Server(uvicorn.Server):
    """A server that ends within STOP_SECONDS after a signal, whatever clients and threads do."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        timer = threading.Timer(STOP_SECONDS, os._exit, (128 + sig,))
        timer.daemon = True
        timer.start()


def make_server(app: FastAPI) -> Server:
    """Return the server of an application; its `run` takes the sockets."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(GRACE_SECONDS),
    )
    return Server(config)
