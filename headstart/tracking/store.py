"""Where MLflow keeps its runs, and the way there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from headstart.errors import UserError
from headstart.paths import cache_path, workspace_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "headstart"
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # of each run that ends
    # One try, and no long wait: what a server that is down does not take is kept.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
SERVER_REFUSES = range(400, 500)
ASKS_TO_TRY_AGAIN = {401, 403, 408, 429}  # answers that another moment or another login may change
ADDRESSES = (
    "http://... or https://... of a server, or sqlite:///mlflow.db, postgresql://..., mysql://... or mssql://... of a "
    "database; without it the runs are kept in mlflow.db"
)


class UnreachableError(Exception):
    """The store did not take a record, and may take it later."""


class RefusedError(Exception):
    """The store will never take a record."""


def embedded() -> bool:
    """Whether the store is mlflow.db in the root of the repository."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


def uri() -> str:
    """The address of the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(workspace_root() / 'mlflow.db').as_posix()}"


def is_there() -> bool:
    """Whether there is a store; of a server, that is to be found out."""
    return not embedded() or (workspace_root() / "mlflow.db").is_file()


def experiment_name() -> str:
    """Of the experiment in MLflow that the runs belong to."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def model_name() -> str:
    """Of the registered model: that of the experiment, without the letters that such a name may not have."""
    return re.sub(r"[^\w.-]+", "-", experiment_name()).strip("-") or EXPERIMENT


@contextmanager
def connected() -> Iterator[MlflowClient]:
    """A client of the store, alone among the processes of this repository: a fresh store must be opened by one.

    Raises:
        UnreachableError: for whatever goes wrong inside that may go right another time.
        UserError: where MLFLOW_TRACKING_URI is no address of a store.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    lock = cache_path("tracking.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            yield _client()
    except UserError:
        raise
    except Exception as error:
        raise UnreachableError(line(error)) from error


def _client() -> MlflowClient:
    """A client, which opens a database, but asks no server yet.

    Raises:
        UserError: where MLFLOW_TRACKING_URI is no address of a store.
    """
    import logging

    from mlflow import MlflowClient  # takes two seconds, and sets its own logger
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        address = urlsplit(uri())
        if address.scheme in ("http", "https") and (not address.hostname or address.port == 0):
            raise ValueError("it names no server")
        return MlflowClient(uri())
    except OperationalError:  # locked, or not to be reached
        raise
    except (MlflowException, ImportError, ArgumentError, DatabaseError, ValueError) as error:
        if embedded() or (isinstance(error, MlflowException) and not is_refused(error)):
            raise
        raise UserError(
            f"MLFLOW_TRACKING_URI: no runs can be kept at {uri()!r} ({line(error)[:120]}); it may be {ADDRESSES}"
        ) from error


def is_refused(error: BaseException) -> bool:
    """Whether the store would refuse the same another time too, so that a record is not worth being kept for it."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError
    from sqlalchemy.exc import DatabaseError

    if isinstance(error, MlflowException):
        # A database says so by its own error; of that name itself, and of no kind of it, is one that is damaged.
        if type(error.__cause__) is DatabaseError:
            return False
        status = error.get_http_status_code()
    elif isinstance(error, HTTPError) and error.response is not None:  # of an artifact on its way
        status = error.response.status_code
    else:
        told = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)  # what a damaged record ends in
        return isinstance(error, told) and not isinstance(error, OSError)
    return status in SERVER_REFUSES and status not in ASKS_TO_TRY_AGAIN


def experiment_id(client: MlflowClient) -> str:
    """The experiment in MLflow; made where there is none, brought back where it was deleted."""
    name = experiment_name()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = (workspace_root() / "mlartifacts").as_uri() if embedded() else None
        return client.create_experiment(name, artifact_location=artifacts)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def warn(message: str) -> None:
    """Say what went wrong; tracking never costs a result."""
    print(f"tracking: {message}", file=sys.stderr)


def line(error: BaseException) -> str:
    """`error` in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
