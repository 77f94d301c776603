"""Evaluated models become versions of a registered model; the alias `champion` names the best known one.

It moves only by a paired test on the val predictions of the networks before they were refitted on val, and never to a
model of other classes: which classes a model should know is for people to say. The test split is reported in tags, and
never chosen by.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import paths
from headstart.data.predictions import parse_predictions
from headstart.errors import UserError
from headstart.evaluation.formatting import escape_markdown
from headstart.evaluation.results import Results
from headstart.serving import mlflow_model
from headstart.tracking import store
from headstart.tracking.fill import VERSION
from headstart.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from headstart.evaluation.compare import PairedResults

CHAMPION, CHALLENGER, NOT_COMPARABLE = "champion", "challenger", "not comparable"
# The alias that a verdict earns. It is that of the paired test, `first` without a champion, or NOT_COMPARABLE: none.
ALIASES = {"first": CHAMPION, "better": CHAMPION, "worse": CHALLENGER, "no evidence": CHALLENGER}
DIGEST = "headstart.model_sha256"  # of models/model.keras
VERDICT, COMPARED = "verdict", "headstart.compared_with"  # COMPARED is the version that was the champion, or NONE
JUDGED, NONE = "headstart.judged", "none"  # JUDGED is the last step: the version has its alias, if it gets one
FOLDER = "model"  # of the row's artifacts
TAGS = ("val_accuracy", "val_loss", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss")
TRIES = 5  # other clones may move the champion meanwhile


def register(client: MlflowClient, row: Run, snapshot: Snapshot) -> str:
    """Make the evaluated model of an experiment a version, unless it is one; a sentence about a new one, or nothing.

    Models that are out of reach, or larger than what MLflow keeps copies of, are not registered. An interruption at any
    step neither loses nor doubles a version: the row names its version last.
    """
    if "evaluate" not in snapshot.stages or VERSION in row.data.tags:
        return ""
    content = snapshot.read(paths.MODEL) if paths.MODEL.as_posix() in snapshot.artifacts("fine_tune") else None
    if content is None:
        return ""
    name, digest, said = store.model_name(), hashlib.sha256(content).hexdigest(), ""
    known = _versions(client, name, DIGEST, digest)
    if not known:
        try:
            _upload(client, row, snapshot, content)
        except UserError as error:  # not a model of this version of the project
            client.set_tag(row.info.run_id, VERSION, "none")
            return f"tracking: the model of {row.info.run_name} is not registered: {error}"
        known = _create_version(client, name, row, digest)
    version = known[0]
    if JUDGED not in version.tags:
        why = _judge(client, name, version)
        client.set_model_version_tag(name, version.version, JUDGED, "true")
        said = f"tracking: model {name}, version {version.version}: {why}"
    client.set_tag(row.info.run_id, VERSION, f"{name} {version.version}")
    return said


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version by alias."""
    models = client.search_registered_models(f"name = '{name}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}


def _versions(client: MlflowClient, name: str, tag: str, value: str) -> list[ModelVersion]:
    """The versions that have a tag, the first one first."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{tag}` = '{value}'")
    return sorted(found, key=lambda version: int(version.version))


def _upload(client: MlflowClient, row: Run, snapshot: Snapshot, content: bytes) -> None:
    """Put the model into the row as MLflow loads and serves it, its val predictions beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        file, folder = Path(scratch) / paths.MODEL.name, Path(scratch) / FOLDER
        file.write_bytes(content)
        mlflow_model.save_model(folder, file)
        predictions = snapshot.read(paths.VAL_PREDICTIONS)
        if predictions is not None:
            (folder / paths.VAL_PREDICTIONS.name).write_bytes(predictions)
        client.log_artifacts(row.info.run_id, str(folder), FOLDER)


def _create_version(client: MlflowClient, name: str, row: Run, digest: str) -> list[ModelVersion]:
    if not client.search_registered_models(f"name = '{name}'"):
        with store.may_exist():
            client.create_registered_model(name)
    figures = {tag: f"{row.data.metrics[tag]:.4f}" for tag in TAGS if tag in row.data.metrics}
    tags = {tag if tag.startswith("val_") else f"test_{tag}": value for tag, value in figures.items()}
    tags |= {DIGEST: digest, "backbone": row.data.params["backbone"]}
    source = f"{row.info.artifact_uri}/{FOLDER}"
    version = client.create_model_version(name, source, run_id=row.info.run_id, tags=tags)
    known = _versions(client, name, DIGEST, digest) or [version]  # a search can lag behind
    if known[0].version != version.version:  # another clone was a moment earlier
        client.delete_model_version(name, version.version)
    return known


def _judge(client: MlflowClient, name: str, version: ModelVersion) -> str:
    """Describe a new version and give it its alias; returns the description.

    MLflow cannot move an alias only if nobody else has, and other clones judge versions of theirs meanwhile. So a
    version says what it is compared with before it takes the alias, and looks afterwards for others that say the same:
    whoever is last sees them all, and lets the best be the champion.
    """
    number, why = str(version.version), version.description or ""
    against, verdict = version.tags.get(COMPARED), version.tags.get(VERDICT, "")  # of one that was interrupted
    settled: set[str] = set()  # versions whose turn was over when the champion was looked up
    for _ in range(TRIES):
        judged = {str(other.version) for other in _versions(client, name, JUDGED, "true")}
        current = aliases(client, name)
        champion = current.get(CHAMPION, NONE)
        if champion not in (number, against):
            settled, against = judged, champion
            verdict, why = _compare(client, name, champion, number)
            client.update_model_version(name, number, escape_markdown(why, keep_code=True))
            for tag, value in ((VERDICT, verdict), (COMPARED, champion)):
                client.set_model_version_tag(name, number, tag, value)
        elif ALIASES.get(verdict) == CHAMPION:
            client.set_registered_model_alias(name, CHAMPION, number)
            best = _best_rival(client, name, number, str(against), settled)
            if best == number:
                break
            client.set_registered_model_alias(name, CHAMPION, best)
        else:
            if verdict in ALIASES and int(current.get(CHALLENGER, 0)) < int(number):
                client.set_registered_model_alias(name, CHALLENGER, number)
            break
    return why


def _best_rival(client: MlflowClient, name: str, number: str, against: str, settled: set[str]) -> str:
    """The best of version `number` and of those that others have compared with the same champion meanwhile."""
    found = {number} | {
        str(version.version)
        for version in _versions(client, name, COMPARED, against)
        if ALIASES.get(version.tags.get(VERDICT, "")) == CHAMPION and str(version.version) not in settled
    }
    best, *others = sorted(found, key=int)
    for other in others:
        if _compare(client, name, best, other)[0] == "better":
            best = other
    return best


def _compare(client: MlflowClient, name: str, champion: str, number: str) -> tuple[str, str]:
    """Verdict and description of a version, compared with the champion on the val examples that both have."""
    if champion == NONE:
        return "first", "The first version is the champion."
    from headstart.evaluation.compare import class_changes, pair_results  # loads SciPy's and scikit-learn's statistics

    named = f"the champion, version {champion}"
    try:
        base = _results(_download(client, name, champion), named)
        head = _results(_download(client, name, number), "this version")
        if changes := class_changes(base, head):
            return NOT_COMPARABLE, (
                f"Its classes are not those of {named}: {changes}. No alias was moved. "
                f"{_on_known_classes(base, head)}To make it the champion, give it the alias by hand: on the model's "
                f'page, or by `MlflowClient().set_registered_model_alias("{name}", "{CHAMPION}", "{number}")`.'
            )
        paired = pair_results(base, head)
    except UserError as error:
        why = f"It cannot be compared with {named}: {store.one_line(error)}. No alias was moved."
        return NOT_COMPARABLE, why
    verdict = paired.scores.verdict()
    words = {
        "better": f"The new champion. Better than version {champion}, the champion before it",
        "worse": f"Worse than {named}",
        "no evidence": f"No evidence of a difference from {named}",
    }[verdict]
    return verdict, f"{words}: {_figures(paired)}."


def _on_known_classes(base: Results, head: Results) -> str:
    """A sentence about the classes that both know, or nothing if they have too little in common."""
    from headstart.evaluation.compare import pair_results

    try:
        paired = pair_results(base, head)
    except UserError:
        return ""
    return f"On the {len(paired.classes):,} classes that both know: {_figures(paired)}. "


def _figures(paired: PairedResults) -> str:
    scores = paired.scores
    before, now = (float(predictions.correct.mean()) for predictions in (scores.base, scores.head))
    return (
        f"accuracy from {before:.4f} to {now:.4f} on the {len(paired.base):,} val examples that both have; "
        f"{scores.fixed} fixed, {scores.regressed} regressed, McNemar's exact test p = {scores.p_value():.2g}"
    )


def _download(client: MlflowClient, name: str, number: str) -> bytes | None:
    """The val predictions of a version; None if it has none, such as one that was made by hand."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    file = f"{client.get_model_version(name, number).source}/{paths.VAL_PREDICTIONS.name}"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(download_artifacts(file, dst_path=scratch, tracking_uri=store.uri())).read_bytes()
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and not store.is_rejection(error):
                raise
            return None


def _results(content: bytes | None, name: str) -> Results:
    if content is None:
        raise UserError(f"there are no val predictions of {name}")
    return Results(name, parse_predictions(content, name))
