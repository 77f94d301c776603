"""MLflow as a view of what DVC and Git record: it can be rebuilt at any moment, and owns nothing.

live.py logs a stage while it runs; rebuild.py completes what is missing afterwards; registry.py makes a version of each
evaluated model. HEADSTART_TRACKING=off turns all of it off.
"""

from __future__ import annotations

from headstart.config import Params


class StageLogger:
    """Logs a stage to MLflow while it runs; this one logs nothing. Nothing here ever raises."""

    def log_epoch(self, row: dict[str, float]) -> None:
        """Show an epoch: its number under `epoch`, and figures by name."""

    def fail(self) -> None:
        """Show that the stage failed."""

    def finish(self) -> None:
        """Log what the stage left in the workspace; returns after a bounded time."""

    def stop(self) -> None:
        """Let `finish` return at once; called by signal handlers."""


NO_LOGGER = StageLogger()


def start(stage: str, params: Params) -> StageLogger:
    """The logger of a stage that begins."""
    from headstart.tracking import live, store

    if store.is_off():
        return NO_LOGGER
    try:
        return live.LiveLogger(stage, params)
    except RuntimeError as error:  # no thread can be started
        store.warn(f"{stage} is not logged to MLflow: {error}; run `headstart track` to complete it")
        return NO_LOGGER
