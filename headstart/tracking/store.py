"""Where MLflow keeps its runs, and how they are read and written."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import thread as futures_thread
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from headstart.errors import UserError
from headstart.paths import cache_path, workspace_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEADLINE = 30.0  # seconds that MLflow may cost at the end of a stage, in all
EXPERIMENT = "headstart"
KEY, PARENT = "headstart.key", "mlflow.parentRunId"
METRICS, TEXTS = 800, 100  # that one call of MLflow takes: 100 params, 100 tags, and 1,000 entries in all
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # of each run that ends
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a server may ask for an hour
}
ADDRESSES = (
    "http://... or https://... of a server, or sqlite:///mlflow.db, postgresql://..., mysql://... or mssql://... of a "
    "database; without it the runs are kept in mlflow.db"
)

LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to log in"

T = TypeVar("T")
Point = tuple[str, int, float]  # name, step, value


def is_off() -> bool:
    """Whether tracking is turned off."""
    return os.environ.get("HEADSTART_TRACKING", "").lower() == "off"


def is_embedded() -> bool:
    """Whether the store is mlflow.db in the root of the repository."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


def uri() -> str:
    """The address of the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(workspace_root() / 'mlflow.db').as_posix()}"


def is_server() -> bool:
    """Whether the store is a tracking server."""
    return uri().startswith(("http://", "https://"))


def experiment_name() -> str:
    """The experiment in MLflow that the runs belong to."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def model_name() -> str:
    """The registered model: named as the experiment, without characters that such a name may not have."""
    return re.sub(r"[^\w.-]+", "-", experiment_name()).strip("-") or EXPERIMENT


@contextmanager
def connected(seconds: float = DEADLINE) -> Iterator[MlflowClient]:
    """A client of the store. One process of this repository uses SQLite at a time, else they lock each other out.

    Args:
        seconds: to wait for other processes.

    Raises:
        UserError: if MLFLOW_TRACKING_URI is not the address of a store.
        filelock.Timeout: if another process does not release the database.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    lock = cache_path("tracking.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=seconds) if uri().startswith("sqlite:") else nullcontext():
        yield _client()


def _client() -> MlflowClient:
    from mlflow import MlflowClient  # takes a second, and sets its own logger
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

    for name in ("alembic", "mlflow", "urllib3"):  # whoever calls this reports errors, once
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        address = urlsplit(uri())
        if address.scheme in ("http", "https") and (not address.hostname or address.port == 0):
            raise ValueError("it names no server")
        return MlflowClient(uri())
    except OperationalError:  # locked, or unreachable
        raise
    except (MlflowException, ImportError, ArgumentError, DatabaseError, ValueError) as error:
        if is_embedded() and isinstance(error, DatabaseError):
            advice = "move it away, then run `headstart track`, which makes it again from what Git and DVC have"
            raise UserError(f"mlflow.db: cannot be read ({one_line(error)[:120]}); {advice}") from error
        if is_embedded() or (isinstance(error, MlflowException) and not is_rejection(error)):
            raise
        raise UserError(
            f"MLFLOW_TRACKING_URI: no runs can be kept at {uri()!r} ({one_line(error)[:120]}); it may be {ADDRESSES}"
        ) from error


def is_rejection(error: BaseException) -> bool:
    """Whether MLflow would reject the same request again: it is not busy, and does not ask for a login."""
    return 400 <= _status(error) < 500 and _status(error) not in (401, 403, 408, 429)


def _status(error: BaseException) -> int:
    """The status of HTTP that an error of MLflow stands for; 500 for any other error."""
    status: int = getattr(error, "get_http_status_code", lambda: 500)()
    return status


@contextmanager
def may_exist() -> Iterator[None]:
    """Create what another clone may have created a moment earlier."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def experiment_id(client: MlflowClient) -> str:
    """The experiment in MLflow; created if there is none, restored if it was deleted."""
    experiment = client.get_experiment_by_name(experiment_name())
    if experiment is None:
        artifacts = (workspace_root() / "mlartifacts").as_uri() if is_embedded() else None
        with may_exist():
            return client.create_experiment(experiment_name(), artifact_location=artifacts)
        experiment = client.get_experiment_by_name(experiment_name())
    if experiment is None:
        raise ValueError(f"the experiment {experiment_name()} can be neither created nor seen")
    if not experiment.experiment_id:
        raise ValueError("it does not answer as a tracking server of MLflow does")
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def rows(client: MlflowClient, experiment: str, key: str) -> list[Run]:
    """The rows of an experiment, the one that stays first: one, or none, or several that were created at once."""
    return sorted(client.search_runs([experiment], f"tags.`{KEY}` = '{key}'"), key=_age)


def children(client: MlflowClient, experiment: str, run: str) -> list[Run]:
    """The runs under a run, in the order of their start."""
    return sorted(client.search_runs([experiment], f"tags.`{PARENT}` = '{run}'", max_results=50_000), key=_age)


def delete(client: MlflowClient, run: Run) -> None:
    """Delete a run, then those under it: whoever adds one meanwhile calls `finish_deletion` afterwards."""
    client.delete_run(run.info.run_id)
    finish_deletion(client, run)


def finish_deletion(client: MlflowClient, run: Run) -> None:
    """Delete the runs under a run if it was deleted itself, perhaps by another clone."""
    if client.get_run(run.info.run_id).info.lifecycle_stage == "deleted":
        for child in children(client, run.info.experiment_id, run.info.run_id):
            delete(client, child)


def log(
    client: MlflowClient,
    run: Run,
    params: dict[str, str] | None = None,
    points: Iterable[Point] = (),
    tags: dict[str, str] | None = None,
) -> None:
    """Add params, metrics and tags to a run, in as few calls as MLflow allows; equal params and tags are left out."""
    from mlflow.entities import Metric, Param, RunTag

    known, now = run.data, round(1000 * time.time())
    metrics = [Metric(name, value, now, step) for name, step, value in points]
    texts = [Param(name, value) for name, value in (params or {}).items() if name not in known.params]
    labels = [RunTag(name, value) for name, value in (tags or {}).items() if known.tags.get(name) != value]
    while metrics or texts or labels:
        client.log_batch(run.info.run_id, metrics[:METRICS], texts[:TEXTS], labels[:TEXTS])
        metrics, texts, labels = metrics[METRICS:], texts[TEXTS:], labels[TEXTS:]


def _age(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. It runs in a thread, which is left behind if it takes too long.

    Raises:
        TimeoutError: if it takes longer than `seconds`.
    """
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="tracking", daemon=True).start()
    try:
        return future.result(seconds)
    except futures.TimeoutError:
        if future.done():  # `work` itself ran into a time limit
            raise
        abandon_threads()
        raise TimeoutError(f"took longer than {seconds:g} s") from None


def abandon_threads() -> None:
    """Keep Python from waiting at its end for the threads of pools, in which MLflow downloads files."""
    queues: Any = futures_thread._threads_queues  # the threads themselves are daemons, as the one that started them
    queues.clear()


def warn(message: str) -> None:
    """Print what went wrong; tracking never costs a result."""
    print(f"tracking: {message}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """What `error` says, in at most 300 characters; of a failed request, why it failed."""
    cause: Any = error
    while isinstance(cause, BaseException) and not isinstance(error, UserError):
        error = cause
        cause = None if error.__suppress_context__ else error.__context__
        cause = error.__cause__ or cause or getattr(error, "reason", None)
    line = (" ".join(str(error).split()) or type(error).__name__)[:300]
    return f"{line}; {LOGIN}" if _status(error) in (401, 403) else line
