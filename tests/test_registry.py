"""Versions of the registered model, and which of them is the champion."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from test_tracking import make_record

from headstart.tracking import outbox, recording, registry, store

IMAGES = 40


@pytest.fixture(autouse=True)
def _light(monkeypatch) -> None:
    """What is in the folder of a model is not this module's concern."""

    def save(folder: Path, model_file: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "MLmodel").write_text("a model")
        (folder / "model.keras").write_bytes(model_file.read_bytes())

    monkeypatch.setattr(registry, "save_model", save)


def evaluated(key: str, wrong: int, first: int = 0, **changes) -> list:
    """Records of an experiment that has the first `wrong` of its test images wrong, which are numbered from `first`."""
    model, predictions = Path("models/model.keras"), Path("predictions/test.csv")
    for file in (model, predictions):
        file.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr(zipfile.ZipInfo("classes.json"), '["cat", "dog"]')
        archive.writestr(zipfile.ZipInfo("weights"), changes.pop("weights", key))
    right = [index >= wrong for index in range(IMAGES)]
    pd.DataFrame({
        "path": [f"{index}.png" for index in range(IMAGES)],
        "item_id": [f"id{first + index}" for index in range(IMAGES)],
        "label": "cat",
        "predicted": ["cat" if ok else "dog" for ok in right],
        "p_cat": [0.9 if ok else 0.2 for ok in right],
        "p_dog": [0.1 if ok else 0.8 for ok in right],
    }).to_csv(predictions, index=False)  # fmt: skip
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    accuracy = 1 - wrong / IMAGES
    common = {"curves": [], "metrics": {"accuracy": accuracy}, **changes}
    return [
        make_record("fine_tune", key, **common, artifacts={"models/model.keras": digest}),
        make_record(
            "evaluate", key, **common, artifacts={"predictions/test.csv": f"{wrong} {first}"},
            headline={"accuracy": accuracy}, model=digest,
        ),
    ]  # fmt: skip


def versions(uri: str = "") -> dict[int, tuple[str, list[str]]]:
    """Verdict and aliases by version."""
    client = MlflowClient(uri or store.uri())
    aliases = registry._aliases(client, "headstart")
    return {
        int(version.version): (
            version.tags[registry.VERDICT],
            sorted(alias for alias, of in aliases.items() if of == str(version.version)),
        )
        for version in client.search_model_versions("name = 'headstart'")
    }


def run(*records) -> bool:
    """As after a stage."""
    return recording.send_or_keep(list(records)) and registry.register()


def test_the_champion_changes_only_for_one_that_is_better(workspace, capsys):
    assert run(*evaluated("a", wrong=10))
    assert versions() == {1: ("first", ["champion"])}
    assert run(*evaluated("b", wrong=8))  # two of forty are no evidence
    assert versions()[2] == ("no evidence", ["challenger"])
    assert run(*evaluated("c", wrong=0))
    assert run(*evaluated("d", wrong=20))
    assert versions() == {
        1: ("first", []), 2: ("no evidence", []), 3: ("better", ["champion"]), 4: ("worse", ["challenger"]),
    }  # fmt: skip
    client = MlflowClient(store.uri())
    better = client.get_model_version("headstart", "3")
    assert better.description.startswith("Better than the champion, version 1, so it is the champion: accuracy 0.75")
    assert "10 mended, 0 broken" in better.description
    row = client.get_run(better.run_id)
    assert row.data.tags["model_version"] == "headstart 3"
    assert [output.model_id for output in row.outputs.model_outputs]
    assert "tracking: model headstart, version 3: champion. Better than" in capsys.readouterr().out


