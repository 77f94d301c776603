"""An HTTP server for the trained model, on this machine: MLflow's scoring server behind a check of each request.

    curl http://127.0.0.1:5002/invocations -H 'Content-Type: application/json' \
        --data-binary '{"dataframe_records": [{"image": "BASE64"}]}'

returns {"predictions": [{"label": ..., "probability": ..., "probabilities": {class: ...}}]}; bad input is answered with
status 400 and the reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart import paths
from headstart.errors import UserError, one_line
from headstart.serving.mlflow_model import save_model
from headstart.serving.model_file import read_model_info

if TYPE_CHECKING:
    from fastapi import Request, Response

FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")  # in which MLflow takes rows


def serve(port: int = 5002, host: str = "127.0.0.1", model: Path = paths.MODEL) -> None:
    """Serve the model until Ctrl-C.

    Raises:
        UserError: if there is no model, or the server cannot bind to the address.
    """
    column = read_model_info(model).modality.column
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended does not block it
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot bind to {host}:{port} ({error}); choose another one with --port") from error
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        save_model(Path(folder) / "model", model)
        import uvicorn
        from mlflow.pyfunc import load_model, scoring_server

        app = scoring_server.init(load_model(str(Path(folder) / "model")))
        app.middleware("http")(partial(guard, column=column))
        print(f"Serving {model} at http://{host}:{port}/invocations, until Ctrl-C", flush=True)
        uvicorn.run(app, host=host, port=port, log_level="warning")


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]], column: str) -> Response:
    """Check a request before MLflow's server, which answers some bad ones with a stack trace, and others with fewer
    predictions than there are rows.

    Args:
        column: what a row calls its example.
    """
    if request.url.path != "/invocations" or request.method != "POST":
        return await call_next(request)
    kind = request.headers.get("content-type") or "none"
    if kind.split(";")[0].strip() != "application/json":
        return _error(415, f"Content-Type must be application/json, got {kind}")
    try:
        problem = await asyncio.to_thread(find_problem, await request.body(), column)
        response = _error(400, problem) if problem else await call_next(request)
    except Exception as error:  # whatever it is, the next request is answered
        print(f"serve: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return _error(500, "internal error; the server's log has the reason")
    return await _without_trace(response) if response.status_code >= 400 and not problem else response


def find_problem(body: bytes, column: str) -> str:
    """Return what is wrong with the form of a request, or an empty text; MLflow checks its content."""
    try:
        content = json.loads(body)
    except RecursionError:
        return "the JSON is nested too deeply"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"not JSON: {one_line(error)}"
    except ValueError:  # Python's limit for integers
        return "the JSON has a number of too many digits"
    forms = [name for name in FORMS if name in content] if isinstance(content, dict) else []
    if len(forms) != 1:
        return f'give a JSON object with one of {", ".join(FORMS)}, as {{"{FORMS[0]}": [{{"{column}": "..."}}]}}'
    rows = content[forms[0]] if isinstance(content[forms[0]], list) else []
    # MLflow would skip such a row.
    wrong = [position for position, row in enumerate(rows) if isinstance(row, dict) and column not in row]
    return "; ".join(f"{column} {position} (counted from 0, of {len(rows)}): missing" for position in wrong)


async def _without_trace(response: Response) -> Response:
    parts = response.body_iterator  # type: ignore[attr-defined]  # what call_next returns is streamed
    text = b"".join([part async for part in parts]).decode("utf-8", "replace")
    try:
        content = json.loads(text)
        content.pop("stack_trace", None)
    except (ValueError, AttributeError):  # a line of text
        return _error(response.status_code, text)
    return _json(response.status_code, content)


def _error(status: int, message: str) -> Response:
    code = "INTERNAL_ERROR" if status >= 500 else "INVALID_PARAMETER_VALUE"
    return _json(status, {"error_code": code, "message": message})


def _json(status: int, content: dict[str, Any]) -> Response:
    from fastapi.responses import Response

    return Response(json.dumps(content), status, media_type="application/json")
