"""The model behind HTTP: what MLflow keeps of it, and a server on this machine.

Command: python -m headstart.serving.server [--port 5002] [--host 127.0.0.1] [--model FILE]

    curl http://127.0.0.1:5002/invocations -H 'Content-Type: application/json' \
        --data-binary '{"dataframe_records": [{"image": "BASE64"}]}'

answers {"predictions": [{"label": ..., "probability": ..., "probabilities": {class: ...}}]}; what cannot be read is
answered with 400 and the reason. `mlflow models serve` answers images alike with what `save` and `log` make.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.metadata
import io
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart import paths
from headstart.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from fastapi import Request, Response
    from mlflow.models.model import ModelInfo

PACKAGE = Path(__file__).parents[1]
COLUMN = "image"
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")  # in which MLflow takes rows
# What served.py imports, also by way of others; inferring it takes MLflow 18 s.
REQUIREMENTS = (
    *(
        "blake3",
        "filelock",
        "keras",
        "mlflow",
        "numpy",
        "opencv-python-headless",
        "pandas",
        "pillow",
        "simplejpeg",
        "tensorflow",
    ),
)


@contextmanager
def arguments(model_file: Path) -> Iterator[dict[str, Any]]:
    """What `mlflow.pyfunc.save_model` and `log_model` take, for as long as the context lasts.

    Raises:
        UserError: where there is no model.
    """
    _check(model_file)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # importing it sets another
    outputs = [ColSpec("string", "label"), ColSpec("double", "probability")]
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", COLUMN)]),
        outputs=Schema([*outputs, ColSpec(Map(DataType.double), "probabilities")]),
    )
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / PACKAGE.name  # without the weights of tiny, which the model has inside
        shutil.copytree(PACKAGE, code, ignore=shutil.ignore_patterns("__pycache__", "weights", "*.html"))
        yield {
            "python_model": str(PACKAGE / "serving" / "pyfunc_model.py"),
            "artifacts": {"model": str(model_file)},
            "code_paths": [str(code)],
            "signature": signature,
            "input_example": _example(),
            "pip_requirements": [f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
        }


def save(folder: Path, model_file: Path = paths.MODEL) -> None:
    """Write an MLflow model into `folder`, which is new or empty; it needs nothing else of this project.

    Raises:
        UserError: where there is no model.
    """
    with arguments(model_file) as given:
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(folder, **given)


def log(name: str, model_file: Path = paths.MODEL, **more: Any) -> ModelInfo:
    """Log the model in the active run of MLflow; `more` goes to `mlflow.pyfunc.log_model`, as registered_model_name.

    MLflow then loads it and asks it about its example, which loads TensorFlow; `save` does not.

    Raises:
        UserError: where there is no model.
    """
    with arguments(model_file) as given:
        import mlflow.pyfunc

        return mlflow.pyfunc.log_model(name=name, **given, **more)


def _check(model_file: Path) -> None:
    """See that it is a model of this pipeline, without TensorFlow."""
    if not model_file.is_file():
        raise UserError(f"{model_file} does not exist; run `dvc repro`, or `dvc pull` where a remote holds it")
    try:
        with zipfile.ZipFile(model_file) as archive:
            json.loads(archive.read("classes.json"))
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise UserError(f"{model_file} is not a model of this pipeline: {error}") from error


def _example() -> pd.DataFrame:
    """A row as the server takes it: a small picture that shows nothing."""
    import pandas as pd
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(buffer, "PNG")
    return pd.DataFrame({COLUMN: [base64.b64encode(buffer.getvalue()).decode()]})


async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    """What stands before MLflow's server, which answers some requests with a stack trace, and others with fewer answers
    than there are images.
    """
    if request.url.path != "/invocations" or request.method != "POST":
        return await go_on(request)
    kind = request.headers.get("content-type") or "none"
    if kind.split(";")[0].strip() != "application/json":
        return _refusal(415, f"Content-Type must be application/json, got {kind}")
    try:
        wrong = await asyncio.to_thread(problem, await request.body())
        answer = _refusal(400, wrong) if wrong else await go_on(request)
    except Exception as error:  # whatever it is, the next request is answered
        print(f"serving: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return _refusal(500, "this request cannot be answered; the server's log says why")
    return await _without_trace(answer) if answer.status_code >= 400 and not wrong else answer


def problem(body: bytes) -> str:
    """What is wrong with the form of a request, or an empty text; what it says is MLflow's to judge."""
    try:
        given = json.loads(body)
    except RecursionError:
        return "the JSON is nested too deeply"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"no JSON: {' '.join(str(error).split())[:200]}"
    except ValueError:  # Python's bound for whole numbers
        return "the JSON has a number of too many digits"
    forms = [name for name in FORMS if name in given] if isinstance(given, dict) else []
    if len(forms) != 1:
        return f'give a JSON object with one of {", ".join(FORMS)}, as {{"{FORMS[0]}": [{{"{COLUMN}": "..."}}]}}'
    rows = given[forms[0]] if isinstance(given[forms[0]], list) else []
    # MLflow would pass over such a row.
    wrong = [place for place, row in enumerate(rows) if isinstance(row, dict) and COLUMN not in row]
    return "; ".join(f"{COLUMN} {place} (counted from 0, of {len(rows)}): missing" for place in wrong)


async def _without_trace(answer: Response) -> Response:
    text = b"".join([part async for part in answer.body_iterator]).decode("utf-8", "replace")
    try:
        told = json.loads(text)
        told.pop("stack_trace", None)
    except (ValueError, AttributeError):  # a line of text
        return _refusal(answer.status_code, text)
    return _told(answer.status_code, told)


def _refusal(status: int, message: str) -> Response:
    code = "INTERNAL_ERROR" if status >= 500 else "INVALID_PARAMETER_VALUE"
    return _told(status, {"error_code": code, "message": message})


def _told(status: int, answer: dict[str, Any]) -> Response:
    from fastapi.responses import Response

    return Response(json.dumps(answer), status, media_type="application/json")


def serve(model_file: Path, host: str, port: int) -> None:
    """Answer until the process is stopped, as `mlflow models serve --env-manager local` does, in this process.

    Raises:
        UserError: where there is no model, or the address cannot be listened at.
    """
    _check(model_file)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no obstacle
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{host}:{port} cannot be listened at ({error}); name another port: make serve PORT={port + 1}"
            ) from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else the folder below would stay
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model", model_file)
        import uvicorn
        from mlflow.pyfunc import load_model, scoring_server

        app = scoring_server.init(load_model(str(Path(folder) / "model")))
        app.middleware("http")(guard)
        print(f"Serving {model_file} at http://{host}:{port}/invocations, until Ctrl-C", flush=True)
        uvicorn.run(app, host=host, port=port, log_level="warning")


def main(argv: list[str] | None = None) -> int:
    """Run the server."""
    text: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m headstart.serving.server", description=__doc__, **text)
    parser.add_argument("--port", type=int, default=5002, help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    parser.add_argument("--model", type=Path, default=paths.MODEL, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args(argv)
    try:
        serve(given.model, given.host, given.port)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
