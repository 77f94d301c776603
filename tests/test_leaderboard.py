"""What the leaderboard reads of an experiment, and how it ranks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import recorded
import yaml

from headstart import costs, paths
from headstart.errors import UserError
from headstart.evaluation.leaderboard import (
    Entry,
    explain,
    leaderboard,
    rank,
    read_datasets,
    read_entry,
    to_table,
)

HEAD, MODEL, PREDICTIONS = (path.as_posix() for path in (paths.HEAD, paths.MODEL, paths.PREDICTIONS))
CACHE = {
    "train_head report": b'{"val_accuracy": 0.8}',
    "fine_tune report": b'{"val_accuracy": 0.9}',
    "evaluate report": json.dumps(
        {
            "final": {"metrics": {"accuracy": {"value": 0.9123456789, "low": 0.8, "high": 0.95}}},
            "head": {"metrics": {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.75}}},
            "model_mb": 2.5,
        }
    ).encode(),
}


class Files:
    """A tree of files by their path."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, path: Path) -> bytes | None:
        return self.files.get(path.as_posix())

    def below(self, folder: Path) -> list[str]:
        return []


def experiment(epochs: int | float = 2, head: str = "head", **changes: bytes) -> Files:
    """An experiment whose dvc.lock says that it ran with 2 epochs on the head of that md5."""
    files = {
        "params.yaml": yaml.safe_dump({"seed": 1, "fine_tune": {"epochs": epochs}, "gate": {"max_drop": 0}}).encode(),
        "metrics/train_head.json": b'{"head_val_loss": 0.5}',
        "metrics/fine_tune.json": b'{"val_loss": 0.2}',
        "metrics/evaluate.json": b'{"accuracy": 0.912346}',
    }
    definitions, lock = {}, {}
    for stage, params, deps, outs in (
        ("train_head", {"seed": 1}, {}, {HEAD: head}),
        ("fine_tune", {"fine_tune": {"epochs": 2}}, {HEAD: "head"}, {MODEL: "model"}),
        ("evaluate", {}, {MODEL: "model"}, {PREDICTIONS: "predictions"}),
    ):
        metrics, outs = f"metrics/{stage}.json", outs | {f"reports/{stage}.json": f"{stage} report"}
        definitions[stage] = {"cmd": stage, "params": list(params), "deps": list(deps), "outs": list(outs),
                              "metrics": [{metrics: {"cache": False}}]}  # fmt: skip
        md5s = outs | {metrics: hashlib.md5(files[metrics]).hexdigest()}
        lock[stage] = {"cmd": stage, "params": {"params.yaml": params},
                       **{kind: [{"path": path, "md5": md5} for path, md5 in listed.items()]
                          for kind, listed in (("deps", deps), ("outs", md5s))}}  # fmt: skip
    files["dvc.yaml"] = yaml.safe_dump({"stages": definitions}, sort_keys=False).encode()
    files["dvc.lock"] = yaml.safe_dump({"stages": lock}).encode()
    return Files(files | {name.replace("__", "/") + ".json": content for name, content in changes.items()})


