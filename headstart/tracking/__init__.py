"""MLflow as a view of what DVC and Git record: it can be rebuilt at any moment, and owns nothing."""

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


NO_LOGGER = StageLogger()


def start(stage: str, params: Params) -> StageLogger:
    """The logger of a stage that begins."""
    return NO_LOGGER
