"""The HTTP interface of the model server: MLflow's /invocations, /ping, /health and /version.

Built on FastAPI, which MLflow's own server is built on.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

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


async def respond(request: Request, service: Service, timeout: float) -> Response:
    """Answer a request for predictions, whatever happens, within `timeout` seconds."""
    try:
        check_content_type(request.headers.get("content-type"))
        with Claim(service.bodies) as claim:
            return Response(await _answer(request, service, claim, timeout), media_type="application/json")
    except RequestError as error:
        return _error(error.status, str(error))
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except asyncio.CancelledError:  # by uvicorn, which would log a stack trace
        return _error(503, "the server is shutting down")
    except Exception as error:  # whatever it is, the next request is answered
        print(f"serve: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return _error(500, "internal error; the server's log has the reason")


async def _answer(request: Request, service: Service, claim: Claim, timeout: float) -> str:
    started = asyncio.get_running_loop().time()
    try:
        body = await asyncio.wait_for(read_body(request, claim), min(timeout, BODY_SECONDS))
    except (asyncio.TimeoutError, TimeoutError):
        raise RequestError(408, "the request did not arrive in time") from None
    left = started + timeout - asyncio.get_running_loop().time()
    work = asyncio.ensure_future(service.answer(body))
    gone = asyncio.ensure_future(request.receive())  # ends when the client disconnects
    try:
        await asyncio.wait({work, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise ClientDisconnect
        raise RequestError(504, f"no answer within {timeout:g} s; send fewer examples, or try again later")
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


def _error(status: int, message: str) -> Response:
    content = {"error_code": ERROR_CODES.get(status, "INVALID_PARAMETER_VALUE"), "message": message}
    headers = {"Retry-After": RETRY_AFTER} if status == 503 else {"Connection": "close"} if status == 408 else None
    return Response(json.dumps(content), status, headers, media_type="application/json")
