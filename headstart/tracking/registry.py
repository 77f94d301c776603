"""Models that were judged become versions of a registered model; the alias `champion` names the best that is known.

It moves only to a version that is better, by a paired test on the images that both have been tested on; any other new
version is the `challenger`. What waits to be registered is told by the runs in the store, so nothing is lost with a
server that is away, and nothing comes twice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import paths
from headstart.errors import UserError
from headstart.evaluation import compare
from headstart.paths import cache_path
from headstart.serving.mlflow_model import save_model
from headstart.tracking import outbox, runs
from headstart.tracking.runs import JUDGED, MODEL, PARENT, WAITING
from headstart.tracking.store import UnreachableError, connected, experiment_id, line, model_name, warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
VERDICT, EVALUATION = "verdict", "headstart.evaluation"
AGAINST = "headstart.champion"  # the version that the verdict is over; empty where there was none
TRIES = 5  # of naming a version: other clones may move the champion meanwhile
FIRST, UNKNOWN = "first", "not comparable"  # verdicts beside those of paired.py
VERSION = "model_version"  # of the row: the name of the registered model, and the version
SHOWN = ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "latency_ms", "model_mb")


class UnfitError(Exception):
    """A model that can never be registered."""


@dataclass(frozen=True)
class Judgement:
    """What is made of a new version.

    Attributes:
        verdict: that of paired.py over the champion, or FIRST or UNKNOWN.
        why: sentences.
        against: the version that was the champion; empty where there was none.
    """

    verdict: str
    why: str
    against: str

    @property
    def alias(self) -> str:
        """What the version is called."""
        return CHAMPION if self.verdict in (FIRST, "better") else CHALLENGER


def register() -> bool:
    """Register what waits for it, oldest first; whether nothing waits any more. Never raises."""
    if outbox.entries():
        return False  # the store was not to be reached a moment ago, and what is older comes first
    try:
        with connected() as client:
            experiment, name = experiment_id(client), model_name()
            waiting = f"tags.`{MODEL}` = '{WAITING}'"
            for run in client.search_runs([experiment], waiting, order_by=["attributes.end_time ASC"]):
                try:
                    _register(client, experiment, name, run)
                except (UnfitError, UserError) as error:
                    client.set_tag(run.info.run_id, MODEL, f"none: {line(error)}")
                    warn(f"the model of {run.info.run_id} is not registered: {line(error)}")
        return True
    except (UnreachableError, UserError) as error:
        warn(f"models are registered later: {line(error)}")
    cache_path("tracking-state").unlink(missing_ok=True)  # `python -m headstart.tracking.commands` is to look again
    return False


def _register(client: MlflowClient, experiment: str, name: str, run: Run) -> None:
    """Make the model that `run`, an evaluation, judged a version, unless it is one."""
    digest, row = run.data.tags[JUDGED], client.get_run(run.data.tags[PARENT])
    version = _version(client, name, digest)
    made = version is None
    if version is None:
        with tempfile.TemporaryDirectory() as scratch:
            judgement = _judge(client, name, run.info.run_id, Path(scratch))
            model = _logged(client, experiment, run, row, Path(scratch))
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        told = {VERDICT: judgement.verdict, AGAINST: judgement.against, **_told(row)}
        version = client.create_model_version(
            name,
            model.artifact_location,  # models:/ID would be looked up in MLflow's global store, not in the client's
            run_id=row.info.run_id,
            tags={**told, EVALUATION: run.info.run_id, JUDGED: digest},
            description=judgement.why,
            model_id=model.model_id,
        )
        first = _version(client, name, digest) or version
        if first.version != version.version:  # another clone was a moment earlier
            client.delete_model_version(name, version.version)
            version, made = first, False
        # As MLflow's own `register_model` does, so that the UI finds the version of a model.
        place = json.dumps([{"name": name, "version": version.version}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": place})
    if version.tags.get(EVALUATION) == run.info.run_id:  # else it was registered, and named, for another run
        judgement = _name(client, name, version)
        if made:
            print(f"tracking: model {name}, version {version.version}: {judgement.alias}. {judgement.why}")
    client.set_tag(row.info.run_id, VERSION, f"{name} {version.version}")
    client.set_tag(run.info.run_id, MODEL, version.version)  # the last thing: until then it waits


def _told(row: Run) -> dict[str, str]:
    """What the list of versions shows of a version's experiment."""
    told = {"backbone": row.data.params.get("backbone"), "accuracy": row.data.metrics.get("accuracy")}
    return {
        name: value if isinstance(value, str) else f"{value:.4f}" for name, value in told.items() if value is not None
    }