@pytest.fixture(autouse=True)
def kept_costs(tmp_path, monkeypatch) -> Path:
    """The folder of the costs that this machine knows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    costs.write("train_head", {"train_head_seconds": 3}, "head")
    costs.write("fine_tune", {"fine_tune_seconds": 40}, "model")
    costs.write("evaluate", {"evaluate_seconds": 2, "latency_ms": 7.5}, "predictions")
    return tmp_path / ".dvc/tmp/headstart/costs"


def read(files: Files, heads: bool = False) -> Entry:
    return read_entry("some-name", files, CACHE.get, heads)


def test_all_figures_of_a_complete_experiment():
    test = {"accuracy": 0.912346, "accuracy_low": 0.8, "accuracy_high": 0.95}
    figures = {"val_loss": 0.2, "val_accuracy": 0.9, "seconds": 45, "latency_ms": 7.5, "model_mb": 2.5} | test
    assert read(experiment()).figures == figures
    assert read(experiment()).params == {"seed": 1, "fine_tune.epochs": 2}
    test = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.75}
    assert read(experiment(), heads=True).figures == {"val_loss": 0.5, "val_accuracy": 0.8, "seconds": 45} | test


def test_what_only_another_machine_has_is_left_out(kept_costs):
    for file in kept_costs.iterdir():
        file.unlink()
    entry = read_entry("some-name", experiment(), {}.get, heads=False)
    assert entry.figures == {"val_loss": 0.2, "accuracy": 0.912346}


@pytest.mark.parametrize(
    "files",
    [
        experiment(epochs=3),  # DVC leaves the metrics of a stage that did not run as they were
        experiment(head="another"),
        experiment(metrics__fine_tune=b'{"val_loss": 0.1}'),
    ],
)
def test_figures_that_do_not_belong_to_the_params_are_left_out(files):
    entry = read(files)
    assert entry.reached == ["train_head"]
    assert entry.figures["val_loss"] == 0.5
    assert "accuracy" not in entry.figures


def test_params_with_an_exponent_are_those_of_dvc_lock():
    """YAML 1.1 takes 1e-05, as DVC writes it, for text."""
    files = experiment()
    files.files["params.yaml"] = files.files["params.yaml"].replace(b"epochs: 2", b"epochs: 2e-5")
    files.files["dvc.lock"] = files.files["dvc.lock"].replace(b"epochs: 2", b"epochs: 2e-05")
    assert read(files).reached[-1] == "evaluate"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("params.yaml", b"[1]"), ("params.yaml", b"a: ["), ("params.yaml", b"\xff"), ("dvc.yaml", b"\xff"),
        ("dvc.lock", b"<<<<<<< HEAD"), ("dvc.lock", b"stages: [1]"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_its_experiment(file, content):
    with pytest.raises(UserError, match=f"^some-name: {file}:? cannot be read"):
        read(Files({**experiment().files, file: content}))


@pytest.mark.parametrize("content", [b"<<<<<<< HEAD", b"[]", b"null", b"\xff", b'{"val_loss": "much"}'])
def test_metrics_that_cannot_be_read_are_named_with_their_experiment(content):
    files = experiment(metrics__fine_tune=content)
    files.files["dvc.lock"] = files.files["dvc.lock"].replace(
        hashlib.md5(experiment().files["metrics/fine_tune.json"]).hexdigest().encode(),
        hashlib.md5(content).hexdigest().encode(),
    )
    with pytest.raises(UserError, match=r"^some-name: metrics/fine_tune.json (is not JSON|does not hold|lacks)"):
        read(files)


def test_costs_that_are_not_numbers_are_left_out():
    told = {"evaluate_seconds": None, "latency_ms": [], "examples_per_second": "4"}
    costs.write("evaluate", told, "predictions")
    figures = read(experiment()).figures
    assert figures["seconds"] == 43
    assert "latency_ms" not in figures


def test_without_a_head_there_is_nothing_to_rank():
    assert read(Files({**experiment().files, "params.yaml": b"seed: 2"})).figures == {}


def board(**figures: list[float]) -> list[Entry]:
    """Experiments a, b, ..., by the values of their figures."""
    return [
        Entry([name], {"seed": number, "mode": 1}, ["train_head"], dict(zip(figures, values, strict=True)), "data")
        for number, (name, values) in enumerate(zip("abc", zip(*figures.values(), strict=True), strict=False))
    ]


def test_params_are_shown_as_they_are():
    """An integer beside null is no float, and no NaN."""
    a, b = board(val_loss=[0.3, 0.5], val_accuracy=[0.9, 0.8])
    entries = [replace(a, params={"epochs": 3, "crop": True}), replace(b, params={"epochs": None, "crop": False})]
    assert [row[3:5] for row in to_table(rank(entries, "val_loss"), test=False).rows] == [
        ["3", "true"],
        ["null", "false"],
    ]


@pytest.mark.parametrize("report", [{"final": 3}, {"final": {"metrics": {"accuracy": {"value": "much"}}}}, {}])
def test_figures_that_a_report_lacks_are_left_out(report):
    cache = {**CACHE, "evaluate report": json.dumps(report).encode()}
    figures = read_entry("some-name", experiment(), cache.get, heads=False).figures
    assert (figures["accuracy"], figures["val_accuracy"]) == (0.912346, 0.9)
    assert "accuracy_low" not in figures


def test_val_ranks_and_test_never_does():
    entries = board(val_loss=[0.5, 0.3, 0.4], val_accuracy=[0.95, 0.8, 0.9], accuracy=[0.1, 0.2, 0.99],
                    accuracy_low=[0, 0.1, 0.9], accuracy_high=[0.2, 0.3, 1.0])  # fmt: skip
    assert list(rank(entries, "val_loss").experiment) == ["b", "c", "a"]
    by_accuracy = rank(entries, "val_accuracy")
    assert list(by_accuracy.experiment) == ["a", "c", "b"]
    table = to_table(by_accuracy, test=False)
    assert table.header == ["", "experiment", "reached", "seed", "val log loss", "val accuracy"]
    assert "0.1000" not in table.rows[0]
    table = to_table(by_accuracy, test=True)
    assert (table.header[-1], table.rows[0][-1]) == ("test accuracy (95 %)", "0.1000 (0.0000 to 0.2000)")


def test_entries_whose_val_accuracy_is_unknown_come_last():
    entries = board(val_loss=[0.5, 0.3, 0.4], val_accuracy=[0.95, 0.8, 0.9])
    del entries[0].figures["val_accuracy"]
    assert list(rank(entries, "val_accuracy").experiment) == ["c", "b", "a"]
    notes = explain(entries, {}, "val_accuracy", test=False)
    assert "Without val accuracy, which `dvc fetch` or `dvc exp pull` brings: a." in notes
    assert "brings" not in " ".join(explain(entries, {}, "val_loss", test=False))


def test_different_data_and_waiting_experiments_are_mentioned():
    a, b = board(val_loss=[0.5, 0.3], val_accuracy=[0.9, 0.8])
    notes = explain([a, replace(b, data="other")], {"Failed": 1}, "val_loss", test=False)
    assert "Not all have the same classes and examples" in " ".join(notes)
    assert "A: not to be had from DVC's cache, see `dvc fetch`; B: not" in " ".join(notes)
    assert "Not done: 1 failed." in notes
    assert "same classes" not in " ".join(explain([a, b], {}, "val_loss", test=False))


def manifest(labels: list[str], **changes: object) -> bytes:
    """A manifest of 8 examples, half of them in train."""
    splits = ["train", "train", "train", "train", "val", "val", "test", "test"]
    table = pd.DataFrame({"item_id": [f"id{n}" for n in range(8)], "label": labels, "split": splits})
    return table.assign(**changes).to_parquet()


CATS, OWLS = ["cat", "dog"] * 4, ["cat", "dog"] * 3 + ["owl", "dog"]


@pytest.mark.parametrize(
    ("content", "letters", "said"),
    [
        (manifest(OWLS), ["A", "B"], "A: 2 classes, 2 val and 2 test examples; B: 3 classes, 2 val and 2 test examples "
         "(added: owl)."),
        (manifest(["lynx", "dog"] * 4), ["A", "B"], "(added: lynx; removed: cat)."),
        (manifest(CATS, item_id=[f"id{n}" for n in range(7)] + ["another"]), ["A", "B"], "B: 2 classes, 2 val"),
        (manifest(["dog", "cat", *CATS[2:]]), ["A", "A"], ""),  # train alone differs
        (None, ["A", "B"], "B: not to be had from DVC's cache"),
        (b"PAR1 damaged", ["A", "B"], "B: not to be had from DVC's cache"),
    ],
)  # fmt: skip
def test_rows_whose_figures_cannot_be_compared_are_marked(content, letters, said, capsys):
    a, b = board(val_loss=[0.3, 0.5], val_accuracy=[0.9, 0.8])
    entries = [a, replace(b, data="other")]
    datasets = read_datasets(entries, {"data": manifest(CATS), "other": content}.get)
    ranked = rank(entries, "val_loss", datasets)
    assert list(ranked.data) == letters
    table = to_table(ranked, test=False)
    notes = " ".join(explain(entries, {}, "val_loss", False, datasets))
    if said:
        assert (table.header[3], [row[3] for row in table.rows]) == ("data", letters)
        assert "figures of different letters under `data` cannot be compared. A: 2 classes" in notes
    else:
        assert "data" not in table.header
        assert "letters" not in notes
    assert said in notes
    assert ("b: data/prepared/manifest.parquet cannot be read" in capsys.readouterr().err) == (
        content == b"PAR1 damaged"
    )


def test_experiments_of_other_classes_are_marked(capsys):
    recorded.make_repository()
    recorded.experiment("cats", results={"val_loss": 0.4}, **{"train_head.dropout": 0.1})
    recorded.experiment("owls", results={"classes": ("cat", "dog", "<owl>")}, **{"train_head.dropout": 0.2})
    leaderboard(format="json")
    assert {row["experiment"]: row["data"] for row in json.loads(capsys.readouterr().out)} == {"cats": "A", "owls": "B"}
    leaderboard(format="markdown")
    said = capsys.readouterr().out
    assert "| A |" in said
    assert (
        "A: 2 classes, 10 val and 10 test examples; B: 3 classes, 10 val and 10 test examples (added: &#60;owl&#62;"
        in said
    )