def test_a_version_holds_the_model_that_was_judged(workspace):
    assert run(*evaluated("a", wrong=10))
    mine = Path("models/model.keras").read_bytes()
    recording.send_or_keep(evaluated("b", wrong=9))  # not registered yet
    evaluated("c", wrong=8)  # the workspace has gone on
    assert registry.register()
    from mlflow.artifacts import download_artifacts

    client = MlflowClient(store.uri())
    sources = {int(v.version): v.source for v in client.search_model_versions("name = 'headstart'")}
    contents = {
        number: Path(download_artifacts(source, tracking_uri=store.uri())) for number, source in sources.items()
    }
    assert (contents[1] / "model.keras").read_bytes() == mine
    assert zipfile.ZipFile(contents[2] / "model.keras").read("weights") == b"b"
    assert (contents[2] / "MLmodel").read_text() == "a model"
    (first, *_) = client.search_logged_models([client.get_experiment_by_name("headstart").experiment_id])
    assert "accuracy" in {metric.key for metric in first.metrics}


def test_the_same_model_again_is_no_version_more(workspace):
    assert run(*evaluated("a", wrong=10))
    assert run(*evaluated("b", wrong=0))
    client = MlflowClient(store.uri())
    client.set_registered_model_alias("headstart", "champion", "1")  # somebody goes back
    assert run(*evaluated("other-params", wrong=0, weights="b"))
    assert versions() == {1: ("first", ["champion"]), 2: ("better", [])}
    runs = client.search_runs([client.get_experiment_by_name("headstart").experiment_id], "tags.`headstart.key` != ''")
    assert sorted(run.data.tags["model_version"] for run in runs) == ["headstart 1", "headstart 2", "headstart 2"]


def test_only_what_both_have_seen_is_compared(workspace):
    assert run(*evaluated("a", wrong=20))
    assert run(*evaluated("b", wrong=0, first=20))  # on 20 images that both have seen, each has all right
    assert versions()[2] == ("no evidence", ["challenger"])
    description = MlflowClient(store.uri()).get_model_version("headstart", "2").description
    assert "on the 20 test images that both have seen" in description


def test_what_cannot_be_compared_is_a_challenger_and_says_why(workspace):
    assert run(*evaluated("a", wrong=20))
    assert run(*evaluated("b", wrong=0, first=1000))
    assert versions()[2] == ("not comparable", ["challenger"])
    client = MlflowClient(store.uri())
    assert "no two test images" in client.get_model_version("headstart", "2").description
    client.delete_model_version_tag("headstart", "1", registry.EVALUATION)  # a version made by hand
    assert run(*evaluated("c", wrong=1))
    assert "are not in the store" in client.get_model_version("headstart", "3").description


def test_stages_that_were_restored_are_registered_too(workspace):
    assert run(*evaluated("a", wrong=10, restored=True))
    assert versions() == {1: ("first", ["champion"])}


def test_what_was_kept_is_registered_once_in_its_order(workspace, monkeypatch, capsys):
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for moment, (key, wrong) in enumerate([("a", 20), ("b", 5), ("c", 12)]):
            assert not run(*evaluated(key, wrong, time=1_700_000_000_000 + moment))
    assert run()
    assert outbox.entries() == []
    expected = {1: ("first", []), 2: ("better", ["champion"]), 3: ("worse", ["challenger"])}
    assert versions() == expected
    assert run()
    assert versions() == expected


