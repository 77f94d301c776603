"""Versions of the registered model, and which of them is the champion."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import recorded
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from recorded import STAGES
from test_tracking import done as done  # fixtures
from test_tracking import here as here

from headstart.errors import UserError
from headstart.serving import mlflow_model
from headstart.tracking import registry, snapshot, store
from headstart.tracking.rebuild import _of_revisions, rebuild

SAVE = mlflow_model.save_model


@pytest.fixture(autouse=True)
def _light(monkeypatch) -> None:
    """What is in the folder of a model is not tested here."""

    def save(folder: Path, model_file: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "MLmodel").write_text("a model")
        (folder / "model.keras").write_bytes(model_file.read_bytes())

    monkeypatch.setattr(mlflow_model, "save_model", save)


def evaluate(name: float, track: bool = True, **results: Any) -> None:
    """Leave an evaluated experiment of its own in the workspace, and track it."""
    recorded.change(**{"train_head.dropout": name})
    for stage in STAGES:
        recorded.leave(stage, **results)
    recorded.lock()
    if track:
        rebuild()


def client() -> MlflowClient:
    return MlflowClient(store.uri())


def versions() -> dict[int, tuple[str, list[str]]]:
    """Verdict and aliases by version."""
    aliases = registry.aliases(client(), "headstart")
    return {
        int(version.version): (
            version.tags[registry.VERDICT],
            sorted(alias for alias, number in aliases.items() if number == str(version.version)),
        )
        for version in client().search_model_versions("name = 'headstart'")
    }


def describe(number: int) -> str:
    return client().get_model_version("headstart", str(number)).description


def rows() -> dict[str, str | None]:
    """The model version that each row names, by its dropout."""
    found = client().search_runs([store.experiment_id(client())], "tags.`headstart.key` != ''")
    return {run.data.params["train_head.dropout"]: run.data.tags.get("model_version") for run in found}


def test_the_champion_changes_only_for_a_better_one(here, capsys):
    evaluate(0.1, wrong=10)
    assert versions() == {1: ("first", ["champion"])}
    evaluate(0.2, wrong=8)  # two of forty are no evidence
    assert versions()[2] == ("no evidence", ["challenger"])
    evaluate(0.3, wrong=0)
    evaluate(0.4, wrong=20)
    assert versions() == {
        1: ("first", []), 2: ("no evidence", []), 3: ("better", ["champion"]), 4: ("worse", ["challenger"]),
    }  # fmt: skip
    assert describe(3).startswith(
        "The new champion. Better than version 1, the champion before it: accuracy from 0.7500 to 1"
    )
    assert "on the 40 val examples that both have; 10 fixed, 0 regressed" in describe(3)
    assert rows() == {"0.1": "headstart 1", "0.2": "headstart 2", "0.3": "headstart 3", "0.4": "headstart 4"}
    assert "tracking: model headstart, version 3: The new champion." in capsys.readouterr().out
    version = client().get_model_version("headstart", "3")
    assert (version.tags["backbone"], version.tags["val_accuracy"], version.tags["test_accuracy"]) == (
        "tiny", "1.0000", "1.0000",
    )  # fmt: skip


def test_the_test_split_is_not_chosen_by(here):
    evaluate(0.1, wrong=10, wrong_on_test=20)
    evaluate(0.2, wrong=10, wrong_on_test=0, text="better on test")
    assert versions() == {1: ("first", ["champion"]), 2: ("no evidence", ["challenger"])}
    assert client().get_model_version("headstart", "2").tags["test_accuracy"] != "1.0000"


def test_a_version_holds_the_model_that_was_evaluated(here):
    evaluate(0.1, wrong=10)
    mine = Path("models/model.keras").read_bytes()
    predictions = Path("predictions/val.csv").read_bytes()
    evaluate(0.2, wrong=9)
    content = Path(download_artifacts(client().get_model_version("headstart", "1").source, tracking_uri=store.uri()))
    assert (content / "MLmodel").read_text() == "a model"
    assert (content / "model.keras").read_bytes() == mine
    assert (content / "val.csv").read_bytes() == predictions


def test_the_same_model_again_is_no_other_version(here):
    evaluate(0.1, wrong=10)
    evaluate(0.2, wrong=0)
    client().set_registered_model_alias("headstart", "champion", "1")  # somebody goes back
    model = Path("models/model.keras").read_bytes()
    evaluate(0.3, track=False, wrong=0)
    Path("models/model.keras").write_bytes(model)
    recorded.lock()
    rebuild()
    assert versions() == {1: ("first", ["champion"]), 2: ("better", [])}
    assert rows() == {"0.1": "headstart 1", "0.2": "headstart 2", "0.3": "headstart 2"}


def test_only_examples_that_both_have_are_compared(here):
    evaluate(0.1, wrong=20)
    evaluate(0.2, wrong=0, first=20)  # of the 20 examples that both have, each has all right
    assert versions()[2] == ("no evidence", ["challenger"])
    assert "on the 20 val examples that both have" in describe(2)


def test_without_common_examples_no_alias_moves(here):
    evaluate(0.1, wrong=20)
    evaluate(0.2, wrong=0, first=1000)
    assert versions() == {1: ("first", ["champion"]), 2: ("not comparable", [])}
    assert describe(2).startswith("It cannot be compared with the champion, version 1: ")
    assert "do not have two examples and two classes in common: they share 0 examples" in describe(2)


@pytest.mark.parametrize(
    ("before", "after", "listed"),
    [
        (("cat", "dog", "emu", "owl", "yak"), ("cat", "dog"), "removed: emu, owl, yak"),
        pytest.param(
            ("cat", "dog"), ("cat", "dog", "emu", "owl", "yak"), "added: emu, owl, yak", marks=pytest.mark.slow
        ),
        pytest.param(("cat", "dog"), ("lynx", "dog"), "renamed: cat -&#62; lynx (40 examples)", marks=pytest.mark.slow),
        pytest.param(
            *(("cat", "dog"), ("dog", "cat"), "added: cat; removed: dog; renamed: cat -&#62; dog (40 examples)"),
            marks=pytest.mark.slow,
        ),
        (("cat", "dog"), ("cat", "*<b>*"), r"added: \*&#60;b&#62;\*; removed: dog"),
    ],
)
def test_a_model_of_other_classes_moves_no_alias_and_says_which(here, before, after, listed, capsys):
    """However much better it is on what both know."""
    evaluate(0.1, wrong=20, classes=before)
    capsys.readouterr()
    evaluate(0.2, wrong=0, classes=after)
    assert versions() == {1: ("first", ["champion"]), 2: ("not comparable", [])}
    start = f"Its classes are not those of the champion, version 1: {listed}. No alias was moved. "
    assert describe(2).startswith(start)
    call = '`MlflowClient().set_registered_model_alias("headstart", "champion", "2")`'
    assert describe(2).endswith(
        f"To make it the champion, give it the alias by hand: on the model's page, or by {call}."
    )
    if len(before) != len(after):
        assert "On the 2 classes that both know: accuracy from 0.5000 to 1.0000 on the 40 val examples" in describe(2)
    said = capsys.readouterr().out
    assert f"version 2: {start}".replace("&#62;", ">").replace("&#60;", "<").replace("\\", "") in said
    evaluate(0.3, wrong=20, classes=before, text="the same classes again")
    assert versions()[3] == ("no evidence", ["challenger"])


def test_a_champion_that_was_made_by_hand_is_not_comparable(here):
    evaluate(0.1, wrong=20)
    client().create_model_version("headstart", "file:///nowhere", tags={registry.VERDICT: "by hand"})
    client().set_registered_model_alias("headstart", "champion", "2")
    evaluate(0.2, wrong=0)
    assert versions()[3] == ("not comparable", [])
    assert "there are no val predictions of the champion, version 2" in describe(3)


def test_experiments_are_registered_in_their_order(here, monkeypatch):
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        for name, wrong in [("a", 20), ("b", 5), ("c", 12)]:
            recorded.experiment(name, results={"wrong": wrong}, **{"train_head.dropout": wrong / 100})
            with pytest.raises(UserError):
                rebuild()
    for _ in range(2):
        rebuild()
        assert versions() == {1: ("first", []), 2: ("better", ["champion"]), 3: ("worse", ["challenger"])}


def test_a_model_that_is_too_large_or_out_of_reach_is_no_version(done, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(snapshot, "MAX_ARTIFACT_BYTES", Path("models/model.keras").stat().st_size - 1)
        rebuild()
    assert (versions(), rows()) == ({}, {"null": None})
    recorded.commit("results")
    shutil.rmtree("models")
    cache = Path(".dvc/cache")
    cache.rename("away")
    rebuild()
    assert versions() == {}
    Path("away").rename(cache)
    rebuild()
    assert versions() == {1: ("first", ["champion"])}


def test_a_file_that_is_no_model_is_named_once(done, monkeypatch, capsys):
    monkeypatch.setattr(mlflow_model, "save_model", SAVE)
    Path("models/model.keras").write_text("of another version")
    recorded.lock()
    rebuild()
    assert "is not registered: " in capsys.readouterr().out
    rebuild()
    assert "registered" not in capsys.readouterr().out
    assert versions() == {}


STEPS = ("create_registered_model", "log_artifacts", "create_model_version", "update_model_version",
         "set_model_version_tag", "set_registered_model_alias", "set_tag")  # fmt: skip


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=pytest.mark.slow if step in STEPS[:5] else ()) for step in STEPS]
)
def test_an_interruption_at_any_step_neither_loses_nor_doubles(here, monkeypatch, step):
    if step != "create_registered_model":
        evaluate(0.1, wrong=10)
    evaluate(0.2, track=False, wrong=0)
    whole = getattr(MlflowClient, step)

    def breaks(self, *args, **kwargs) -> None:
        whole(self, *args, **kwargs)  # the store has it, but the answer is lost
        raise MlflowException("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, step, breaks)
        with pytest.raises(UserError, match="connection lost"):
            rebuild()
    rebuild()
    if step == "create_registered_model":
        assert versions() == {1: ("first", ["champion"])}
    else:
        assert versions() == {1: ("first", []), 2: ("better", ["champion"])}


def track_only(name: str) -> None:
    """As a clone does that has one experiment alone."""
    with pytest.MonkeyPatch.context() as patch:
        own = lambda *given: (item for item in _of_revisions(*given) if item[0] == name)  # noqa: E731
        patch.setattr("headstart.tracking.rebuild._of_revisions", own)
        rebuild()


@pytest.mark.parametrize("step", ["log_artifacts", "create_model_version"])
@pytest.mark.parametrize(("mine", "others", "verdict"), [(0, 6, "better"), (6, 0, "worse")])
@pytest.mark.slow
def test_two_clones_at_once_let_the_better_be_the_champion(here, monkeypatch, step, mine, others, verdict):
    """Both are better than the champion; another clone registers its model while this one is at `step`."""
    for number, (name, wrong) in enumerate([("first", 20), ("mine", mine), ("other", others)]):
        recorded.experiment(name, results={"wrong": wrong}, **{"train_head.dropout": number / 10})
    track_only("first")
    whole, twin = getattr(MlflowClient, step), pytest.MonkeyPatch()

    def meanwhile(self, *args, **kwargs):
        twin.undo()
        track_only("other")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(store, "FileLock", lambda *_, **__: contextlib.nullcontext())  # each clone has its own
    twin.setattr(MlflowClient, step, meanwhile)
    track_only("mine")
    assert versions()[3] == (verdict, ["champion" if verdict == "better" else "challenger"])
    assert versions()[2] == ("better", ["champion"] if verdict == "worse" else [])
    assert rows() == {"0.0": "headstart 1", "0.1": "headstart 3", "0.2": "headstart 2"}


@pytest.mark.slow
@pytest.mark.parametrize(("mine", "others", "best"), [(0, 6, 2), (6, 0, 3), (2, 2, 2)])
@pytest.mark.parametrize("champion", [True, False])
def test_two_clones_that_take_the_alias_at_once_leave_it_with_the_better(
    here, monkeypatch, mine, others, best, champion
):
    """Another clone judges its model, from beginning to end, right before this one moves the alias."""
    for number, (name, wrong) in enumerate([("first", 20), ("mine", mine), ("other", others)]):
        recorded.experiment(name, results={"wrong": wrong}, **{"train_head.dropout": number / 10})
    if champion:
        track_only("first")
    whole, twin = MlflowClient.set_registered_model_alias, pytest.MonkeyPatch()

    def meanwhile(*args, **kwargs):
        twin.undo()
        track_only("other")
        return whole(*args, **kwargs)

    monkeypatch.setattr(store, "FileLock", lambda *_, **__: contextlib.nullcontext())  # each clone has its own
    twin.setattr(MlflowClient, "set_registered_model_alias", meanwhile)
    track_only("mine")
    if not champion:
        best -= 1
    assert [number for number, (_, names) in versions().items() if "champion" in names] == [best]
    assert sorted(filter(None, rows().values())) == [f"headstart {number}" for number in sorted(versions())]


def test_going_back_by_hand_is_respected(here):
    evaluate(0.1, wrong=20)
    evaluate(0.2, wrong=0)
    client().set_registered_model_alias("headstart", "champion", "1")
    evaluate(0.3, wrong=6)  # better than version 1, though not than version 2
    assert versions() == {1: ("first", []), 2: ("better", []), 3: ("better", ["champion"])}


def test_what_another_clone_creates_first_is_used(here, monkeypatch):
    """The search of this clone still shows nothing."""
    evaluate(0.1, wrong=10)
    evaluate(0.2, track=False, wrong=0)
    for name, nothing in (("get_experiment_by_name", None), ("search_registered_models", [])):
        late = pytest.MonkeyPatch()

        def at_first(*args, nothing=nothing, late=late, **kwargs):
            late.undo()
            return nothing

        late.setattr(MlflowClient, name, at_first)
    rebuild()
    assert versions() == {1: ("first", []), 2: ("better", ["champion"])}


def test_two_clones_make_one_version_of_one_model(done, monkeypatch):
    def meanwhile(*args, **kwargs):
        twin.undo()
        rebuild()
        return whole(*args, **kwargs)

    whole, twin = MlflowClient.create_model_version, pytest.MonkeyPatch()
    twin.setattr(MlflowClient, "create_model_version", meanwhile)
    monkeypatch.setattr(store, "FileLock", lambda *_, **__: contextlib.nullcontext())
    rebuild()
    assert versions() == {1: ("first", ["champion"])}
    assert rows() == {"null": "headstart 1"}


def test_the_model_is_named_after_the_experiment(done, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Users/me@example.org/Cats: 'all'")
    rebuild()
    (model,) = client().search_registered_models()
    assert model.name == "Users-me-example.org-Cats-all"


def test_a_version_is_a_model_that_mlflow_can_load(done, monkeypatch):
    monkeypatch.setattr(mlflow_model, "save_model", SAVE)
    rebuild()
    version = client().get_model_version_by_alias("headstart", "champion")
    files = {file.path for file in client().list_artifacts(version.run_id, "model")}
    assert {"model/MLmodel", "model/python_env.yaml", "model/val.csv"} <= files
