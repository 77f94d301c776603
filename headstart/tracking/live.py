"""Logs a stage to MLflow while it runs, from a thread of its own: the stage waits at its end only, and not for long."""

from __future__ import annotations

import contextlib
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from headstart.config import Params
from headstart.errors import UserError
from headstart.tracking import StageLogger, runs, snapshot, store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SHOWN_AFTER = 5.0  # seconds: a stage that ends sooner, or fails, is not shown while it runs
FAILURE_SECONDS = 5.0  # a stage that fails does not wait longer for MLflow
FINISH, FAIL = "finish", "fail"


class LiveLogger(StageLogger):
    """Shows a stage that lasts while it runs, and any stage when it is done. Errors end in one warning.

    `prepare` is shown at its end: only then is it known which data, and so which experiment, it belongs to.

    Args:
        deadline: seconds that `finish` may take.
    """

    def __init__(self, stage: str, params: Params, deadline: float = store.DEADLINE) -> None:
        self._stage, self._deadline = stage, deadline
        self._snapshot = snapshot.of_workspace(params, running=stage)
        # Unlike an Event, SimpleQueue may be used by a signal handler that interrupts its user.
        self._jobs: SimpleQueue[dict[str, float] | str] = SimpleQueue()
        self._done: SimpleQueue[Exception | str] = SimpleQueue()
        self._row: Run | None = None
        self._run: Run | None = None
        self._monitor: SystemMetricsMonitor | None = None
        threading.Thread(target=self._work, name="tracking", daemon=True).start()

    def log_epoch(self, row: dict[str, float]) -> None:
        self._jobs.put(dict(row))

    def fail(self) -> None:
        self._jobs.put(FAIL)
        if self._run is not None:
            with contextlib.suppress(Empty):
                self._done.get(timeout=min(FAILURE_SECONDS, self._deadline))
            store.abandon_threads()

    def finish(self) -> None:
        self._jobs.put(FINISH)
        try:
            outcome = self._done.get(timeout=self._deadline)
        except Empty:
            outcome = TimeoutError(f"took longer than {self._deadline:g} s")
        if isinstance(outcome, Exception):
            store.abandon_threads()
            reason = str(outcome) if isinstance(outcome, UserError) else f"{store.uri()}: {store.one_line(outcome)}"
            store.warn(f"{self._stage} is incomplete in MLflow: {reason}; run `headstart track` to complete it")
        elif outcome:
            print(outcome)

    def stop(self) -> None:
        self._done.put(InterruptedError("interrupted"))

    def _work(self) -> None:
        """What the thread does."""
        can_be_shown = self._stage != "prepare"
        while True:
            try:
                job = self._jobs.get(timeout=SHOWN_AFTER if can_be_shown and self._run is None else None)
            except Empty:
                job = {}
            if isinstance(job, str):
                break
            if can_be_shown:
                try:
                    self._show(job)
                except Exception:  # at the end all of it is tried again
                    can_be_shown = False
        try:
            self._done.put(self._complete(job))
        except Exception as error:
            self._done.put(error)

    def _show(self, epoch: dict[str, float]) -> None:
        """Show that the stage runs, and the figures of an epoch if there are any."""
        with store.connected() as client:
            if self._row is None or self._run is None:
                self._row, self._run = runs.begin(client, self._snapshot)
                with contextlib.suppress(Exception):  # the curves matter more
                    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

                    run = self._run.info.run_id
                    self._monitor = SystemMetricsMonitor(run, resume_logging=True, tracking_uri=store.uri())
                    self._monitor.start()
            if epoch:
                runs.log_epoch(client, self._row, self._run, self._stage, epoch)

    def _complete(self, job: str) -> str:
        """Log all that the stage left behind, or its failure; what to print about the model that it evaluated."""
        if self._monitor:
            self._monitor.finish()
        if job == FAIL and not self._run:
            return ""
        self._snapshot.moment = time.time()
        with store.connected(self._deadline) as client:
            if job == FAIL:
                for run in filter(None, (self._run, self._row)):
                    client.set_terminated(run.info.run_id, status="FAILED")
                return ""
            row, _ = runs.show(client, self._snapshot)
            if "evaluate" not in self._snapshot.stages:
                return ""
            from headstart.tracking import registry  # takes half a second, for SciPy's and scikit-learn's statistics

            return registry.register(client, row, self._snapshot)