def _version(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The version of a model, the first of several; None where there is none."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{JUDGED}` = '{digest}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _name(client: MlflowClient, name: str, version: ModelVersion) -> Judgement:
    """Give the version its alias; as often as the champion is not the one that it was compared with, compare again.

    The champion's alias is looked at right before it is moved and after that: other clones move it too.
    """
    number, tags = str(version.version), version.tags
    judgement = Judgement(tags[VERDICT], version.description or "", tags.get(AGAINST, ""))
    for _ in range(TRIES):
        aliases = _aliases(client, name)
        champion, holder = aliases.get(CHAMPION, ""), aliases.get(CHALLENGER)
        if champion == number:
            break
        if champion != judgement.against:
            with tempfile.TemporaryDirectory() as scratch:
                judgement = _judge(client, name, tags[EVALUATION], Path(scratch))
            client.update_model_version(name, number, judgement.why)
            for tag, value in ((VERDICT, judgement.verdict), (AGAINST, judgement.against)):
                client.set_model_version_tag(name, number, tag, value)
        elif judgement.alias == CHAMPION:
            client.set_registered_model_alias(name, CHAMPION, number)
        else:
            if holder is None or int(holder) < int(number):
                client.set_registered_model_alias(name, CHALLENGER, number)
            break
    return judgement


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version by alias."""
    return {alias: str(of) for model in client.search_registered_models(f"name = '{name}'")
            for alias, of in model.aliases.items()}  # fmt: skip


def _judge(client: MlflowClient, name: str, run: str, scratch: Path) -> Judgement:
    """Compare the model that `run` judged with the champion."""
    number = _aliases(client, name).get(CHAMPION, "")
    if not number:
        return Judgement(FIRST, "There was no champion before it, so it is the champion.", "")
    champion = client.get_model_version(name, number)
    try:
        # Both names stand in a sentence.
        base = _predictions(client, champion.tags.get(EVALUATION, ""), f"the champion, version {number}", scratch)
        head = _predictions(client, run, "this version", scratch)
        common = compare.common(base, head, 1)
    except (UnfitError, UserError) as error:
        return Judgement(UNKNOWN, f"It cannot be compared with the champion: {line(error)}.", number)
    pair = common.pair
    before, now = (float(right.mean()) for right in pair.right)
    verdict = pair.verdict()
    words = {
        "better": f"Better than {base.name}, so it is the champion",
        "worse": f"Worse than {base.name}",
        "no evidence": f"No evidence that it and {base.name}, differ",
    }[verdict]
    return Judgement(
        verdict,
        f"{words}: accuracy {before:.4f} -> {now:.4f} on the {len(common.base):,} test images that both have seen; "
        f"{pair.mended} mended, {pair.broken} broken, McNemar's exact test p = {pair.p_value():.2g}.",
        number,
    )


def _predictions(client: MlflowClient, run: str, name: str, scratch: Path) -> compare.Side:
    """What an evaluation said of the test images.

    Raises:
        UnfitError: where the store does not have it.
    """
    file = _artifact(client, run, paths.PREDICTIONS, scratch / (run or "none")) if run else None
    if file is None:
        raise UnfitError(f"the predictions of {name} are not in the store")
    return compare.Side(name, compare.load(str(file)).predictions)


def _artifact(client: MlflowClient, run: str, path: Path, folder: Path) -> Path | None:
    """A file of a run, on this machine; None where the run or its file is gone."""
    from mlflow.exceptions import MlflowException

    try:
        if path.as_posix() not in {file.path for file in client.list_artifacts(run, path.parent.as_posix())}:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        return Path(client.download_artifacts(run, path.as_posix(), str(folder)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _logged(client: MlflowClient, experiment: str, run: Run, row: Run, scratch: Path) -> LoggedModel:
    """The model in MLflow, made where there is none; one that was broken off on the way is made whole."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    digest = run.data.tags[JUDGED]
    found = client.search_logged_models([experiment], f"tags.`{JUDGED}` = '{digest}'")
    for model in found:
        if model.status == LoggedModelStatus.READY:
            return model
    file = _model_file(client, experiment, run, digest, scratch)
    save_model(scratch / "model", file)
    model = next(iter(found), None) or client.create_logged_model(
        experiment,
        name=row.info.run_name,
        source_run_id=row.info.run_id,
        tags={JUDGED: digest},
        params={name: value for name, value in row.data.params.items() if value != "null"},
        model_type="classifier",
    )
    client.log_model_artifacts(model.model_id, str(scratch / "model"))
    # Of the row's own figures, under its own time: the same once more, now also of the model.
    metrics = [
        Metric(name, point.value, point.timestamp, point.step, model_id=model.model_id)
        for name in SHOWN
        for point in client.get_metric_history(row.info.run_id, name)[-1:]
    ]
    client.log_batch(row.info.run_id, metrics=metrics)
    if not any(output.model_id == model.model_id for output in row.outputs.model_outputs):
        client.log_outputs(row.info.run_id, [LoggedModelOutput(model.model_id, 0)])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _model_file(client: MlflowClient, experiment: str, run: Run, digest: str, scratch: Path) -> Path:
    """The model that `run` judged: that of the workspace, or that of the stage that made it.

    Raises:
        UnfitError: where neither has it.
    """
    if paths.MODEL.is_file() and _sha256(paths.MODEL) == digest:
        return paths.MODEL
    for made in runs.stage_runs(client, experiment, run.data.tags[PARENT], "fine_tune"):
        file = _artifact(client, made.info.run_id, paths.MODEL, scratch / made.info.run_id)
        if file and _sha256(file) == digest:
            return file
    raise UnfitError(f"{paths.MODEL} is not in the store; models of more than 200 MiB stay with DVC")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