STEPS = ("create_logged_model", "log_model_artifacts", "log_outputs", "finalize_logged_model", "create_model_version",
         "set_registered_model_alias", "set_tag")  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_break_at_any_step_neither_loses_nor_doubles(workspace, monkeypatch, capsys, step):
    assert run(*evaluated("a", wrong=10))
    recording.send_or_keep(evaluated("b", wrong=0))
    whole = getattr(MlflowClient, step)

    def breaks(self, *args, **kwargs) -> None:
        whole(self, *args, **kwargs)  # the store has it, but the answer is lost
        raise MlflowException("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, step, breaks)
        assert not registry.register()
    assert "registered later: connection lost" in capsys.readouterr().err
    assert registry.register()
    assert versions() == {1: ("first", []), 2: ("better", ["champion"])}
    client = MlflowClient(store.uri())
    assert len(client.search_logged_models([client.get_experiment_by_name("headstart").experiment_id])) == 2


def test_who_comes_late_is_compared_with_the_champion_of_that_moment(workspace, monkeypatch):
    assert run(*evaluated("a", wrong=10))
    recording.send_or_keep(evaluated("b", wrong=0))

    def breaks(*_) -> None:
        raise MlflowException("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", breaks)
        assert not registry.register()
    client = MlflowClient(store.uri())
    source = client.get_model_version("headstart", "2").source
    client.create_model_version("headstart", source, tags={registry.VERDICT: "better"})  # by another machine
    client.set_registered_model_alias("headstart", "champion", "3")
    assert registry.register()
    assert versions() == {1: ("first", []), 2: ("not comparable", ["challenger"]), 3: ("better", ["champion"])}


@pytest.mark.parametrize("step", ["create_logged_model", "create_model_version"])
@pytest.mark.parametrize(("mine", "others", "verdict"), [(0, 6, "better"), (6, 0, "worse")])
def test_two_clones_at_once_let_the_better_be_the_champion(workspace, step, mine, others, verdict):
    """Both are better than the champion; another clone registers its model while this one is at `step`."""
    assert run(*evaluated("a", wrong=20))
    recording.send_or_keep(evaluated("mine", wrong=mine))
    client, whole = MlflowClient(store.uri()), getattr(MlflowClient, step)
    (waiting,) = client.search_runs([store.experiment_id(client)], f"tags.`{registry.MODEL}` = '{registry.WAITING}'")

    def meanwhile(self, *args, **kwargs):
        twin.undo()
        client.set_tag(waiting.info.run_id, registry.MODEL, "not now")  # the other clone has its own to register
        assert run(*evaluated("other", wrong=others))
        client.set_tag(waiting.info.run_id, registry.MODEL, registry.WAITING)
        return whole(self, *args, **kwargs)

    twin = pytest.MonkeyPatch()
    twin.setattr(MlflowClient, step, meanwhile)
    twin.setattr(store, "FileLock", lambda _: contextlib.nullcontext())  # the other clone has a lock of its own
    assert registry.register()
    assert versions()[3] == (verdict, ["champion" if verdict == "better" else "challenger"])
    assert versions()[2] == ("better", ["champion"] if verdict == "worse" else [])
    said = client.get_model_version("headstart", "3").description
    assert said.startswith(f"{verdict.capitalize()} than the champion, version 2")


def test_two_clones_make_one_version_of_one_model(workspace):
    assert run(*evaluated("a", wrong=20))
    recording.send_or_keep(evaluated("b", wrong=0))

    def meanwhile(*args, **kwargs):
        twin.undo()
        assert registry.register()
        return whole(*args, **kwargs)

    whole, twin = MlflowClient.create_model_version, pytest.MonkeyPatch()
    twin.setattr(MlflowClient, "create_model_version", meanwhile)
    twin.setattr(store, "FileLock", lambda _: contextlib.nullcontext())
    assert registry.register()
    assert versions() == {1: ("first", []), 2: ("better", ["champion"])}


def test_the_model_is_named_after_the_experiment(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Users/me@example.org/Cats: 'all'")
    assert run(*evaluated("a", wrong=10))
    (model,) = MlflowClient(store.uri()).search_registered_models()
    assert model.name == "Users-me-example.org-Cats-all"


def test_a_model_that_can_never_be_registered_holds_up_no_other(workspace, capsys):
    bad = evaluated("a", wrong=10, time=1_700_000_000_000)
    recording.send_or_keep(bad[1:])  # its model is not in the store
    assert run(*evaluated("b", wrong=10, time=1_700_000_000_001))
    assert list(versions()) == [1]
    assert "is not registered: models/model.keras is not in the store" in capsys.readouterr().err
    assert registry.register()
    assert capsys.readouterr().err == ""
