"""The HTTP interface of the model server: MLflow's /invocations, /ping, /health and /version.

Built on FastAPI, which MLflow's own server is built on.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from headstart.errors import one_line
from headstart.serving.limits import BODY_SECONDS, COPIES, MAX_BODY, VALUE_BYTES, Claim, RequestError
from headstart.serving.request import FORMS, check_content_type
from headstart.serving.service import Service

RETRY_AFTER = "2"  # seconds
ERROR_CODES = {500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}  # MLflow's
CLIENT_GONE = 499  # in the words of nginx; nobody reads it


def make_app(start: Callable[[], Service], timeout: float, docs: bool = False) -> FastAPI:
    """Return the application.

    Args:
        start: makes the service, in the event loop of the server.
        timeout: seconds that a request may take.
        docs: serve pages about the interface.
    """
    running: list[Service] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running.append(start())
        yield
        running.pop().close()

    pages = ("docs", "redoc", "openapi")
    addresses = {f"{page}_url": f"/{page}" + ".json" * (page == "openapi") if docs else None for page in pages}
    app = FastAPI(title="Headstart", lifespan=lifespan, **addresses)  # type: ignore[arg-type]

    async def ping() -> Response:
        """Whether the server is up."""
        return Response("\n", media_type="application/json")

    app.get("/ping")(ping)
    app.get("/health")(ping)

    @app.get("/version")
    async def version() -> Response:
        """The version of MLflow whose protocol this is."""
        return Response(importlib.metadata.version("mlflow"), media_type="application/json")

    body = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}

    @app.post("/invocations", openapi_extra={"requestBody": body}, description=f"One of {', '.join(FORMS)}.")
    async def invocations(request: Request) -> Response:
        return await respond(request, running[0], timeout)

    return app


class EarlyResponse(Response):
    """A response to a request that has not been read to its end: what is left is dropped.

    Most clients read an answer only after they have sent everything, and would see a broken connection.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it whole, then wait for the end of the request, or until `Connection` closes the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        while (await receive()).get("more_body", False):
            pass
        await send({"type": "http.response.body", "body": b""})


async def respond(request: Request, service: Service, timeout: float) -> Response:
    """Answer a request for predictions, whatever happens, within `timeout` seconds."""
    started = asyncio.get_running_loop().time()
    try:
        with Claim(service.bodies) as claim:
            try:
                check_content_type(request.headers.get("content-type"))
                body = await asyncio.wait_for(read_body(request, claim), min(timeout, BODY_SECONDS))
            except RequestError as error:
                return _error(error, EarlyResponse)
            except (asyncio.TimeoutError, TimeoutError):
                return _error(RequestError(408, "the request did not arrive in time"))
            seconds = started + timeout - asyncio.get_running_loop().time()
            answer = await _while_connected(request, service.answer(body), seconds)
        return Response(answer, media_type="application/json")
    except RequestError as error:
        return _error(error)
    except (asyncio.TimeoutError, TimeoutError):
        late = f"no answer within {timeout:g} s; send fewer examples, or try again later"
        return _error(RequestError(504, late))
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except asyncio.CancelledError:  # by uvicorn, which would log a stack trace
        return _error(RequestError(503, "the server is shutting down"))
    except Exception as error:  # whatever it is, the next request is answered
        print(f"serve: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return _error(RequestError(500, "internal error; the server's log has the reason"))


async def _while_connected(request: Request, answer: Coroutine[Any, Any, str], seconds: float) -> str:
    """Return the answer; work on it stops if the client disconnects, or after so many seconds.

    Raises:
        ClientDisconnect, TimeoutError: then.
    """
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect if gone.done() else TimeoutError
    finally:
        work.cancel()
        gone.cancel()


async def read_body(request: Request, claim: Claim) -> bytearray:
    """Return the body of a request, after claiming the memory that it takes with all that is made of it.

    Raises:
        RequestError: 413 if it is too large, 503 if there is no memory for it now.
    """
    too_large = RequestError(413, f"the request is larger than {MAX_BODY >> 20} MiB; divide it into several")
    declared = request.headers.get("content-length", "0")
    if int(declared) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > MAX_BODY:
            raise too_large
        values = sum(map(chunk.count, (b",", b":", b"[", b"{")))  # small ones take far more than their text
        claim.grow(COPIES * len(chunk) + VALUE_BYTES * values)
        body += chunk
    return body


def _error(error: RequestError, kind: type[Response] = Response) -> Response:
    content = {"error_code": ERROR_CODES.get(error.status, "INVALID_PARAMETER_VALUE"), "message": str(error)}
    headers = {503: {"Retry-After": RETRY_AFTER}, 408: {"Connection": "close"}}.get(error.status)
    return kind(json.dumps(content), error.status, headers, media_type="application/json")
